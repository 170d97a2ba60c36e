"""What a model's own attention and norm modules say of themselves, for both generations of TransformerLens.

A HookedTransformer's modules are TransformerLens's; a raw bridge's wrap those of transformers.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from .sites import HookedModel


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def attention_scale(model: HookedModel, layer: int) -> float:
    """m in R = q̃ · k̃ / m."""
    attn = model.blocks[layer].attn  # pyright: ignore[reportAttributeAccessIssue]
    own = getattr(attn, "original_component", attn)
    # by what transformers' families call it; some multiply where others divide
    divisors = [getattr(attn, "attn_scale", None), getattr(own, "scale_attn", None)]
    factors = [getattr(own, name, None) for name in ("scaling", "inv_norm_factor")]
    scales = [float(m) for m in divisors if m is not None] + [1 / float(f) for f in factors if f is not None]
    if not scales:
        raise ValueError(f"{model.cfg.model_name}: {type(own).__name__} does not say how it scales attention scores.")
    return scales[0]


def norm_gain(model: HookedModel, norm: Any) -> Float[Tensor, " width"]:
    """What a norm multiplies the normalised activation with."""
    stored_as_offset = hasattr(norm, "original_component") and getattr(model.cfg, "rmsnorm_uses_offset", False)
    gain = at_least_float32(norm.w.detach())
    return 1 + gain if stored_as_offset else gain


def norm_eps(norm: Any) -> float:
    """What a norm adds to the mean square inside the root."""
    own = getattr(norm, "original_component", norm)
    found = [getattr(own, name, None) for name in ("variance_epsilon", "eps")]
    return next(float(eps) for eps in found if eps is not None)


def _rotation(model: HookedModel, layer: int) -> Callable[[Tensor], Tensor]:
    """The model's own rotary function, as x [1, pos, head, d_head] at positions 0, 1, … → the same, rotated."""
    attn = model.blocks[layer].attn  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(attn, "apply_rotary"):
        return attn.apply_rotary
    own = attn.original_component
    apply = getattr(sys.modules[type(own).__module__], "apply_rotary_pos_emb", None)
    rotary = getattr(model.original_model.base_model, "rotary_emb", None)  # pyright: ignore[reportAttributeAccessIssue]
    if apply is None or (rotary is None and not hasattr(own, "embed_positions")):
        raise ValueError(f"{model.cfg.model_name}: the rotary function of {type(own).__name__} was not found.")
    if rotary is None:
        return lambda x: _gptj_rotated(own, apply, x)
    rotary = getattr(rotary, "original_component", rotary)
    by_layer = "layer_type" in inspect.signature(rotary.forward).parameters
    layer_type = {"layer_type": own.config.layer_types[layer]} if by_layer else {}

    def rotated(x: Tensor) -> Tensor:
        cosine, sine = rotary(x, torch.arange(x.shape[1], device=x.device)[None], **layer_type)
        turned, kept = x.split([cosine.shape[-1], x.shape[-1] - cosine.shape[-1]], -1)
        turned = rearrange(turned, "batch pos head d -> batch head pos d")
        turned, _ = apply(turned, turned, cosine.to(x.dtype), sine.to(x.dtype))
        return torch.cat([rearrange(turned, "batch head pos d -> batch pos head d"), kept], -1)

    return rotated


def _gptj_rotated(own: Any, apply: Callable[..., Tensor], x: Tensor) -> Tensor:
    """GPT-J and its kin keep a table of sines and cosines in each layer."""
    sine, cosine = own.embed_positions[None, : x.shape[1]].to(x.device, x.dtype).chunk(2, -1)
    turned, kept = x.split([2 * sine.shape[-1], x.shape[-1] - 2 * sine.shape[-1]], -1)
    return torch.cat([apply(turned, sine, cosine), kept], -1)


class Rotary:
    """What the model's own rotary function does to single coordinates: e_d goes to c e_d + s e_pair(d)."""

    def __init__(self, model: HookedModel, layer: int) -> None:
        parameter = next(model.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        self._apply = _rotation(model, layer)
        self._d_head: int = model.cfg.d_head
        self._cached: tuple[Tensor, Tensor] | None = None
        self.pair = self._find_pairs(parameter)

    def _find_pairs(self, like: Tensor) -> Int[Tensor, " d_head"]:
        """Rotate every basis vector at position 1 and see where it goes."""
        basis = torch.eye(self._d_head, device=like.device, dtype=at_least_float32(like).dtype)
        images = self._rotate(torch.stack([basis, basis]))[1]
        own = torch.arange(self._d_head, device=like.device)
        images[own, own] = 0
        return torch.where(images.abs().amax(-1) > 0, images.abs().argmax(-1), own)

    def _rotate(self, x: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_head"]:
        return at_least_float32(self._apply(x[None])[0])

    def coefficients(
        self, positions: Int[Tensor, " pos"], like: Tensor
    ) -> tuple[Float[Tensor, "pos d_head"], Float[Tensor, "pos d_head"]]:
        """c and s of every coordinate at these positions."""
        needed = int(positions[-1]) + 1
        if self._cached is None or len(self._cached[0]) < needed:
            self._cached = self._measure(needed, like)
        cosine, sine = self._cached
        first = int(positions[0])
        rows = slice(first, needed) if needed - first == len(positions) else positions
        return cosine[rows], sine[rows]

    def _measure(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.arange(self._d_head, device=like.device)
        first = (own <= self.pair).to(like.dtype)
        # one member of each pair at a time: its image has c at its own place and s at its partner's
        probes = repeat(torch.stack([first, 1 - first]), "which d -> pos which d", pos=positions)
        images = self._rotate(probes)
        chosen = torch.where(first.bool(), 0, 1)
        cosine = images[:, chosen, own]
        sine = torch.where(own == self.pair, 0, images[:, chosen, self.pair])
        return cosine, sine
