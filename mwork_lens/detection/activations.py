"""What neurons do by language: mean activations, or those of one drawn token, to hold a set of neurons at."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model.architecture import HookedModel, at_least_float32, dtype_of, wide_dtype
from ..model.blocks import layers_apart
from ..model.forward import MAX_TOKENS, Encoded, Plan, Progress, Running, TokenBatch, batches, encode, stream
from ..model.hooks import GateMode, Mode
from ..model.reading import read_text
from ..model.reducers import ExactSum, Reducer
from ..model.shards import by_name, in_order, shown_part, without_part
from ..model.sites import SITES
from ..model.tally import Tally
from ..neurons import NeuronSpace
from ..store import Result
from ..text import Document, StreamedCorpus, as_corpus, check_arguments
from ..text.choices import listed, require_choice
from .merging import in_corpus_order, languages_of, require_one_space

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
    sums: Mapping[str, ExactSum] = field(default_factory=dict)
    """By language, in a part of a corpus only: what the values are the means of, ``[layer, all]``."""

    @classmethod
    def merge(cls, parts: Iterable["Activations"] | Mapping[str, "Activations"]) -> "Activations":
        """The means of a corpus out of those of all its parts, in any order, to the last bit.

        Raises:
            ValueError: for parts of other models or settings, that are missing, there twice or of another plan, and for
                what is not a part of ``collect_means(..., shard=)``.
        """
        named = by_name(parts, "means")
        ordered = [named[name] for name in in_order({name: part.settings for name, part in named.items()})]
        require_one_space(named)
        first, tags, sums = ordered[0], languages_of(ordered), dict[str, ExactSum]()
        for part in ordered:
            for tag, addend in part.sums.items():
                sums.setdefault(tag, ExactSum.zeros(*addend.high.shape)).add(addend)
        tokens = {tag: sum(part.tokens.get(tag, 0) for part in ordered) for tag in tags}
        means, dtype = {tag: sums[tag].value() / tokens[tag] for tag in tags}, next(iter(first.streams.values())).dtype
        hashes = {tag: in_corpus_order(ordered, tag, "documents_of") for tag in tags}
        settings = without_part(first.settings)
        return cls(first.space, *_by_site(first.space, means, dtype), tokens, first.statistic, settings, hashes)

    def of(self, language: str) -> Mapping[str, Float[Tensor, "layer _"]]:
        """The values of one language, by site.

        Raises:
            ValueError: for a language that was not collected.
        """
        if language not in self.values:
            raise ValueError(
                f"No activations were collected for {language!r}; there are {listed(self.values, language)}."
            )
        return self.values[language]

    def overall(self) -> dict[str, Float[Tensor, "layer _"]]:
        """The mean of the languages' values, each language weighing the same, by site."""
        sites = self.space.widths
        return {site: torch.stack([by_site[site] for by_site in self.values.values()]).mean(0) for site in sites}

    def held(self, mode: Mode, language: str | None, own: str | None) -> Mapping[str, Float[Tensor, "layer _"]]:
        """The values at which ``mode`` holds a set whose language is ``own``.

        Raises:
            ValueError: for a mode that holds nothing, or needs a language or another statistic.
        """
        holding = [each for each in get_args(Mode) if each not in ("zero", "scale", *get_args(GateMode))]
        require_choice("mode", mode, holding)
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
        return f"Activations({self.space.shown}: {shown_part(self.settings)}{self.statistic} of tokens {tokens})"


def collect_means(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]] | StreamedCorpus,
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Activations:
    """Mean activation of every neuron over the ordinary tokens of each language, in one streaming pass.

    Args:
        model: a hooked model.
        corpus: documents by language, or a stream of them, as for :func:`detect`.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        shard: one of several parts of the corpus, as in :func:`detect`; :meth:`Activations.merge` puts them together.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.

    Raises:
        ValueError: for empty documents, weights that are not finite, or a checkpoint of something else.
    """
    check_arguments(collect_means, locals())
    text = corpus if isinstance(corpus, StreamedCorpus) else Encoded.of(model, corpus, max_tokens)
    space, record = NeuronSpace.of(model, fingerprint=True), text.corpus if isinstance(text, Encoded) else text
    settings: dict[str, Any] = {"max_tokens": max_tokens, "corpus": record.describe()}

    def empty(plan: Plan) -> dict[str, ActivationSums]:
        return {language: ActivationSums.empty(space, plan, language) for language in plan.encoded}

    def add(tally: Tally[ActivationSums], left: Plan, bar: Progress) -> None:
        for batch, of_batch in layer_sums(model, space, left, progress=bar):
            tally.add(batch.language, batch, of_batch)

    asked = {**asdict(space), "dtype": str(dtype_of(model)), "settings": settings, "batch_size": batch_size}
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "shard": shard, "checkpoint": checkpoint}
    read = read_text("means", model, text, empty, add, asked, bar="means of" if progress else None, **reading)
    sums = {language: read.parts[language].sums for language in read.documents_of}
    means = {language: each.value() / read.tokens[language] for language, each in sums.items()}
    addends, settings = {} if shard is None else sums, {**settings, **read.settings}
    of_sites = _by_site(space, means, wide_dtype(dtype_of(model)))
    return Activations(space, *of_sites, read.tokens, "mean", settings, read.documents_of, addends)


