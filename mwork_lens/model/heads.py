"""What one layer's attention does to its queries and keys before they meet: clipping, norms, rotation, growth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .architecture import HookedModel, centres, grows, norm_eps, norm_gain, original, wrapped_model
from .trial import trial_of


@dataclass(frozen=True)
class HeadNorm:
    """The norm of queries or keys: what it takes off is x / r, with r² = mean(x²) + eps (of x − mean(x) if centred)."""

    gain: Float[Tensor, "head d_head"]
    """One row where all heads have the same."""
    eps: float
    across_heads: bool
    """Whether the mean runs over all heads, so that a neuron rescales the other heads' scores too."""
    centred: bool
    """Whether it takes off the mean: LayerNorm, and not the RMS norm."""
    after_rotation: bool

    @property
    def gain_before_rotation(self) -> Float[Tensor, "head d_head"]:
        """Ones where the gain comes after rotation, which leaves the mean square as it is."""
        return torch.ones_like(self.gain) if self.after_rotation else self.gain


def head_norm(model: HookedModel, layer: int, letter: Literal["q", "k", "v"]) -> HeadNorm | None:
    """The norm of one layer's queries, keys or values; None without one."""
    cfg, norm = model.cfg, getattr(model.blocks[layer].attn, f"{letter}_norm", None)
    if norm is None:
        return None
    gain, module = norm_gain(model, layer, norm), original(norm)
    across_heads = gain.ndim == 1 and gain.numel() not in (1, cfg.d_head)
    centred = wrapped_model(model) is not None and centres(module, gain)
    if centred and (across_heads or getattr(module, "bias", None) is not None):
        raise ValueError(
            f"{cfg.model_name} norms queries, keys or values with a LayerNorm that has no closed form here."
        )
    gain = gain.view(-1, cfg.d_head) if gain.numel() > 1 else gain.expand(1, cfg.d_head).contiguous()
    return HeadNorm(gain, norm_eps(norm), across_heads, centred, bool(getattr(cfg, "qk_norm_after_rope", False)))


def clip_limit(model: HookedModel, layer: int) -> float | None:
    """Where queries, keys and values are cut off, on both sides of zero; None without a limit."""
    module = original(model.blocks[layer].attn)
    for source in (model.cfg, module, getattr(module, "config", None)):
        if limit := getattr(source, "clip_qkv", None):
            return float(limit)
    return None


Growth = Callable[[Int[Tensor, " pos"]], Float[Tensor, " pos"]]
"""From positions, a factor for each."""


def query_growth(model: HookedModel, layer: int) -> Growth | None:
    """What rotated queries are multiplied with, the more the later they come; None where that is 1."""
    config = getattr(original(model.blocks[layer].attn), "config", None)
    rope: Any = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping) or not grows(rope):
        return None
    beta, known = float(rope["llama_4_scaling_beta"]), int(rope["original_max_position_embeddings"])
    return lambda positions: 1 + beta * torch.log1p(positions.div(known, rounding_mode="floor"))


def rotates(model: HookedModel, layer: int) -> bool:
    """Whether a layer rotates queries and keys, in a model with rotary embedding."""
    return wrapped_model(model) is None or trial_of(model, layer).rotates
