"""Scores of document after document, summed up as they come: how often each neuron was active, and its mean score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures import Measure, Receive, Selection, SiteMasks, SiteScores, score_hooks
from ..model import ForwardHook, HookedModel, Running, TokenBatch, at_least_float32, batches, stream
from ..neurons import NeuronSpace

Scope = Literal["layer", "model"]

STREAMS = {"v": ("hook_resid_pre",), "mlp": ("hook_resid_mid", "hook_resid_pre")}
"""Hook points within a block of the stream that a site's structure adds to; the first that the model has (parallel
blocks have no middle). Scores of other sites are changes of an attention pattern, which compare as they are."""


@torch.inference_mode()
def score_documents(
    model: HookedModel,
    measure: Measure,
    encoded: Sequence[Int[Tensor, " _"]],
    receive: Receive,
    *,
    selection: Selection | None = None,
    batch_size: int | None = None,
    extra_hooks: Callable[[Callable[[], TokenBatch]], list[ForwardHook]] = lambda batch: [],
    after_batch: Callable[[int], Any] = lambda documents: None,
) -> None:
    """Run a measure over documents.

    Args:
        model: a hooked model.
        measure: what to score.
        encoded: token ids of each document.
        receive: takes each layer's scores, batch by batch.
        selection: screen for this selection where the measure can; None scores every neuron exactly.
        batch_size: documents at a time; None fills a token budget.
        extra_hooks: further hooks, given what tells the batch that is running.
        after_batch: called with the number of documents when a batch is through.
    """
    layers = [measure(model, layer) for layer in range(model.cfg.n_layers)]
    running = Running()
    hooks = score_hooks(layers, running, receive, selection) + extra_hooks(lambda: running.batch)
    for batch, _ in stream(model, batches(model, encoded, batch_size), hooks, running):
        after_batch(len(batch.rows))


@dataclass(frozen=True)
class Tally:
    """What one language's documents add up to; arrays are ``[layer, neuron]`` by site."""

    counts: dict[str, Int[Tensor, "layer _"]]
    """Documents on which a neuron was active."""
    sums: dict[str, Float[Tensor, "layer _"]]
    screened: dict[str, Int[Tensor, "layer _"]]
    """Documents whose score is an estimate."""

    @classmethod
    def empty(cls, space: NeuronSpace) -> "Tally":
        """Of no documents."""
        shapes = {site: (space.n_layers, width) for site, width in space.widths.items()}
        counts, screened = (
            {site: torch.zeros(shape, dtype=torch.int32) for site, shape in shapes.items()} for _ in range(2)
        )
        return cls(counts, {s: torch.zeros(shape, dtype=torch.float64) for s, shape in shapes.items()}, screened)

    def add(self, site: str, layer: int, scores: Tensor, active: Tensor, known: Tensor | None) -> None:
        """One layer's scores of a batch, ``[batch, neuron]``; ``known`` are exact (None: all)."""
        self.counts[site][layer] += active.sum(0).to("cpu", torch.int32)
        self.sums[site][layer] += scores.double().sum(0).cpu()
        if known is not None:
            self.screened[site][layer] += (~known).sum(0).to("cpu", torch.int32)

    def means(self, documents: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Mean scores."""
        return {site: (total / documents).to(dtype) for site, total in self.sums.items()}


def tally_by_layer(
    model: HookedModel,
    measure: Measure,
    encoded: Sequence[Tensor],
    tally: Tally,
    selection: Selection,
    *,
    screen: bool,
    **options: Any,
) -> None:
    """Active within each layer and site, screened where the measure can; options of :func:`score_documents`."""

    def receive(layer: int, found: SiteScores, known: SiteMasks | None) -> None:
        for site, scores in found.items():
            tally.add(site, layer, scores, selection.active(scores), None if known is None else known[site])

    score_documents(model, measure, encoded, receive, selection=selection if screen else None, **options)


@dataclass(frozen=True)
class _Pending:
    """One batch's scores and the rms of the streams they change, until all layers have been seen; by site and layer."""

    scores: dict[str, dict[int, Float[Tensor, "batch _"]]] = field(default_factory=dict)
    streams: dict[str, dict[int, Float[Tensor, " batch"]]] = field(default_factory=dict)

    def receive(self, layer: int, found: SiteScores, known: SiteMasks | None) -> None:
        for site, scores in found.items():
            self.scores.setdefault(site, {})[layer] = scores

    def hooks(self, model: HookedModel, batch: Callable[[], TokenBatch]) -> list[ForwardHook]:
        names = [
            (site, layer, next(n for stream in streams if (n := f"blocks.{layer}.{stream}") in model.hook_dict))
            for site, streams in STREAMS.items()
            for layer in range(model.cfg.n_layers)
        ]
        return [(name, self._reader(site, layer, batch)) for site, layer, name in names]

    def _reader(self, site: str, layer: int, batch: Callable[[], TokenBatch]) -> Callable[..., Tensor]:
        def read(activation: Tensor, hook: object = None) -> Tensor:
            content = batch().content
            squares = at_least_float32(activation).square().mean(-1) * content
            self.streams.setdefault(site, {})[layer] = (squares.sum(-1) / content.sum(-1)).sqrt()
            return activation

        return read

    def settle(self, tally: Tally, selection: Selection) -> None:
        for site, by_layer in self.scores.items():
            layers = sorted(by_layer)
            scores = torch.stack([by_layer[layer] for layer in layers], 1)
            comparable = scores
            if site in STREAMS:
                comparable = scores / torch.stack([self.streams[site][layer] for layer in layers], 1)[..., None]
            active = selection.active(comparable.flatten(1)).view_as(scores)
            for i, layer in enumerate(layers):
                tally.add(site, layer, scores[:, i], active[:, i], None)
        self.scores.clear()


def tally_over_model(
    model: HookedModel,
    measure: Measure,
    encoded: Sequence[Tensor],
    tally: Tally,
    selection: Selection,
    *,
    batch_size: int | None,
    after_batch: Callable[[int], Any],
) -> None:
    """Active within each site over all layers; scores of ``v`` and ``mlp`` are compared relative to the stream's rms.

    Every score is exact: where the cut of a document is, is known only after its last layer.
    """
    pending = _Pending()

    def through(documents: int) -> None:
        pending.settle(tally, selection)
        after_batch(documents)

    score_documents(
        model,
        measure,
        encoded,
        pending.receive,
        batch_size=batch_size,
        extra_hooks=lambda batch: pending.hooks(model, batch),
        after_batch=through,
    )
