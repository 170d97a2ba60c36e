"""What a neuron's contribution to a structure's output becomes in the residual stream, after a post-norm."""

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from .compiled import applies, sums_after_norm, threads


def change_after_norm(
    squared: Float[Tensor, "batch pos neuron"],
    squared_gained: Float[Tensor, "batch pos neuron"],
    along: Float[Tensor, "batch pos neuron"],
    along_gained: Float[Tensor, "batch pos neuron"],
    scale: Float[Tensor, "batch pos 1"],
    normalized: Float[Tensor, "batch pos d_model"],
    gain: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos neuron"]:
    """‖N(y) − N(y − w)‖² for each neuron's contribution w to y, without cancellation (PAPER-form of the post-norm).

    With r² = ‖y‖²/D + eps, r'² = r² + (‖w‖² − 2⟨y, w⟩)/D and e = 1/r − 1/r' = (r'² − r²) / (r r' (r + r')):
    e² ‖g∘y‖² + 2 (e / r') ⟨g∘y, g∘w⟩ + ‖g∘w‖² / r'². Uses its first four arguments up.

    Args:
        squared: ‖w‖².
        squared_gained: ‖g∘w‖².
        along: ⟨y/r, w⟩.
        along_gained: ⟨g∘y/r, g∘w⟩.
        scale: r.
        normalized: y / r.
        gain: g.
    """
    d_model = normalized.shape[-1]
    difference = squared.addcmul_(along, scale, value=-2).div_(d_model)  # r'² − r²
    new_scale = (difference + scale.square()).clamp_(min=0).sqrt_()
    e_r = difference.div_(along.copy_(new_scale).add_(scale).mul_(new_scale))  # e · r
    output = einsum((normalized * gain).square(), "batch pos d_model -> batch pos")[..., None]
    change = squared_gained.div_(new_scale).addcmul_(e_r, along_gained, value=2).div_(new_scale)
    return change.addcmul_(e_r.square_(), output)


def summed_change_after_norm(
    sizes: Float[Tensor, "batch pos neuron"],
    content: Bool[Tensor, "batch pos"],
    squares: Float[Tensor, " neuron"],
    squares_gained: Float[Tensor, " neuron"],
    along: Float[Tensor, "batch pos neuron"],
    along_gained: Float[Tensor, "batch pos neuron"],
    scale: Float[Tensor, "batch pos 1"],
    normalized: Float[Tensor, "batch pos d_model"],
    gain: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch neuron"]:
    """:func:`change_after_norm` summed over content, for contributions w = h W[k] of one direction.

    Uses ``along`` and ``along_gained`` up.

    Args:
        sizes: h.
        content: positions to sum over.
        squares: ‖W[k]‖².
        squares_gained: ‖g∘W[k]‖².
        along: ⟨y/r, W[k]⟩.
        along_gained: ⟨g∘y/r, g∘W[k]⟩.
        scale: r.
        normalized: y / r.
        gain: g.
    """
    if applies(sizes):
        output, own = (normalized * gain).square().sum(-1), (squares.numpy(), squares_gained.numpy())
        by_document = (x.contiguous().numpy() for x in (sizes, content, along, along_gained, scale[..., 0], output))
        with threads():
            found = [
                sums_after_norm(h, which, a, b, *own, r, size, np.float32(1 / gain.numel()))
                for h, which, a, b, r, size in zip(*by_document, strict=True)
            ]
        return torch.from_numpy(np.stack(found))
    sizes = sizes * content[..., None]
    sizes_squared = sizes.square()
    return change_after_norm(
        squared=sizes_squared * squares,
        squared_gained=sizes_squared.mul_(squares_gained),
        along=along.mul_(sizes),
        along_gained=along_gained.mul_(sizes),
        scale=scale,
        normalized=normalized,
        gain=gain,
    ).sum(1)
