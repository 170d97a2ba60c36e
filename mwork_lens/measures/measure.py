"""What a measure is, how its scores are read in a forward pass, and which of them make neurons active."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..model import ForwardHook, HookedModel, Running, TokenBatch

SAFETY = 2.0
"""How much wider than the largest error seen a band is.

Set on 2,124 cases (a document, layer and site of Gemma 3 270M each, 15 to 200 tokens): with 1.3 one of them misses a
neuron, with 2 none does. A margin from experience, not a bound; for longer documents it is an extrapolation.
"""


@dataclass(frozen=True)
class Selection:
    """The rule by which a neuron is active on a document, within its layer and site."""

    top: float | None = None
    """Among the ⌊top · width⌋ highest scores, at least one."""
    threshold: float | None = None
    """A score of at least this (the paper's ε)."""

    def __post_init__(self) -> None:
        if (self.top is None) == (self.threshold is None):
            raise ValueError(f"Give either top or threshold, not top={self.top} and threshold={self.threshold}.")
        if self.top is not None and not 0 < self.top <= 1:
            raise ValueError(f"top={self.top} is outside (0, 1].")
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold} must be above 0.")

    def number(self, width: int) -> int:
        """How many of ``width`` neurons a top fraction makes active."""
        return max(1, math.floor((self.top or 0) * width + 1e-9))

    def active(self, scores: Float[Tensor, "batch neuron"]) -> Bool[Tensor, "batch neuron"]:
        """The active neurons; ties go to the lower index, so that the result does not depend on the batch."""
        if self.threshold is not None:
            return scores >= self.threshold
        order = scores.sort(dim=-1, descending=True, stable=True).indices[:, : self.number(scores.shape[-1])]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)

    def cut(self, scores: Float[Tensor, " neuron"]) -> Float[Tensor, ""]:
        """The lowest active score."""
        if self.threshold is not None:
            return torch.tensor(self.threshold, dtype=scores.dtype, device=scores.device)
        return scores.topk(self.number(len(scores))).values[-1]


def refine(
    estimates: Float[Tensor, " neuron"],
    uncertainty: Float[Tensor, " neuron"],
    beta: float,
    exact: Callable[[Int[Tensor, " some"]], Float[Tensor, " some"]],
    selection: Selection,
) -> tuple[Float[Tensor, " neuron"], Bool[Tensor, " neuron"]]:
    """Replace estimated scores by exact ones until the selection is that of the exact scores.

    The logarithm of a score is taken to be off by at most β times its uncertainty. A neuron stays with its estimate
    only where that band does not reach the cut; of all others the exact score is computed. That shows how far off the
    estimates were: β is raised to ``SAFETY`` times the largest error seen, in units of the uncertainty, and the bands
    are looked at again. A bad estimate ends with every score exact. Returns scores, and which of them are exact.
    """
    scores, refined = estimates.clone(), torch.zeros_like(estimates, dtype=torch.bool)
    if selection.top is not None and selection.number(len(scores)) == len(scores):
        return scores, refined  # every neuron is active, whatever its score
    logs = _log(scores)
    while True:
        # a NaN is never sure
        sure = (logs - _log(selection.cut(scores))).abs() > beta * uncertainty
        unsure = (~(sure | refined)).nonzero().flatten()
        if not len(unsure):
            return scores, refined
        exact_scores = exact(unsure)
        error = (_log(exact_scores) - logs[unsure]).abs() / uncertainty[unsure].clamp(min=1e-6)
        beta = max(beta, SAFETY * error.nan_to_num(torch.inf).max().item())
        scores[unsure], logs[unsure], refined[unsure] = exact_scores, _log(exact_scores), True


def _log(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


Activations = Mapping[str, Tensor]
"""What the hook points of one layer showed for one batch, by hook name within the block."""

SiteScores = Mapping[str, Float[Tensor, "batch _"]]
"""By site: how much deactivating each neuron changes, for each document of the batch."""

SiteMasks = Mapping[str, Bool[Tensor, "batch _"]]
"""By site: which of the scores are exact."""


@dataclass(frozen=True)
class LayerMeasure:
    """A measure bound to one layer of one model."""

    reads: tuple[str, ...]
    """Hook points within the block, in the order in which the forward pass reaches them."""
    score: Callable[[Activations, TokenBatch], SiteScores]
    """Every neuron's score; called once per batch, as soon as the last of ``reads`` is there."""
    screen: Callable[[Activations, TokenBatch, Selection], tuple[SiteScores, SiteMasks]] | None = None
    """Where there is a faster way: scores that select the same neurons as ``score`` does, and which are exact."""


Measure = Callable[[HookedModel, int], Sequence[LayerMeasure]]
"""Anything that says what a model's neurons matter for, e.g. one that you give to ``detect(formulation=...)``.

Called with the model and each layer's number before the forward passes (whatever depends on weights only belongs
there); returns the layer's parts, e.g. one for attention and one for the feed-forward. A score is a norm over the
positions of ``batch.content``, divided by the root of their number, in float32 at least.
"""

Receive = Callable[[int, SiteScores, SiteMasks | None], None]


def score_hooks(
    layers: Sequence[Sequence[LayerMeasure]], running: Running, receive: Receive, selection: Selection | None = None
) -> list[ForwardHook]:
    """Hook functions that score every layer during the forward pass, and hold nothing that is used up.

    ``receive`` takes a layer's number, its scores, and which of them are exact (None: all). With a selection they
    screen where a measure can; without, every score is exact.
    """

    def hooks_of(layer: int, part: LayerMeasure) -> list[ForwardHook]:
        seen: dict[str, Tensor] = {}

        def read(name: str, activation: Tensor, hook: object = None) -> Tensor:
            seen[name] = activation
            if name == part.reads[-1]:
                batch = running.beside(activation)
                if part.screen is None or selection is None:
                    scores, exact = part.score(seen, batch), None
                else:
                    scores, exact = part.screen(seen, batch, selection)
                seen.clear()
                receive(layer, scores, exact)
            return activation

        return [(f"blocks.{layer}.{name}", partial(read, name)) for name in part.reads]

    return [hook for layer, parts in enumerate(layers) for part in parts for hook in hooks_of(layer, part)]


def root_mean(squares: Float[Tensor, "batch neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
    """The score from squared changes summed over content positions: their root mean over those positions."""
    return (squares.clamp(min=0) / batch.scored).sqrt()
