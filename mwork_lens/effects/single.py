"""What switching one neuron off does to each language's loss, measured: every neuron of a set alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..detection.checking import require_layers
from ..model import (
    MAX_TOKENS,
    HookedModel,
    ModelRecord,
    Plan,
    Reducer,
    Tally,
    TokenBatch,
    model_record,
    pass_record,
    settled,
    tallied,
)
from ..model.shards import by_name, in_order, in_place, part_of, shown_part, without_part
from ..neurons import NeuronSet, NeuronSpace, warn_of_other_weights
from ..statistics import Estimate, Jackknife
from ..store import Result, digest, require_record
from ..store.processes import hidden
from ..text import Document, check_arguments
from .losses import PassageLosses, batch_nats, encode_counted
from .ranking import rank_correlations
from .tails import Places, Tails, require_same

BASELINE = "baseline"


class _Read(ModelRecord):
    """What the settings must say of the corpus."""

    corpus: Mapping[str, Any]


@dataclass(frozen=True)
class SingleEffects(Result, kind="single_effects"):
    """Loss of every passage as the model is, and with each of some neurons off, alone."""

    neurons: NeuronSet
    nats: Mapping[str, Float[Tensor, "neuron passage"]]
    """By language: negative log-likelihood with each neuron off, in the order of :attr:`places`."""
    baseline: Mapping[str, Float[Tensor, " _"]]
    """By language: that of each passage with none off."""
    tokens: Mapping[str, Int[Tensor, " _"]]
    """By language: the tokens of each passage that count."""
    documents: Mapping[str, Sequence[str]]
    """By language: the document of each passage."""
    documents_of: Mapping[str, Sequence[str]]
    """By language: the hash of each passage's token ids."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    def _require_whole(self) -> None:
        require_record(self.settings, _Read, "the settings")
        number = len(self.neurons)
        for tag, names in self.documents.items():
            shapes = [tuple(each[tag].shape) for each in (self.nats, self.baseline, self.tokens)]
            if shapes != [(number, len(names)), (len(names),), (len(names),)]:
                raise ValueError(f"{tag}: not one loss for each of {len(names)} passages and {number} neurons.")

    @property
    def space(self) -> NeuronSpace:
        """The model's neurons."""
        return self.neurons.space

    @cached_property
    def places(self) -> list[tuple[int, str, int]]:
        """Layer, site and number of each neuron."""
        return [(layer, *place) for layer, places in places_of(self.neurons).items() for place in places]

    @classmethod
    def merge(cls, parts: Iterable["SingleEffects"] | Mapping[str, "SingleEffects"]) -> "SingleEffects":
        """The result of a corpus out of those of all its parts, in any order, to the last bit.

        Raises:
            ValueError: for parts of other models, settings or neurons, that are missing, there twice or of another
                plan; and for what is not a part of ``single_effects(..., shard=)``.
        """
        named = by_name(parts, "part")
        ordered = [named[name] for name in in_order({name: part.settings for name, part in named.items()})]
        first, placed = ordered[0], partial(in_place, [part.settings for part in ordered])
        of = {tag: [p for p in ordered if tag in p.documents] for tag in first.settings["corpus"]["passages"]}
        fields: dict[str, Any] = {
            name: {tag: placed(tag, [getattr(part, name)[tag] for part in has]) for tag, has in of.items()}
            for name in ("baseline", "tokens", "documents", "documents_of")
        }
        for name in ("documents", "documents_of"):
            fields[name] = {tag: tuple(values) for tag, values in fields[name].items()}
        nats = {tag: placed(tag, [part.nats[tag] for part in has], -1) for tag, has in of.items()}
        return cls(neurons=first.neurons, nats=nats, settings=without_part(first.settings), **fields)

    @cached_property
    def rises(self) -> dict[str, Estimate]:
        """By language: the rise of its loss with each neuron off, in nats per predicted token, an array ``[neuron]``.

        The error is the jackknife's over documents.
        """
        jackknife = Jackknife.of(self.documents, paired=bool(self.settings["corpus"]["parallel"]))
        rises = {}
        for tag, nats in self.nats.items():
            changes, tokens = (nats - self.baseline[tag]).T.numpy(), self.tokens[tag].double()[:, None].numpy()
            rises[tag] = jackknife.total(tag, changes) / jackknife.size(tag, tokens)
        return rises

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron and language: layer, site, neuron, language, rise, low, high.

        ``rise`` is in nats per predicted token, ``low`` and ``high`` its 95 % interval over documents (see
        :attr:`Estimate.interval`), NaN on fewer than six of them.
        """
        frames = []
        for tag, rise in self.rises.items():
            low, high = rise.interval
            frame = pd.DataFrame(self.places, columns=["layer", "site", "neuron"])
            frames.append(frame.assign(language=tag, rise=rise.value, low=low, high=high))
        return pd.concat(frames).sort_index(kind="stable").reset_index(drop=True)

    def rank_correlations(self, scores: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> pd.DataFrame:
        """How far detectors rank these neurons as the measured changes do.

        Args:
            scores: by detector, language and site ``[layer, neuron]``, e.g. ``{"attribution":
                attributed.mean_effects, "PLND": detection.mean_scores}``; languages and sites may be missing.

        Returns:
            One row per detector, language, site and third of the layers: neurons (of these, with a score), ``rise`` and
            ``size`` (Spearman's correlation of the score with the rise, and with its absolute value) and ``chance``:
            scores that have nothing to do with it are further from zero than that in 5 % of cases (1.96 / √(n − 1)).

        Raises:
            ValueError: for scores of another shape, or of no language that was measured.
        """
        check_arguments(SingleEffects.rank_correlations, locals())
        rises = {tag: np.asarray(rise.value) for tag, rise in self.rises.items()}
        return rank_correlations(self.space, self.places, rises, scores)

    def __repr__(self) -> str:
        passages = ", ".join(f"{tag} {len(names):,}" for tag, names in self.documents.items())
        part = shown_part(self.settings)
        return f"SingleEffects({part}{len(self.neurons):,} neurons of {self.space.shown}; passages {passages})"


def places_of(neurons: NeuronSet) -> dict[int, list[tuple[str, int]]]:
    """Site and number of the neurons of each layer that has any."""
    by_layer = {
        layer: [(site, n) for site in neurons.space.widths for n in neurons.masks[site][layer].nonzero()[:, 0].tolist()]
        for layer in range(neurons.space.n_layers)
    }
    return {layer: places for layer, places in by_layer.items() if places}


@dataclass(frozen=True)
class LayerLosses(Reducer, kind="layer_losses"):
    """Loss of each passage with each of some neurons of one layer off; merging adds zeros."""

    nats: dict[str, Float[Tensor, "neuron _"]]

    @classmethod
    def empty(cls, plan: Plan, layer: int, places: Places) -> "LayerLosses":
        """Of no passage."""
        passages = plan.encoded.documents.items()
        nats = {tag: torch.zeros(len(places), number, dtype=torch.float64) for tag, number in passages}
        return cls(**Reducer.start(plan, made_with=f"{layer} {digest(list(places))}"), nats=nats)

    def update(self, batch: TokenBatch, nats: Float[Tensor, " neuron"]) -> None:
        """Add a passage; a ValueError if it is in already."""
        self.claim(batch)
        self.nats[batch.language][:, batch.rows[0]] = nats


def single_effects(
    model: HookedModel,
    neurons: NeuronSet,
    corpus: Mapping[str, Sequence[Document]],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    verify: bool = True,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> SingleEffects:
    """The measured change of each language's loss when one neuron alone is off, for every neuron of a set.

    This is what detectors predict. Each document runs once through the model; then, layer by layer, copies of it with
    another neuron off in each run on from that layer. In half precision, changes as small as those of most single
    neurons are lost in rounding: load the model in float32.

    Args:
        model: a hooked model; it is as before afterwards.
        neurons: which; a few hundred, e.g. of :func:`sample_neurons`.
        corpus: held-out documents by language.
        batch_size: copies of a document at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        verify: whether one neuron of each layer is tried first, on the longest document: copies must give the stream
            of a whole pass.
        shard: as in :func:`effect_matrix`; :meth:`SingleEffects.merge` makes one of all parts.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`, document by document and layer.
        progress: whether to show a bar.

    Returns:
        The losses of every passage. ``to_frame()`` has a row per neuron and language: layer, site, neuron, language,
        ``rise`` (nats per predicted token) with its 95 % interval ``low`` and ``high``.

    Raises:
        ValueError: for no neurons, those of a model with other sizes or of a layer whose neurons are another's, empty
            documents, a model that does more between its blocks, or a checkpoint of something else, before the work.

    Example:
        >>> one = mw.NeuronSet.from_list(french.space, [(9, "mlp", 3), (17, "v", 5)])
        >>> truth = mw.single_effects(model, one, held_out, max_tokens=16, progress=False)
        >>> list(truth.to_frame().columns)
        ['layer', 'site', 'neuron', 'language', 'rise', 'low', 'high']
    """
    check_arguments(single_effects, locals())
    neurons.space.require_compatible(NeuronSpace.of(model))
    if not len(neurons):
        raise ValueError("neurons is empty: name at least one to switch off, e.g. by sample_neurons(model).")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1.")
    places = places_of(neurons)
    require_layers(model, [*places])
    warn_of_other_weights(model, [neurons])
    encoded = encode_counted(model, corpus, max_tokens)
    plan, corpus, made_of = encoded.plan(1), encoded.corpus, digest(neurons)
    settings = {**model_record(model), "mode": "zero", "max_tokens": max_tokens, "batch_size": batch_size}
    settings["corpus"] = corpus.describe()
    rows = {tag: list(range(number)) for tag, number in encoded.documents.items()}
    if shard is not None:
        plan, part = part_of(plan, shard)
        rows, settings = part["rows"], {**settings, "part": {**part, "made_of": made_of}}
    layers = {str(layer): LayerLosses.empty(plan, layer, each) for layer, each in places.items()}
    baseline = PassageLosses.empty(plan)
    record = partial(pass_record, "single effects", model, plan, {**settings, "neurons": made_of})
    with tallied({BASELINE: baseline, **layers}, checkpoint, record) as tally:
        _measure(model, plan, places, tally, batch_size, verify, progress)
    return SingleEffects(
        neurons=neurons,
        nats={tag: torch.cat([each.nats[tag][:, which] for each in layers.values()]) for tag, which in rows.items()},
        baseline={tag: baseline.nats[tag][which] for tag, which in rows.items()},
        tokens={tag: baseline.tokens[tag][which] for tag, which in rows.items()},
        documents={tag: tuple(corpus.documents[tag][i] for i in which) for tag, which in rows.items()},
        documents_of={tag: tuple(encoded.hashes[tag][i] for i in which) for tag, which in rows.items()},
        settings=settings,
    )


def _measure(
    model: HookedModel,
    plan: Plan,
    places: Mapping[int, Places],
    tally: Tally[Any],
    batch_size: int | None,
    verify: bool,
    progress: bool,
) -> None:
    """Read what is left of the plan for the baseline and for every layer, of which the tally has a reducer each."""
    left = {name: tally.left(plan, name) for name in tally.parts}
    sizes = {BASELINE: 1, **{str(layer): len(each) for layer, each in places.items()}}
    total = sum(left[name].documents * size for name, size in sizes.items())
    done = sum(left[name].documents_done * size for name, size in sizes.items())
    bar = tqdm(total=total, initial=done, unit="neuron", desc="one off", disable=hidden(progress))
    to_do = {name: {*each.left} for name, each in left.items()}
    numbers = sorted(set().union(*to_do.values()), key=lambda number: (-plan.cost(number), number))
    first = min(places)
    with settled(model), bar:
        for step, number in enumerate(numbers):
            tails = Tails.of(model, plan.batch(number), first)
            for layer, each in places.items() if verify and not step else ():  # the longest document
                require_same(tails, layer, each)
            if number in to_do[BASELINE]:
                tally.add(BASELINE, model, tails.batch, tails.states)
                bar.update()
            for layer, each in places.items():
                if number in to_do[str(layer)]:
                    tally.add(str(layer), tails.batch, _nats(tails, layer, each, plan, batch_size))
                    bar.update(len(each))


def _nats(tails: Tails, layer: int, places: Places, plan: Plan, batch_size: int | None) -> Float[Tensor, " neuron"]:
    """Of one document, with each of these neurons of a layer off."""
    length, budget, nats = tails.batch.lengths[0], plan.encoded.budget, []
    size = batch_size or next(n for n in range(len(places), 0, -1) if n == 1 or budget.holds(n, length))
    for start in range(0, len(places), size):
        some = places[start : start + size]
        states = tails.without(layer, some)
        nats.append(batch_nats(tails.model, tails.batch.copies(len(some)), states)[0])
    return torch.cat(nats)
