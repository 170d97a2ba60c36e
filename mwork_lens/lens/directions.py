"""Random directions with the covariance of hidden states, which is never held: the baseline, read in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..model import ExactSum, Reducer
from ..model.architecture import at_least_float32
from ..model.forward import Plan, TokenBatch

Masks = Mapping[str, Sequence[Bool[Tensor, " _"]]]
"""Which tokens of each prompt are read, by prompt language."""
LEAST_SPREAD = 1e-5
"""States that differ by less than this, relative to their norm, are the same up to rounding."""


@dataclass(frozen=True)
class Reading(Reducer, kind="lens_reading"):
    """What the states of prompts decode to, and what random directions like these states are made of.

    Directions z ~ N(0, Σ) with the covariance Σ of each layer's states, which is never held: z = Σ_i w_i g_i (h_i − μ)
    over all states h_i, with normal g_i and w_i² = 1 / (labels · the label's states), has just the states' covariance
    about their mean μ. Every label (prompt language) counts the same, or the baseline would swallow the signal.
    """

    counts: dict[str, Float[Tensor, "prompt layer label"]]
    """By prompt language, summed over positions. A prompt is in one batch of the plan: other batches add zero."""
    sums: dict[str, ExactSum]
    """By layer: ``drawn`` Σ w g h, ``draws`` Σ w g, and the ``mean`` of the states and of their ``norm``."""

    @classmethod
    def empty(cls, plan: Plan, draws: "Draws", labels: int, width: int) -> "Reading":
        """Of no states, which are ``width`` wide and decode to so many ``labels``."""
        shape, prompts, number = (draws.layers, labels), plan.encoded.documents, draws.directions
        counts = {label: torch.zeros(size, *shape, dtype=torch.float64) for label, size in prompts.items()}
        shapes = {"drawn": (number, width), "draws": (number,), "mean": (width,), "norm": ()}
        sums = {name: ExactSum.zeros(draws.layers, *shape) for name, shape in shapes.items()}
        return cls(**Reducer.start(plan), counts=counts, sums=sums)

    def update(self, batch: TokenBatch, layers: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> None:
        """Add a batch: by layer the labels ``[batch, label]`` that its prompts decode to, and :meth:`Draws.sums`."""
        self.claim(batch)
        for i, (labels, sums) in enumerate(layers):
            self.counts[batch.language][list(batch.rows), i] += labels
            for name, value in sums.items():
                self.sums[name].add(ExactSum.of(value[None]), i)


def directions(sums: Mapping[str, ExactSum], layers: Sequence[int]) -> Iterator[Float[Tensor, "direction d_model"]]:
    """Those of each layer, scaled to its mean norm, from :attr:`Reading.sums`.

    Raises:
        ValueError: for states that are all the same: they have no covariance.
    """
    parts = (sums[name].value() for name in ("drawn", "draws", "mean", "norm"))
    for layer, drawn, draws, mean, norm in zip(layers, *parts, strict=True):
        centred = drawn - draws[:, None] * mean
        lengths = centred.norm(dim=1, keepdim=True)
        if len(lengths) and lengths.max() <= LEAST_SPREAD * norm:
            raise ValueError(
                f"All states read at layer {layer} are the same: they have no covariance to draw random directions "
                "from. Read more positions, or give directions=0."
            )
        yield centred * (norm / lengths)


class Draws:
    """Weighted normal draws for the states of a plan's batches; a batch's are the same whoever takes it."""

    def __init__(self, plan: Plan, masks: Masks, layers: int, directions: int, seed: int) -> None:
        states = {label: [int(mask.sum()) for mask in by_prompt] for label, by_prompt in masks.items()}
        self.layers, self.directions, self._seed = layers, directions, seed
        self._weights = {label: 1 / (len(states) * sum(by_prompt)) for label, by_prompt in states.items()}
        self._states = [sum(states[label][row] for row in rows) for label, rows in plan.groups]
        self._last, self._draws = (-1, 0), self._all()

    def sums(self, batch: TokenBatch, layer: int, states: Float[Tensor, "row d_model"]) -> dict[str, Tensor]:
        """What the states of a batch at the ``layer``-th layer read add to :class:`Reading`."""
        if not self.directions:
            return {}
        states, weight = at_least_float32(states), self._weights[batch.language]
        wanted = (batch.number, layer)
        if wanted <= self._last:
            self._draws = self._all()
        self._last, draws = next(each for each in self._draws if each[0] == wanted)
        draws = draws.to(states) * weight**0.5
        norm = weight * states.norm(dim=1).sum()
        return {"drawn": draws @ states, "draws": draws.sum(1), "mean": weight * states.sum(0), "norm": norm}

    def _all(self) -> Iterator[tuple[tuple[int, int], Float[Tensor, "direction row"]]]:
        """By batch and layer, in this order; whoever skips some passes over their draws."""
        generator = torch.Generator().manual_seed(int(self._seed))
        for batch, rows in enumerate(self._states):
            for layer in range(self.layers):
                yield (batch, layer), torch.randn(self.directions, rows, generator=generator)
