"""A structure's output as its post-norm sees it."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from ...model import at_least_float32
from ...model.post_norms import PostNorm
from ..measure import Activations


@dataclass(frozen=True)
class Normed:
    """A structure's output y, as its post-norm saw it in one batch."""

    scale: Float[Tensor, "batch pos 1"]
    """r = sqrt(‖y‖²/D + eps)."""
    normalized: Float[Tensor, "batch pos d_model"]
    """y / r."""
    norm: PostNorm

    @classmethod
    def of(cls, norm: PostNorm, activations: Activations) -> "Normed":
        """Read from the norm's hook points."""
        *scale, output = (at_least_float32(activations[name]) for name in norm.reads)
        if scale:
            return cls(scale[0], output, norm)
        output = output - output.mean(-1, keepdim=True) if norm.centred else output
        root = (output.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return cls(root, output / root, norm)

    @cached_property
    def directions(self) -> Float[Tensor, "which batch pos d_model"]:
        """What gives ⟨y/r, w⟩ and ⟨g∘y/r, g∘w⟩ for a contribution w."""
        return self.normalized * self.norm.factors[:, None, None]

    @cached_property
    def size(self) -> Float[Tensor, "batch pos"]:
        """‖g∘y‖² / r²."""
        return (self.directions[1] * self.normalized).sum(-1)
