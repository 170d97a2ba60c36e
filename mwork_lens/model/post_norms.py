"""The norms behind a layer's structures, and where the residual stream is that a structure adds to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .architecture import HookedModel, Structure, centres, norm_eps, norm_gain, original, wrapped_model
from .trial import trial_of

_NORMS = {"attention": ("ln1", "attn"), "feed_forward": ("ln2", "mlp.out")}
"""By structure: the norm that stands before it in most models, and the part of it that it then precedes."""


@dataclass(frozen=True)
class PostNorm:
    """The norm of a structure's output y before it is added to the residual stream, or of the sum y, as in GPT-1."""

    gain: Float[Tensor, " d_model"]
    reads: tuple[str, ...]
    """Hook points that give r and y / r, in the order of the forward pass; of y − mean(y) if ``centred``. One that
    gives y, where the norm shows no more."""
    centred: bool
    """Whether it takes off the mean: LayerNorm, and not the RMS norm."""
    eps: float = 0.0
    """What it adds to the mean square, where it has to be computed from y."""

    @cached_property
    def factors(self) -> Float[Tensor, "which d_model"]:
        """1 and g²: of the products of two contributions to y, as they are and times the gain."""
        return torch.stack([torch.ones_like(self.gain), self.gain.square()])


def post_norm(model: HookedModel, layer: int, structure: Structure) -> PostNorm | None:
    """The norm after ``structure`` in one layer; None where its output is added as it is."""
    name = _NORMS[structure][0]
    block = model.blocks[layer]
    if hasattr(block, f"{name}_post"):
        name = f"{name}_post"
    elif not _follows(model, layer, structure):
        return None
    norm: Any = getattr(block, name)
    gain = norm_gain(model, layer, norm).expand(model.cfg.d_model)
    if not hasattr(norm, "hook_scale"):
        return PostNorm(gain, (f"{name}.hook_in",), centres(original(norm), gain), norm_eps(norm))
    centred = wrapped_model(model) is not None and not norm.uses_rms_norm
    return PostNorm(gain, (f"{name}.hook_scale", f"{name}.hook_normalized"), centred)


def stream_before(model: HookedModel, layer: int, structure: Structure) -> str:
    """Where the residual stream is that a structure adds to; parallel blocks have no middle."""
    middle, start = f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_pre"
    if structure == "attention" or middle not in model.hook_dict:
        return start
    # a bridge's hook_resid_mid may be what the second norm reads, also where that is the stream after the feed-forward
    norm_reads = model.hook_dict.get(f"blocks.{layer}.ln2.hook_in")
    late = model.hook_dict[middle] is norm_reads and _follows(model, layer, structure)
    return f"blocks.{layer}.ln1.hook_out" if late else middle


def stream_after(model: HookedModel, layer: int) -> str:
    """Where the feed-forward's part of the residual stream is seen to change: after the block.

    Before that, where the block goes on: Gemma 4 adds a gated input of the layer and multiplies the stream.
    """
    block = original(model.blocks[layer])
    goes_on = hasattr(block, "per_layer_input_gate") or hasattr(block, "layer_scalar")
    return f"blocks.{layer}.{'hook_mlp_out' if goes_on else 'hook_resid_post'}"


def _follows(model: HookedModel, layer: int, structure: Structure) -> bool:
    """Whether the norm that stands before a structure in most models comes after it."""
    if wrapped_model(model) is None:
        return getattr(model.cfg, "original_architecture", None) in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
    return trial_of(model, layer).follows(*_NORMS[structure])
