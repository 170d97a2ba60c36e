"""What a neuron's contribution to a structure's output becomes in the residual stream, after a post-norm."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...model import HookedModel, at_least_float32, norm_gain
from ..measure import Activations
from .compiled import applies, sums_after_norm, threads


@dataclass(frozen=True)
class PostNorm:
    """The RMS norm that a model applies to a structure's output before adding it to the residual stream."""

    name: str
    """Its module within the block, e.g. ``ln1_post``."""
    gain: Float[Tensor, " d_model"]

    @property
    def reads(self) -> tuple[str, ...]:
        """Hook points that give y / r and r for the output y, in the order of the forward pass."""
        return (f"{self.name}.hook_scale", f"{self.name}.hook_normalized")

    def seen(self, activations: Activations) -> tuple[Float[Tensor, "batch pos 1"], Float[Tensor, "batch pos d_model"]]:
        """r = sqrt(|y|²/D + eps) and y / r."""
        scale, normalized = (at_least_float32(activations[name]) for name in self.reads)
        return scale, normalized


def post_norm(model: HookedModel, layer: int, structure: str) -> PostNorm | None:
    """The norm after ``structure`` in one layer; None where its output is added as it is."""
    number = {"attention": 1, "feed_forward": 2}[structure]
    block = model.blocks[layer]  # pyright: ignore[reportAttributeAccessIssue]
    name = f"ln{number}_post" if hasattr(block, f"ln{number}_post") else f"ln{number}"
    if name.endswith("_post") or _norms_output_only(model):
        return PostNorm(name, norm_gain(model, getattr(block, name)))
    return None


def _norms_output_only(model: HookedModel) -> bool:
    """OLMo 2 and 3 norm a structure's output where others norm its input, under the same name."""
    wrapped = getattr(model, "original_model", None)
    name = getattr(model.cfg, "original_architecture", None) if wrapped is None else type(wrapped).__name__
    return name in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


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
