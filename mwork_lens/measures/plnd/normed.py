"""A structure's output as its post-norm sees it."""

from dataclasses import dataclass

import torch
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
    gain: Float[Tensor, " d_model"]
    """g."""

    @classmethod
    def of(cls, norm: PostNorm, activations: Activations) -> "Normed":
        """Read from the norm's hook points."""
        *scale, output = (at_least_float32(activations[name]) for name in norm.reads)
        if scale:
            return cls(scale[0], output, norm.gain)
        output = output - output.mean(-1, keepdim=True) if norm.centred else output
        root = (output.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return cls(root, output / root, norm.gain)

    @property
    def directions(self) -> Float[Tensor, "which batch pos d_model"]:
        """What gives ⟨y/r, w⟩ and ⟨g∘y/r, g∘w⟩ for a contribution w."""
        return torch.stack([self.normalized, self.normalized * self.gain.square()])
