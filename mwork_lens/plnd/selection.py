"""Which scores count as active, and how to decide it when only some of them are known exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAFETY = 1.3


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
    screened: Float[Tensor, " neuron"],
    uncertainty: Float[Tensor, " neuron"],
    exact: Callable[[Int[Tensor, " chosen"]], Float[Tensor, " chosen"]],
    selection: Selection,
    rows: int,
) -> tuple[Float[Tensor, " neuron"], Bool[Tensor, " neuron"]]:
    """Replace screened scores by exact ones until the selection is that of the exact scores.

    A screened score is off, in logarithm, by at most β times its uncertainty. For a single row a second-order
    estimate has β up to 1; over many rows errors average out, so β starts at 1/4 + 8 / rows (at most 1), is then
    measured on the neurons that were refined, and taken ``SAFETY`` times larger. A neuron stays screened only where
    even so it lies on its side of the cut. Each round refines what the current β and cut leave open, so a bad screen
    ends with every neuron refined, i.e. in the dense method.

    Args:
        screened: estimated scores.
        uncertainty: of the logarithm of each, in units of β.
        exact: gives the exact scores of some neurons.
        selection: what has to be decided.
        rows: how many rows (queries) the scores sum over.

    Returns:
        The scores, and which of them are exact.
    """
    tiny = torch.finfo(screened.dtype).tiny
    scores, known = screened.clone(), torch.zeros_like(screened, dtype=torch.bool)
    if selection.top is not None and selection.number(len(scores)) == len(scores):
        return scores, known  # every neuron is active, whatever its score
    logs = screened.clamp(min=tiny).log()
    beta = min(1.0, 0.25 + 8 / rows)
    while True:
        distance = (logs - selection.cut(scores).clamp(min=tiny).log()).abs()
        # not (>) rather than (<=): refine whatever is not a number
        undecided = ~known & ~(distance > beta * uncertainty)
        if not undecided.any():
            return scores, known
        chosen = undecided.nonzero().flatten()
        scores[chosen] = exact(chosen)
        known |= undecided
        errors = (scores[known].clamp(min=tiny).log() - logs[known]).abs()
        beta = max(beta, SAFETY * (errors / uncertainty[known].clamp(min=1e-6)).max().item())
