"""What neurons do by language: mean activations, or those of one drawn token, to hold a set of neurons at."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..model import MAX_TOKENS, SITES, HookedModel, Mode, TokenBatch, batches, encode, hooked, run_blocks
from ..neurons import NeuronSpace
from ..store import read_result, write_result
from ..text import Document, as_corpus

STREAM = "stream"
Statistic = Literal["mean", "sample"]


@dataclass(frozen=True)
class Activations:
    """A value for every neuron, and for the residual stream, by language."""

    space: NeuronSpace
    values: Mapping[str, Mapping[str, Float[Tensor, "layer _"]]]
    """By language and site, ``[layer, neuron]``: the activation at the site's hook point."""
    streams: Mapping[str, Float[Tensor, "layer d_model"]]
    """By language: the residual stream after each block."""
    tokens: Mapping[str, int]
    """By language: how many ordinary tokens the values come from."""
    statistic: Statistic
    """``mean`` over these tokens, or the ``sample`` of one."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    def of(self, language: str) -> Mapping[str, Float[Tensor, "layer _"]]:
        """The values of one language, by site.

        Raises:
            ValueError: for a language that was not collected.
        """
        if language not in self.values:
            raise ValueError(f"No activations were collected for {language!r}; there are {', '.join(self.values)}.")
        return self.values[language]

    def overall(self) -> dict[str, Float[Tensor, "layer _"]]:
        """The mean of the languages' values, each language weighing the same, by site."""
        sites = self.space.widths
        return {site: torch.stack([by_site[site] for by_site in self.values.values()]).mean(0) for site in sites}

    def held(self, mode: Mode, language: str | None, own: str | None) -> Mapping[str, Float[Tensor, "layer _"]]:
        """The values at which ``mode`` holds a set whose language is ``own``.

        Raises:
            ValueError: where the mode needs a language or another statistic.
        """
        needed = "sample" if mode == "resample" else "mean"
        if mode != "set" and self.statistic != needed:
            raise ValueError(f"mode={mode!r} needs values of collect_{needed}s, not of collect_{self.statistic}s.")
        if mode == "mean":
            return self.overall()
        language = language or (own if mode != "set" else None)
        if language is None:
            raise ValueError(f"mode={mode!r} needs language=: at whose values should the neurons be held?")
        return self.of(language)

    def to_frame(self) -> pd.DataFrame:
        """One row a language, layer and site: root mean square of the values over neurons."""
        rows = [
            {"language": language, "layer": layer, "site": site, "rms": float(row.square().mean().sqrt())}
            for language, by_site in self.values.items()
            for site, values in by_site.items()
            for layer, row in enumerate(values)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        counted = ", ".join(f"{language} {n:,}" for language, n in self.tokens.items())
        return f"Activations({self.space.model}: {self.statistic} of tokens {counted})"

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""
        tensors = {f"{STREAM}/{language}": stream for language, stream in self.streams.items()}
        tensors |= {
            f"{site}/{lang}": values for lang, by_site in self.values.items() for site, values in by_site.items()
        }
        cfg = {
            "space": asdict(self.space),
            "tokens": dict(self.tokens),
            "statistic": self.statistic,
            "settings": dict(self.settings),
        }
        write_result(path, "activations", cfg, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Activations":
        """Read what :meth:`save` wrote."""
        cfg, tensors = read_result(path, "activations")
        space, languages = NeuronSpace(**cfg["space"]), list(cfg["tokens"])
        return cls(
            space=space,
            values={lang: {site: tensors[f"{site}/{lang}"] for site in space.widths} for lang in languages},
            streams={language: tensors[f"{STREAM}/{language}"] for language in languages},
            tokens=cfg["tokens"],
            statistic=cfg["statistic"],
            settings=cfg["settings"],
        )


def collect_means(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> Activations:
    """Mean activation of every neuron over the ordinary tokens of each language, in one streaming pass.

    Args:
        model: a hooked model.
        corpus: documents by language.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        progress: whether to show a bar.

    Raises:
        ValueError: for empty documents or weights that are not finite.
    """
    given = as_corpus(corpus)
    encoded = {language: encode(model, given[language], given.ids[language], max_tokens) for language in given}
    settings = {"max_tokens": max_tokens, "corpus": given.describe()}
    with tqdm(total=sum(map(len, encoded.values())), unit="doc", desc="means", disable=not progress) as bar:
        sums = {
            language: _sum(
                model, _counted(batches(model, documents, batch_size), bar.update), lambda batch: batch.content
            )
            for language, documents in encoded.items()
        }
    return _activations(model, sums, "mean", settings)


def collect_samples(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
) -> Activations:
    """The activations of all neurons at one token of one document, drawn at random for each language.

    For ``mode="resample"``: unlike a mean it is a state that the model was really in, all its neurons together. Draw
    several (by ``seed``) to average over.

    Raises:
        ValueError: for empty documents or weights that are not finite.
    """
    given, draw = as_corpus(corpus), random.Random(seed)
    rows = {language: draw.randrange(len(given[language])) for language in given}
    settings = {"seed": seed, "max_tokens": max_tokens, "corpus": given.describe()}
    settings["documents"] = {language: given.ids[language][row] for language, row in rows.items()}
    sums = {}
    for language, row in rows.items():
        encoded = encode(model, [given[language][row]], [given.ids[language][row]], max_tokens)
        sums[language] = _sum(model, batches(model, encoded), partial(_one_token, draw))
    return _activations(model, sums, "sample", settings)


Sums = tuple[dict[str, Float[Tensor, "layer _"]], int]


@torch.inference_mode()
def _sum(model: HookedModel, running: Iterator[TokenBatch], chosen: Callable[[TokenBatch], Tensor]) -> Sums:
    """Sums over the chosen positions of each site's activations and of the stream, and how many positions these are."""
    space = NeuronSpace.of(model)
    widths = {**space.widths, STREAM: space.d_model}
    sums = {name: torch.zeros(space.n_layers, width, dtype=torch.float64) for name, width in widths.items()}
    weights: list[Tensor] = []

    def add(name: str, layer: int, activation: Tensor, hook: Any = None) -> Tensor:
        flat = activation.flatten(2).flatten(0, 1)
        wide = flat if flat.dtype == torch.float64 else flat.float()
        sums[name][layer] += (weights[-1].flatten().to(wide) @ wide).double().cpu()
        return activation

    points = {**{site: SITES[site].hook_name for site in space.widths}, STREAM: "blocks.{}.hook_resid_post".format}
    hooks = [
        (point(layer), partial(add, name, layer)) for name, point in points.items() for layer in range(space.n_layers)
    ]
    tokens = 0
    with hooked(model, hooks):
        for batch in running:
            weights[:] = [chosen(batch)]
            tokens += int(weights[-1].sum())
            run_blocks(model, batch.tokens)
    return sums, tokens


def _counted(running: Iterator[TokenBatch], count: Callable[[int], object]) -> Iterator[TokenBatch]:
    for batch in running:
        yield batch
        count(len(batch.rows))


def _one_token(draw: random.Random, batch: TokenBatch) -> Tensor:
    position = draw.choice(batch.content[0].nonzero().flatten().tolist())
    return torch.zeros_like(batch.content).index_fill(1, torch.tensor([position], device=batch.content.device), True)


def _activations(
    model: HookedModel, sums: Mapping[str, Sums], statistic: Statistic, settings: Mapping[str, Any]
) -> Activations:
    dtype = next(model.parameters()).dtype  # pyright: ignore[reportAttributeAccessIssue]
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    means = {lang: {name: (s / n).to(kept) for name, s in by_name.items()} for lang, (by_name, n) in sums.items()}
    return Activations(
        space=NeuronSpace.of(model),
        values={lang: {name: m for name, m in by_name.items() if name != STREAM} for lang, by_name in means.items()},
        streams={language: by_name[STREAM] for language, by_name in means.items()},
        tokens={language: n for language, (_, n) in sums.items()},
        statistic=statistic,
        settings=settings,
    )
