"""What neurons do by language: mean activations, or those of one drawn token, to hold a set of neurons at."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import (
    MAX_TOKENS,
    SITES,
    Encoded,
    ExactSum,
    ForwardHook,
    HookedModel,
    Mode,
    Plan,
    Progress,
    Reducer,
    Running,
    TokenBatch,
    at_least_float32,
    batches,
    dtype_of,
    encode,
    stream,
    wide_dtype,
)
from ..neurons import NeuronSpace
from ..store import Result
from ..text import Document, as_corpus

STREAM = "stream"
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
        rows = [
            {"language": language, "layer": layer, "site": site, "rms": float(row.square().mean().sqrt())}
            for language, by_site in self.values.items()
            for site, values in by_site.items()
            for layer, row in enumerate(values)
        ]
        return pd.DataFrame(rows)

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
    accumulate_activations(model, plan, sums, progress="means of" if progress else None)
    settings = {"max_tokens": max_tokens, "corpus": encoded.corpus.describe()}
    tokens = {language: int(part.tokens) for language, part in sums.items()}
    return _activations(model, {language: part.means() for language, part in sums.items()}, tokens, "mean", settings)


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
    corpus, draw = as_corpus(corpus), random.Random(seed)
    rows = {language: draw.randrange(len(documents)) for language, documents in corpus.items()}
    names = {language: corpus.ids[language][row] for language, row in rows.items()}
    reader, values = _Reader(NeuronSpace.of(model)), {}
    for language, row in rows.items():
        (batch,) = batches(model, encode(model, [corpus[language][row]], [names[language]], max_tokens))
        for _ in stream(model, [_at_one_token(batch, draw)], reader.hooks(), reader.running):
            values[language] = reader.taken()
    settings = {"seed": seed, "max_tokens": max_tokens, "corpus": corpus.describe(), "documents": names}
    return _activations(model, values, dict.fromkeys(rows, 1), "sample", settings)


def _at_one_token(batch: TokenBatch, draw: random.Random) -> TokenBatch:
    """A batch of one document with one of its ordinary tokens, drawn at random, as all its content."""
    position = draw.choice(batch.content[0].nonzero().flatten().tolist())
    return replace(batch, content=torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None] == position)


class _Reader:
    """Sums over the content of the running batch, of each site's activations and of the stream after each block."""

    def __init__(self, space: NeuronSpace) -> None:
        self.space, self.running = space, Running()
        self.sums: dict[tuple[str, int], Float[Tensor, " neuron"]] = {}

    def hooks(self) -> list[ForwardHook]:
        points = {site: SITES[site].hook_name for site in self.space.widths}
        points[STREAM] = "blocks.{}.hook_resid_post".format
        return [
            (point(layer), partial(self._read, name, layer))
            for name, point in points.items()
            for layer in range(self.space.n_layers)
        ]

    def _read(self, name: str, layer: int, activation: Tensor, hook: Any = None) -> Tensor:
        wide = at_least_float32(activation.flatten(2).flatten(0, 1))
        self.sums[name, layer] = (self.running.batch.content.flatten().to(wide) @ wide).double().cpu()
        return activation

    def taken(self) -> dict[str, Float[Tensor, "layer _"]]:
        """The sums by site and for the stream, once the batch is through."""
        names = [*self.space.widths, STREAM]
        return {name: torch.stack([self.sums[name, i] for i in range(self.space.n_layers)]) for name in names}


@dataclass(frozen=True)
class ActivationSums(Reducer, kind="activation_sums"):
    """What one language's ordinary tokens add up to, by site and for the stream."""

    sums: dict[str, ExactSum]
    tokens: Int[Tensor, ""]

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str) -> "ActivationSums":
        """Of no tokens."""
        widths = {**space.widths, STREAM: space.d_model}
        sums = {name: ExactSum.zeros(space.n_layers, width) for name, width in widths.items()}
        return cls(**Reducer.start(plan, language), sums=sums, tokens=torch.tensor(0))

    def update(self, batch: TokenBatch, sums: Mapping[str, Float[Tensor, "layer _"]]) -> None:
        """Add a batch.

        Raises:
            ValueError: if it is in already, or of another language.
            OverflowError: if a sum reaches 7e13.
        """
        self.claim(batch)
        self.tokens.add_(batch.content.sum().cpu())
        for name, values in sums.items():
            self.sums[name].add(ExactSum.of(values[None]))

    def means(self) -> dict[str, Float[Tensor, "layer _"]]:
        """Mean activations."""
        return {name: total.value() / self.tokens for name, total in self.sums.items()}


def accumulate_activations(
    model: HookedModel,
    batches: Plan | Iterable[TokenBatch],
    sums: Mapping[str, ActivationSums],
    *,
    progress: Progress = None,
) -> None:
    """Add the activations of batches of a plan to the sums of their languages."""
    reader = _Reader(NeuronSpace.of(model))
    for batch, _ in stream(model, batches, reader.hooks(), reader.running, progress=progress):
        sums[batch.language].update(batch, reader.taken())


def _activations(
    model: HookedModel,
    values: Mapping[str, Mapping[str, Float[Tensor, "layer _"]]],
    tokens: Mapping[str, int],
    statistic: Statistic,
    settings: Mapping[str, Any],
) -> Activations:
    dtype = wide_dtype(dtype_of(model))
    by_language = {
        language: {name: rows.to(dtype) for name, rows in by_name.items()} for language, by_name in values.items()
    }
    streams = {language: by_name.pop(STREAM) for language, by_name in by_language.items()}
    return Activations(NeuronSpace.of(model), by_language, streams, tokens, statistic, settings)
