"""What a neuron's contribution to a structure's output becomes in the residual stream, after a post-norm."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...model import PostNorm, at_least_float32
from ..measure import Activations
from .compiled import is_cpu_float32, sums_after_norm, threads


@dataclass(frozen=True)
class Normed:
    """A structure's output y, as its post-norm saw it in one batch."""

    scale: Float[Tensor, "batch pos 1"]
    """r = sqrt(‖y‖²/D + eps)."""
    normalized: Float[Tensor, "batch pos d_model"]
    """y / r."""
    gain: Float[Tensor, " d_model"]
    """g."""

    @classmethod
    def of(cls, norm: PostNorm, activations: Activations) -> "Normed":
        """Read from the norm's hook points."""
        scale, normalized = (at_least_float32(activations[name]) for name in norm.reads)
        return cls(scale, normalized, norm.gain)

    @property
    def directions(self) -> Float[Tensor, "which batch pos d_model"]:
        """What gives ⟨y/r, w⟩ and ⟨g∘y/r, g∘w⟩ for a contribution w."""
        return torch.stack([self.normalized, self.normalized * self.gain.square()])

    @property
    def by_document(self) -> tuple[np.ndarray, np.ndarray]:
        """r and ‖g∘y‖² / r² of each document and position, for compiled loops."""
        size = (self.normalized * self.gain).square().sum(-1)
        return self.scale[..., 0].contiguous().numpy(), size.numpy()


@dataclass(frozen=True)
class Contribution:
    """What neurons add to a structure's output: w, as far as the change after a norm depends on it."""

    squared: Float[Tensor, "*#batch neuron"]
    """‖w‖²."""
    squared_gained: Float[Tensor, "*#batch neuron"]
    """‖g∘w‖²."""
    along: Float[Tensor, "batch pos neuron"]
    """⟨y/r, w⟩."""
    along_gained: Float[Tensor, "batch pos neuron"]
    """⟨g∘y/r, g∘w⟩."""


def change_after_norm(added: Contribution, output: Normed) -> Float[Tensor, "batch pos neuron"]:
    """‖N(y) − N(y − w)‖² for each neuron's contribution w to y, without cancellation; uses the contribution up.

    With r² = ‖y‖²/D + eps, r'² = r² + (‖w‖² − 2⟨y, w⟩)/D and e = 1/r − 1/r' = (r'² − r²) / (r r' (r + r')):
    e² ‖g∘y‖² + 2 (e / r') ⟨g∘y, g∘w⟩ + ‖g∘w‖² / r'².
    """
    scale, gained = output.scale, output.normalized * output.gain
    difference = added.squared.addcmul_(added.along, scale, value=-2).div_(gained.shape[-1])  # r'² − r²
    new_scale = (difference + scale.square()).clamp_(min=0).sqrt_()
    e_r = difference.div_(added.along.copy_(new_scale).add_(scale).mul_(new_scale))  # e · r
    size = einsum(gained.square(), "batch pos d_model -> batch pos")[..., None]
    change = added.squared_gained.div_(new_scale).addcmul_(e_r, added.along_gained, value=2).div_(new_scale)
    return change.addcmul_(e_r.square_(), size)


def summed_change_after_norm(
    sizes: Float[Tensor, "batch pos neuron"],
    content: Bool[Tensor, "batch pos"],
    per_unit: Contribution,
    output: Normed,
) -> Float[Tensor, "batch neuron"]:
    """:func:`change_after_norm` summed over content, for contributions w = h W[k] of one direction.

    Args:
        sizes: h.
        content: positions to sum over.
        per_unit: contributions of h = 1, which are used up; their squares are the same everywhere, ``[neuron]``.
        output: y.
    """
    if is_cpu_float32(sizes):
        squares = per_unit.squared.numpy(), per_unit.squared_gained.numpy()
        tensors = (sizes, content, per_unit.along, per_unit.along_gained)
        by_document = zip(*(x.contiguous().numpy() for x in tensors), *output.by_document, strict=True)
        with threads():
            sums = [
                sums_after_norm(*document, squares, (scale, size), np.float32(1 / output.gain.numel()))
                for *document, scale, size in by_document
            ]
        return torch.from_numpy(np.stack(sums))
    sizes = sizes * content[..., None]
    sizes_squared = sizes.square()
    added = Contribution(
        squared=sizes_squared * per_unit.squared,
        squared_gained=sizes_squared.mul_(per_unit.squared_gained),
        along=per_unit.along.mul_(sizes),
        along_gained=per_unit.along_gained.mul_(sizes),
    )
    return change_after_norm(added, output).sum(1)
