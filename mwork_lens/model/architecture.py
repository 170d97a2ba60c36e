"""What a hooked model is, and what its modules say of devices, heads, scales, norms and rotation.

A HookedTransformer's modules are TransformerLens's; a raw TransformerBridge's wrap those of transformers.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

Structure = Literal["attention", "feed_forward"]


@runtime_checkable
class HookedModel(Protocol):
    """What we ask of a model: a ``HookedTransformer`` or a raw ``TransformerBridge`` of TransformerLens."""

    cfg: Any
    tokenizer: Any

    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> Any:
        """A context manager that adds hooks and removes them again."""
        ...

    # isinstance need not look these up: torch finds submodules late, and a bridge collects its hook_dict when asked
    if TYPE_CHECKING:
        hook_dict: Mapping[str, Any]
        blocks: Sequence[Any]
        embed: Any
        unembed: Any
        ln_final: Callable[[Tensor], Tensor]
        training: bool
        eval: Callable[[], Any]
        parameters: Callable[[], Iterator[Parameter]]
        named_parameters: Callable[[], Iterator[tuple[str, Parameter]]]
        to_tokens: Callable[..., Tensor]
        generate: Callable[..., Any]
        __call__: Callable[..., Any]


def wrapped_model(model: HookedModel) -> Any:
    """The transformers model that a raw bridge wraps; None for a HookedTransformer."""
    return getattr(model, "original_model", None)


def original(module: Any) -> Any:
    """The module of transformers that a bridge's module wraps; a HookedTransformer's module itself."""
    return getattr(module, "original_component", module)


def device_of(model: HookedModel) -> torch.device:
    """Where the model's first parameter is, and so where its tokens go."""
    return next(model.parameters()).device


def dtype_of(model: HookedModel) -> torch.dtype:
    """Of the model's weights."""
    return next(model.parameters()).dtype


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where that is the dtype: what sums and scores are computed in."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is."""
    return tensor.to(wide_dtype(tensor.dtype))


def key_value_heads(cfg: Any) -> int:
    """Heads of K and V: as many as query heads, or one for each group of them."""
    return getattr(cfg, "n_key_value_heads", None) or cfg.n_heads


def has_feed_forward(cfg: Any) -> bool:
    """False for a model of attention only."""
    return not getattr(cfg, "attn_only", False)


def weight(model: HookedModel, layer: int, name: str) -> Any:
    """The weight that is stored, e.g. ``attn.W_K`` as ``[n_key_value_heads, d_model, d_head]``; None for no bias.

    HookedTransformer shows K and V repeated to all query heads and keeps the leaves as ``_W_K``, ``_W_V``.
    """
    module_name, leaf = name.rsplit(".", 1)
    module = model.blocks[layer].get_submodule(module_name)
    return getattr(module, f"_{leaf}") if hasattr(module, f"_{leaf}") else getattr(module, leaf)


def special_ids(model: HookedModel) -> Int[Tensor, " id"]:
    """The tokenizer's special token ids; empty without a tokenizer."""
    return torch.tensor(getattr(model.tokenizer, "all_special_ids", None) or [], dtype=torch.long)


def stream_hook(layer: int) -> str:
    """Where the residual stream after ``layer`` blocks is: 0 is the embedding."""
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


def stream_before(model: HookedModel, layer: int, structure: Structure) -> str:
    """Where the residual stream is that a structure adds to; parallel blocks have no middle."""
    middle, start = f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_pre"
    return middle if structure == "feed_forward" and middle in model.hook_dict else start


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


def post_norm(model: HookedModel, layer: int, structure: Structure) -> PostNorm | None:
    """The norm after ``structure`` in one layer; None where its output is added as it is."""
    number = {"attention": 1, "feed_forward": 2}[structure]
    block = model.blocks[layer]
    name = f"ln{number}_post" if hasattr(block, f"ln{number}_post") else f"ln{number}"
    if name.endswith("_post") or _norms_output_only(model):
        return PostNorm(name, norm_gain(model, getattr(block, name)))
    return None