def collect_samples(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, seed: int = 0, max_tokens: int = MAX_TOKENS
) -> Activations:
    """The activations of all neurons at one token of one document, drawn at random for each language.

    For ``mode="resample"``: unlike a mean it is a state that the model was really in, all its neurons together. Draw
    several (by ``seed``) to average over.

    Raises:
        ValueError: for empty documents or weights that are not finite.
    """
    check_arguments(collect_samples, locals())
    corpus, draw, space = as_corpus(corpus), random.Random(int(seed)), NeuronSpace.of(model, fingerprint=True)
    rows = {language: draw.randrange(len(documents)) for language, documents in corpus.items()}
    names = {language: corpus.ids[language][row] for language, row in rows.items()}
    sampled = {}
    for language, row in rows.items():
        (batch,) = batches(model, encode(model, [corpus[language][row]], [names[language]], max_tokens))
        # one of the ordinary tokens as all the content
        position = draw.choice(batch.content[0].nonzero().flatten().tolist())
        content = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None] == position
        ((_, sampled[language]),) = layer_sums(model, space, [replace(batch, content=content)])
    settings = {"seed": seed, "max_tokens": max_tokens, "corpus": corpus.describe(), "documents": names}
    of_sites = _by_site(space, sampled, wide_dtype(dtype_of(model)))
    return Activations(space, *of_sites, dict.fromkeys(rows, 1), "sample", settings)


def _by_site(
    space: NeuronSpace, rows: Mapping[str, Float[Tensor, "layer all"]], dtype: torch.dtype
) -> tuple[dict[str, dict[str, Float[Tensor, "layer _"]]], dict[str, Float[Tensor, "layer d_model"]]]:
    """By language: every site's values, and the stream, out of rows of all of them."""
    widths = [*space.widths.values(), space.d_model]
    parts = {language: [x.contiguous() for x in row.to(dtype).split(widths, -1)] for language, row in rows.items()}
    values = {language: dict(zip(space.widths, sites, strict=True)) for language, (*sites, _) in parts.items()}
    return values, {language: sites[-1] for language, sites in parts.items()}


def layer_sums(
    model: HookedModel, space: NeuronSpace, batches: Plan | Iterable[TokenBatch], *, progress: Progress = None
) -> Iterator[tuple[TokenBatch, Float[Tensor, "layer all"]]]:
    """Each batch with sums over its content, by layer: of every site's activations, then of the stream after it."""
    running, sums = Running(), {}

    def read(name: str, activation: Tensor, hook: object = None) -> Tensor:
        wide = at_least_float32(activation.flatten(2).flatten(0, 1))
        sums[name] = running.beside(activation).content.flatten().to(wide) @ wide
        return activation

    apart, stream_point = layers_apart(model), "blocks.{}.hook_resid_post".format
    points = {**{SITES[site].hook_name: width for site, width in space.widths.items()}, stream_point: space.d_model}
    places = {point(layer): width for layer in range(space.n_layers) for point, width in points.items()}
    absent = {point(layer) for layer in apart for point in points if point is not stream_point}
    hooks = [(name, partial(read, name)) for name in places if name not in absent]
    for batch, states in stream(model, batches, hooks, running, progress=progress):
        none = {name: states.new_zeros(places[name], dtype=wide_dtype(states.dtype)) for name in absent}
        by_place = {**sums, **none}
        yield (
            batch,
            torch.cat([by_place[name].to(states.device) for name in places])
            .unflatten(0, (space.n_layers, -1))
            .double()
            .cpu(),
        )


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
