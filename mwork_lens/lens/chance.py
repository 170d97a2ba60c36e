"""Random directions with a layer's own covariance and norm: what noise at that layer decodes to."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_SPREAD = 1e-5
"""States that differ by less than this, relative to their norm, are the same up to rounding."""


class RandomDirections:
    """Streams a layer's hidden states into random directions z ~ N(0, Σ), without ever holding Σ.

    z = Σ_i w_i g_i (h_i − μ) over all states h_i, with normal g_i and w_i² = 1 / (labels · the label's states), has
    just the states' covariance about their mean μ. Every label (prompt language) counts the same, or the baseline
    would swallow the signal. Directions are scaled to the layer's mean norm.
    """

    def __init__(self, layers: Sequence[int], number: int, rows: Mapping[str, int], seed: int) -> None:
        self._number, self._rows = number, rows
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[int, _Sums] = {layer: _Sums() for layer in layers}

    def add(self, layer: int, label: str, states: Float[Tensor, "row d_model"]) -> None:
        """Take in some states of one label."""
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        weight = 1 / (len(self._rows) * self._rows[label])
        draws = torch.randn(self._number, len(states), generator=self._generator).to(states) * weight**0.5
        sums = self._sums[layer]
        sums.drawn = sums.drawn + draws @ states
        sums.draws = sums.draws + draws.sum(1)
        sums.mean = sums.mean + weight * states.sum(0)
        sums.norm += weight * states.norm(dim=1).sum().item()

    def directions(self, layer: int) -> Float[Tensor, "direction d_model"]:
        """The layer's random directions.

        Raises:
            ValueError: if all its states are the same, which have no direction.
        """
        sums = self._sums[layer]
        if sum(self._rows.values()) < 2:
            raise ValueError("One position has no covariance to draw random directions from: give directions=0.")
        centred = sums.drawn - sums.draws[:, None] * sums.mean
        lengths = centred.norm(dim=1, keepdim=True)
        if lengths.max() <= LEAST_SPREAD * sums.norm:
            raise ValueError(
                f"All states read at layer {layer} are the same: they have no covariance to draw random directions "
                "from. Read more positions, or give directions=0."
            )
        return centred * (sums.norm / lengths)


class _Sums:
    """Σ w g h, Σ w g, the mean and the mean norm of one layer's states."""

    drawn: Tensor = torch.zeros(())
    draws: Tensor = torch.zeros(())
    mean: Tensor = torch.zeros(())
    norm: float = 0.0