def _norms_output_only(model: HookedModel) -> bool:
    """OLMo 2 and 3 norm a structure's output where others norm its input, under the same name."""
    wrapped = wrapped_model(model)
    name = getattr(model.cfg, "original_architecture", None) if wrapped is None else type(wrapped).__name__
    return name in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def attention_scale(model: HookedModel, layer: int) -> float:
    """m in R = q̃ · k̃ / m."""
    attn = model.blocks[layer].attn
    module = original(attn)
    # by what transformers' families call it; some multiply where others divide
    divisors = [getattr(attn, "attn_scale", None), getattr(module, "scale_attn", None)]
    factors = [getattr(module, name, None) for name in ("scaling", "inv_norm_factor")]
    scales = [float(m) for m in divisors if m is not None] + [1 / float(f) for f in factors if f is not None]
    if not scales:
        raise ValueError(
            f"{model.cfg.model_name}: {type(module).__name__} does not say how it scales attention scores."
        )
    return scales[0]


def norm_gain(model: HookedModel, norm: Any) -> Float[Tensor, " width"]:
    """What a norm multiplies the normalised activation with."""
    stored_as_offset = wrapped_model(model) is not None and getattr(model.cfg, "rmsnorm_uses_offset", False)
    gain = at_least_float32(norm.w.detach())
    return 1 + gain if stored_as_offset else gain


def norm_eps(norm: Any) -> float:
    """What a norm adds to the mean square inside the root."""
    module = original(norm)
    values = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    return next(float(eps) for eps in values if eps is not None)


def _rotation(model: HookedModel, layer: int) -> Callable[[Tensor], Tensor]:
    """The model's own rotary function, as x [1, pos, head, d_head] at positions 0, 1, … → the same, rotated."""
    attn = model.blocks[layer].attn
    if hasattr(attn, "apply_rotary"):
        return attn.apply_rotary
    module = original(attn)
    apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    rotary = getattr(wrapped_model(model).base_model, "rotary_emb", None)
    if apply is None or (rotary is None and not hasattr(module, "embed_positions")):
        raise ValueError(f"{model.cfg.model_name}: the rotary function of {type(module).__name__} is unknown.")
    if rotary is None:
        return lambda x: _gptj_rotated(module, apply, x)
    rotary = original(rotary)
    by_layer = "layer_type" in inspect.signature(rotary.forward).parameters
    layer_type = {"layer_type": module.config.layer_types[layer]} if by_layer else {}

    def rotated(x: Tensor) -> Tensor:
        cosine, sine = rotary(x, torch.arange(x.shape[1], device=x.device)[None], **layer_type)
        rotated_part, rest = x.split([cosine.shape[-1], x.shape[-1] - cosine.shape[-1]], -1)
        rotated_part = rearrange(rotated_part, "batch pos head d -> batch head pos d")
        rotated_part, _ = apply(rotated_part, rotated_part, cosine.to(x.dtype), sine.to(x.dtype))
        return torch.cat([rearrange(rotated_part, "batch head pos d -> batch pos head d"), rest], -1)

    return rotated


def _gptj_rotated(module: Any, apply: Callable[..., Tensor], x: Tensor) -> Tensor:
    """GPT-J-style models keep a table of sines and cosines in each layer."""
    sine, cosine = module.embed_positions[None, : x.shape[1]].to(x.device, x.dtype).chunk(2, -1)
    rotated_part, rest = x.split([2 * sine.shape[-1], x.shape[-1] - 2 * sine.shape[-1]], -1)
    return torch.cat([apply(rotated_part, sine, cosine), rest], -1)


class Rotary:
    """What the model's own rotary function does to single coordinates: e_d goes to c e_d + s e_pair(d)."""

    def __init__(self, model: HookedModel, layer: int) -> None:
        self._apply = _rotation(model, layer)
        self._d_head: int = model.cfg.d_head
        self._cached: tuple[Tensor, Tensor] | None = None
        self.pair = self._find_pairs(next(model.parameters()))

    def _find_pairs(self, like: Tensor) -> Int[Tensor, " d_head"]:
        """Rotate every basis vector at position 1 and see where it goes."""
        basis = torch.eye(self._d_head, device=like.device, dtype=at_least_float32(like).dtype)
        images = self._rotate(torch.stack([basis, basis]))[1]
        itself = torch.arange(self._d_head, device=like.device)
        images[itself, itself] = 0
        return torch.where(images.abs().amax(-1) > 0, images.abs().argmax(-1), itself)

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
        itself = torch.arange(self._d_head, device=like.device)
        first = (itself <= self.pair).to(like.dtype)
        # one member of each pair at a time: its image has c at its own place and s at its partner's
        probes = repeat(torch.stack([first, 1 - first]), "which d -> pos which d", pos=positions)
        images = self._rotate(probes)
        member = torch.where(first.bool(), 0, 1)
        cosine = images[:, member, itself]
        sine = torch.where(itself == self.pair, 0, images[:, member, self.pair])
        return cosine, sine
