"""Scores of batch after batch, summed up as they come: how often each neuron was active, and its mean score."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures import Measure, Selection, SiteMasks, SiteScores, score_hooks
from ..model import (
    SITES,
    ExactSum,
    ForwardHook,
    HookedModel,
    Plan,
    Progress,
    Reducer,
    Running,
    TokenBatch,
    at_least_float32,
    stream,
    stream_before,
)
from ..neurons import NeuronSpace

Scope = Literal["layer", "model"]

RELATIVE = ("v", "mlp")
"""Sites whose scores compare over layers relative to the rms of the stream that they add to. Scores of other sites are
changes of an attention pattern, which compare as they are."""


@dataclass(frozen=True)
class LayerCounts:
    """What the documents of one batch add up to in one layer and site."""

    counts: Int[Tensor, " neuron"]
    screened: Int[Tensor, " neuron"]
    sums: ExactSum

    @classmethod
    def of(cls, scores: Tensor, active: Tensor, exact: Tensor | None) -> "LayerCounts":
        """From scores ``[batch, neuron]``, which of them are active, and which exact (None: all)."""
        counts = active.sum(0).to("cpu", torch.int32)
        screened = torch.zeros_like(counts) if exact is None else (~exact).sum(0).to("cpu", torch.int32)
        return cls(counts, screened, ExactSum.of(scores))


@dataclass(frozen=True)
class DetectionCounts(Reducer, kind="detection_counts"):
    """What one language's documents add up to, by site, as ``[layer, neuron]``."""

    counts: dict[str, Int[Tensor, "layer _"]]
    """Documents on which a neuron was active."""
    screened: dict[str, Int[Tensor, "layer _"]]
    """Documents whose score is an estimate."""
    sums: dict[str, ExactSum]
    """Scores, summed over documents."""

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str) -> "DetectionCounts":
        """Of no documents."""
        shapes = {site: (space.n_layers, width) for site, width in space.widths.items()}
        counts, screened = (
            {site: torch.zeros(shape, dtype=torch.int32) for site, shape in shapes.items()} for _ in range(2)
        )
        sums = {site: ExactSum.zeros(*shape) for site, shape in shapes.items()}
        return cls(**Reducer.start(plan, language), counts=counts, screened=screened, sums=sums)

    def update(self, batch: TokenBatch, layers: Mapping[tuple[str, int], LayerCounts]) -> None:
        """Add a batch, by site and layer.

        Raises:
            ValueError: if it is in already, or of another language.
            OverflowError: if a sum of scores reaches 7e13.
        """
        self.claim(batch)
        for (site, layer), part in layers.items():
            self.counts[site][layer] += part.counts
            self.screened[site][layer] += part.screened
            self.sums[site].add(part.sums, layer)

    def means(self, documents: int, dtype: torch.dtype) -> dict[str, Float[Tensor, "layer _"]]:
        """Mean scores."""
        return {site: (total.value() / documents).to(dtype) for site, total in self.sums.items()}


class CountsByLayer:
    """Counts of the running batch, active within each layer and site; scores are dropped once they are counted."""

    def __init__(self, selection: Selection, *, screen: bool) -> None:
        self.selection, self.screen = selection, selection if screen else None
        self.layers: dict[tuple[str, int], LayerCounts] = {}

    def hooks(self, model: HookedModel, running: Running) -> list[ForwardHook]:
        """What is read of the forward pass besides the scores."""
        return []

    def receive(self, layer: int, scores: SiteScores, exact: SiteMasks | None) -> None:
        """Take in one layer's scores."""
        for site, values in scores.items():
            mask = None if exact is None else exact[site]
            self.layers[site, layer] = LayerCounts.of(values, self.selection.active(values), mask)

    def taken(self) -> dict[tuple[str, int], LayerCounts]:
        """The counts, once the batch is through; the next ones begin at nothing."""
        layers, self.layers = self.layers, {}
        return layers


class CountsOverModel:
    """Counts of the running batch, active within each site over all layers.

    Every score is exact: where the cut of a document is, is known only after its last layer.
    """

    screen = None

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.scores: dict[str, dict[int, Float[Tensor, "batch _"]]] = {}
        self.rms: dict[str, dict[int, Float[Tensor, " batch"]]] = {}

    def hooks(self, model: HookedModel, running: Running) -> list[ForwardHook]:
        """The streams whose rms is needed."""
        return [
            (stream_before(model, layer, SITES[site].structure), partial(self._read, running, site, layer))
            for site in RELATIVE
            for layer in range(model.cfg.n_layers)
        ]

    def _read(self, running: Running, site: str, layer: int, activation: Tensor, hook: object = None) -> Tensor:
        content = running.batch.content
        squares = at_least_float32(activation).square().mean(-1) * content
        self.rms.setdefault(site, {})[layer] = (squares.sum(-1) / content.sum(-1)).sqrt()
        return activation

    def receive(self, layer: int, scores: SiteScores, exact: SiteMasks | None) -> None:
        """Keep one layer's scores until the batch is through."""
        for site, values in scores.items():
            self.scores.setdefault(site, {})[layer] = values

    def taken(self) -> dict[tuple[str, int], LayerCounts]:
        """The counts, once the batch is through; the next ones begin at nothing."""
        layers = {}
        for site, by_layer in self.scores.items():
            numbers = sorted(by_layer)
            comparable = scores = torch.stack([by_layer[number] for number in numbers], 1)
            if site in RELATIVE:
                comparable = scores / torch.stack([self.rms[site][number] for number in numbers], 1)[..., None]
            active = self.selection.active(comparable.flatten(1)).view_as(scores)
            parts = zip(numbers, scores.unbind(1), active.unbind(1), strict=True)
            layers |= {(site, number): LayerCounts.of(values, mask, None) for number, values, mask in parts}
        self.scores = {}
        return layers


@torch.inference_mode()
def accumulate(
    model: HookedModel,
    measure: Measure,
    batches: Plan | Iterable[TokenBatch],
    counts: Mapping[str, DetectionCounts],
    counting: CountsByLayer | CountsOverModel,
    *,
    progress: Progress = None,
) -> None:
    """Add the scores of batches to the counts of their languages.

    Args:
        model: a hooked model.
        measure: what to score.
        batches: a plan, or some batches of one.
        counts: by language.
        counting: which neurons of a batch are active.
        progress: see :func:`stream`.
    """
    layers, running = [measure(model, layer) for layer in range(model.cfg.n_layers)], Running()
    hooks = [*score_hooks(layers, running, counting.receive, counting.screen), *counting.hooks(model, running)]
    for batch, _ in stream(model, batches, hooks, running, progress=progress):
        counts[batch.language].update(batch, counting.taken())
