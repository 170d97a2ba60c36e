"""Which scores count as active, and how to decide it when only some of them are known exactly."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAFETY = 2.0
"""How much wider than the largest error seen a band is.

Set on 2,124 cases (a document, layer and site of Gemma 3 270M each, 15 to 200 tokens), refined in one step from the
screen to exact scores: with 1.3 one of them misses a neuron, with 2 none does. A margin from experience, not a bound.
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


@dataclass(frozen=True)
class Estimate:
    """Scores, and how far off each may be."""

    scores: Float[Tensor, " neuron"]
    uncertainty: Float[Tensor, " neuron"]
    """The logarithm of a score is off by at most β times this; zero for exact scores."""
    beta: float = 0.0
    """Where β starts, before it is measured."""


Refinement = Callable[[Int[Tensor, " chosen"]], Estimate]


def refine(
    first: Estimate, refinements: Sequence[Refinement], selection: Selection
) -> tuple[Float[Tensor, " neuron"], Bool[Tensor, " neuron"]]:
    """Replace estimated scores by ever better ones until the selection is that of the exact scores.

    A neuron stays with an estimate only where its band, β times its uncertainty on either side, does not reach the
    cut; all others go on to the next refinement. Each refinement shows how far off the estimate before it was: β is
    raised to ``SAFETY`` times the largest error seen, in units of the uncertainty, and the bands are looked at again.
    So a bad estimate ends with every neuron refined, i.e. in the dense method.

    Args:
        first: an estimate for every neuron.
        refinements: better and better ones for chosen neurons; the last is exact.
        selection: what has to be decided.

    Returns:
        The scores, and which of them are exact.
    """
    scores, level = first.scores.clone(), torch.zeros_like(first.scores, dtype=torch.long)
    last = len(refinements)
    if selection.top is not None and selection.number(len(scores)) == len(scores):
        return scores, level == last  # every neuron is active, whatever its score
    uncertainty, beta = first.uncertainty.clone(), [first.beta] + [0.0] * last
    while True:
        # whatever lies near the cut, or is not a number
        near = ~((_log(scores) - _log(selection.cut(scores))).abs() > scores.new_tensor(beta)[level] * uncertainty)
        undecided = near & (level < last)
        if not undecided.any():
            return scores, level == last
        for at in range(last - 1, -1, -1):
            chosen = (undecided & (level == at)).nonzero().flatten()
            if not len(chosen):
                continue
            better = refinements[at](chosen)
            error = (_log(better.scores) - _log(scores[chosen])).abs() / uncertainty[chosen].clamp(min=1e-6)
            beta[at] = max(beta[at], SAFETY * error.nan_to_num(torch.inf).max().item())
            beta[at + 1] = max(beta[at + 1], better.beta)
            scores[chosen], uncertainty[chosen], level[chosen] = better.scores, better.uncertainty, at + 1


def _log(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
