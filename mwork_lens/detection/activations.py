"""What neurons do by language: mean activations, or those of one drawn token, to hold a set of neurons at."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model.architecture import HookedModel, at_least_float32, dtype_of, wide_dtype
from ..model.forward import MAX_TOKENS, Encoded, Plan, Progress, Running, TokenBatch, batches, encode, stream
from ..model.hooks import ForwardHook, Mode
from ..model.reducers import ExactSum, Reducer
from ..model.sites import SITES
from ..neurons import NeuronSpace
from ..store import Result
from ..text import Document, as_corpus

Statistic = Literal["mean", "sample"]


@dataclass(frozen=True)
class Activations(Result, kind="activations"):
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
    documents_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By language: the hash of each document's token ids, in the order of the corpus."""

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
        """One row per language, layer and site: root mean square of the values over neurons."""
        return pd.DataFrame(
            {"language": language, "layer": layer, "site": site, "rms": float(row.square().mean().sqrt())}
            for language, by_site in self.values.items()
            for site, values in by_site.items()
            for layer, row in enumerate(values)
        )

    def __repr__(self) -> str:
        tokens = ", ".join(f"{language} {number:,}" for language, number in self.tokens.items())
        return f"Activations({self.space.model}: {self.statistic} of tokens {tokens})"


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
    encoded, space = Encoded.of(model, corpus, max_tokens), NeuronSpace.of(model)
    plan = encoded.plan(batch_size)
    sums = {language: ActivationSums.empty(space, plan, language) for language in encoded}
    accumulate_activations(model, space, plan, sums, progress="means of" if progress else None)
    settings = {"max_tokens": max_tokens, "corpus": encoded.corpus.describe()}
    means = {language: part.sums.value() / part.tokens for language, part in sums.items()}
    tokens = {language: int(part.tokens) for language, part in sums.items()}
    result = _activations(space, dtype_of(model), means, tokens, "mean", settings)
    return replace(result, documents_of=encoded.hashes)


def collect_samples(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, seed: int = 0, max_tokens: int = MAX_TOKENS
) -> Activations:
    """The activations of all neurons at one token of one document, drawn at random for each language.

    For ``mode="resample"``: unlike a mean it is a state that the model was really in, all its neurons together. Draw
    several (by ``seed``) to average over.

    Raises:
        ValueError: for empty documents or weights that are not finite.
    """
    corpus, draw, space = as_corpus(corpus), random.Random(seed), NeuronSpace.of(model)
    rows = {language: draw.randrange(len(documents)) for language, documents in corpus.items()}
    names = {language: corpus.ids[language][row] for language, row in rows.items()}
    reader, values = _Reader(space), {}
    for language, row in rows.items():
        (batch,) = batches(model, encode(model, [corpus[language][row]], [names[language]], max_tokens))
        # one of the ordinary tokens as all the content
        position = draw.choice(batch.content[0].nonzero().flatten().tolist())
        content = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None] == position
        for _ in stream(model, [replace(batch, content=content)], reader.hooks(), reader.running):
            values[language] = reader.taken()
    settings = {"seed": seed, "max_tokens": max_tokens, "corpus": corpus.describe(), "documents": names}
    return _activations(space, dtype_of(model), values, dict.fromkeys(rows, 1), "sample", settings)


def _activations(
    space: NeuronSpace,
    dtype: torch.dtype,
    values: Mapping[str, Float[Tensor, "layer all"]],
    tokens: Mapping[str, int],
    statistic: Statistic,
    settings: Mapping[str, Any],
) -> Activations:
    by_language, streams = {}, {}
    for language, rows in values.items():
        *sites, of_stream = rows.to(wide_dtype(dtype)).split([*space.widths.values(), space.d_model], -1)
        by_language[language] = {site: part.contiguous() for site, part in zip(space.widths, sites, strict=True)}
        streams[language] = of_stream.contiguous()
    return Activations(space, by_language, streams, tokens, statistic, settings)


class _Reader:
    """Sums over the content of the running batch, by layer: every site's activations, then the stream after it."""

    def __init__(self, space: NeuronSpace) -> None:
        self.running, self.layers = Running(), range(space.n_layers)
        self.points = [*(SITES[site].hook_name for site in space.widths), "blocks.{}.hook_resid_post".format]
        self.sums: dict[tuple[int, int], Float[Tensor, " _"]] = {}

    def hooks(self) -> list[ForwardHook]:
        points = list(enumerate(self.points))
        return [(point(layer), partial(self._read, (layer, i))) for layer in self.layers for i, point in points]

    def _read(self, place: tuple[int, int], activation: Tensor, hook: Any = None) -> Tensor:
        wide = at_least_float32(activation.flatten(2).flatten(0, 1))
        self.sums[place] = self.running.batch.content.flatten().to(wide) @ wide
        return activation

    def taken(self) -> Float[Tensor, "layer all"]:
        """The sums, once the batch is through."""
        layers = [torch.cat([self.sums[layer, i] for i in range(len(self.points))]) for layer in self.layers]
        return torch.stack(layers).double().cpu()


@dataclass(frozen=True)
class ActivationSums(Reducer, kind="activation_sums"):
    """What one language's ordinary tokens add up to, by layer: every site's neurons, then the stream."""

    sums: ExactSum
    tokens: Int[Tensor, ""]

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str) -> "ActivationSums":
        """Of no tokens."""
        sums = ExactSum.zeros(space.n_layers, sum(space.widths.values()) + space.d_model)
        return cls(**Reducer.start(plan, language, str(space)), sums=sums, tokens=torch.tensor(0))

    def update(self, batch: TokenBatch, sums: Float[Tensor, "layer all"]) -> None:
        """Add a batch; refused where :meth:`claim` or :meth:`ExactSum.add` refuses."""
        self.claim(batch)
        self.tokens.add_(batch.content.sum().cpu())
        self.sums.add(ExactSum.of(sums[None]))


def accumulate_activations(
    model: HookedModel,
    space: NeuronSpace,
    batches: Plan | Iterable[TokenBatch],
    sums: Mapping[str, ActivationSums],
    *,
    progress: Progress = None,
) -> None:
    """Add the activations of batches of a plan to the sums of their languages."""
    reader = _Reader(space)
    for batch, _ in stream(model, batches, reader.hooks(), reader.running, progress=progress):
        sums[batch.language].update(batch, reader.taken())
