"""What a hooked model is, and what its modules say of devices, heads, scales and norms.

A HookedTransformer's modules are TransformerLens's; a raw TransformerBridge's wrap those of transformers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, Parameter

from ..text import unknown_id
from .offloaded import is_offloaded, modules_of, place_of, present
from .state import require_usual_device, settled

Structure = Literal["attention", "feed_forward"]


@runtime_checkable
class HookedModel(Protocol):
    """What the package needs of a model: a ``HookedTransformer`` or raw ``TransformerBridge`` of TransformerLens."""

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
        generate: Callable[..., Any]
        __call__: Callable[..., Any]


def wrapped_model(model: HookedModel) -> Any:
    """The transformers model that a raw bridge wraps; None for a HookedTransformer."""
    return getattr(model, "original_model", None)


def run_wrapped(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> None:
    """A pass of what a raw bridge wraps, without its unembedding where that is a model of transformers."""
    wrapped = wrapped_model(model)
    if hasattr(wrapped, "base_model"):
        wrapped.base_model(tokens, use_cache=False)
    else:
        wrapped(tokens)


def original(module: Any) -> Any:
    """The module of transformers that a bridge's module wraps; a HookedTransformer's module itself."""
    return getattr(module, "original_component", module)


def device_of(model: HookedModel) -> torch.device:
    """Where the model's first module computes, its embedding, and so where its tokens go."""
    return place_of(model)


def device_of_layer(model: HookedModel, layer: int) -> torch.device:
    """Where a layer computes."""
    return place_of(model.blocks[layer])


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


def feed_forward_width(model: HookedModel) -> int:
    """Neurons of a layer's feed-forward, 0 without one: a bridge's configuration knows it for some families only."""
    if not has_feed_forward(model.cfg):
        return 0
    # what it reads with may be fused with its gate; what it writes with has a row for each neuron
    return model.cfg.d_mlp if wrapped_model(model) is None else weight(model, 0, "mlp.W_out").shape[0]


@contextlib.contextmanager
def values_of(model: HookedModel, module: Module) -> Iterator[None]:
    """Within it, a part of the model and all below it show their values, also those that lie on disk."""
    if not any(map(is_offloaded, modules_of(module))):
        yield
        return
    with settled(model), present(module):
        yield


def weight(model: HookedModel, layer: int, name: str) -> Any:
    """The weight that is stored, e.g. ``attn.W_K`` as ``[n_key_value_heads, d_model, d_head]``; None for no bias.

    One that lies on disk is read from there. HookedTransformer shows K and V repeated to all query heads and keeps the
    leaves as ``_W_K``, ``_W_V``.
    """
    module_name, leaf = name.rsplit(".", 1)
    module = model.blocks[layer].get_submodule(module_name)
    with values_of(model, module):
        return getattr(module, f"_{leaf}") if hasattr(module, f"_{leaf}") else getattr(module, leaf)


NOT_CAUSAL = (
    "is not causal: what it computes at a token depends on later ones; only decoders, which read left to right, have a "
    "use here."
)


def require_hooked(model: Any) -> None:
    """A ValueError for what is not a hooked model, e.g. one of transformers; and for a process that is not as usual."""
    require_usual_device()
    if not isinstance(model, HookedModel):
        raise ValueError(
            f"{type(model).__name__} is not a hooked model: load it first, model = mw.load_model(...), which takes "
            "names, directories and models of transformers."
        )
    if getattr(model.cfg, "attention_dir", "causal") == "bidirectional":
        raise ValueError(f"{model.cfg.model_name} {NOT_CAUSAL}")
    first = next(iter(getattr(model, "blocks", ())), None)
    if isinstance(getattr(getattr(first, "mlp", None), "_processed_W_in", None), Tensor):
        raise ValueError(
            f"{model.cfg.model_name} computes with processed copies of its weights (enable_compatibility_mode), which "
            "no edit reaches: give it as it was before, or enable_compatibility_mode(no_processing=True)."
        )


def unembedding_of(
    model: HookedModel,
) -> tuple[Float[Tensor, "token d_unembed"], Float[Tensor, " token"] | None]:
    """The matrix by which a model multiplies its last states, and what it adds to the products; None for no bias."""
    with values_of(model, model.unembed):
        return model.unembed.W_U.t(), getattr(model.unembed, "b_U", None)


def special_ids(model: HookedModel) -> Int[Tensor, " id"]:
    """The tokenizer's special token ids, with that of unknown words; empty without a tokenizer."""
    ids = [*(getattr(model.tokenizer, "all_special_ids", None) or []), unknown_id(model.tokenizer)]
    return torch.tensor([each for each in dict.fromkeys(ids) if each is not None], dtype=torch.long)


def generation_settings(model: HookedModel) -> Any:
    """What a model came with, as transformers' ``generation_config``; None for one that was not loaded here."""
    return getattr(wrapped_model(model) or model, "generation_config", None)


def end_ids(model: HookedModel) -> frozenset[int]:
    """What ends a text: the tokenizer's end token, and those that the model's generation settings name."""
    given: Any = getattr(generation_settings(model), "eos_token_id", None)
    if isinstance(given, Tensor):
        given = given.flatten().tolist()
    ids: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    return frozenset(int(each) for each in (*ids, getattr(model.tokenizer, "eos_token_id", None)) if each is not None)


def stream_hook(layer: int) -> str:
    """Where the residual stream after ``layer`` blocks is: 0 is the embedding."""
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


def text_config(model: HookedModel) -> Any:
    """The configuration of a bridge's transformers model, of its text part where it has several; else its own."""
    config = getattr(wrapped_model(model), "config", model.cfg)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def rope_settings(config: Any) -> list[Mapping[str, Any]]:
    """A transformers configuration's settings of rotary embedding: one, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, Mapping)]
    return nested or [settings]


def grows(rope: Mapping[str, Any]) -> bool:
    """Whether queries grow with every original length of rotary embedding that lies before them (Ministral 3)."""
    return bool(rope.get("llama_4_scaling_beta"))


def rope_boundaries(model: HookedModel) -> tuple[int, ...]:
    """Numbers of tokens above which the rotary angles of all of them are others (long-rope), in ascending order."""
    return () if wrapped_model(model) is None else _rope_boundaries(text_config(model))


def _rope_boundaries(config: Any) -> tuple[int, ...]:
    changing = [each for each in rope_settings(config) if each.get("rope_type") == "longrope"]
    known = {each.get("original_max_position_embeddings") or config.max_position_embeddings for each in changing}
    return tuple(sorted(map(int, known)))


def boundaries(model: HookedModel) -> tuple[int, ...]:
    """Numbers of tokens above which the model computes something else, in ascending order.

    Sliding windows, chunks of attention and the original lengths of rotary embeddings that are scaled by length, or
    from which on queries grow, as far as a layer uses them.
    """
    if wrapped_model(model) is None:
        local = getattr(model.cfg, "use_local_attn", False) and "local" in (model.cfg.attn_types or ())
        return (int(model.cfg.window_size),) if local else ()
    return config_boundaries(text_config(model))


def config_boundaries(config: Any) -> tuple[int, ...]:
    """The boundaries of a transformers model with this configuration of its text part."""
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ())
    # by what transformers' families call a layer and its reach; without kinds of layers, all have the window
    reaches = {
        "sliding_attention": "sliding_window",
        "chunked_attention": "attention_chunk_size",
        "local": "window_size",
    }
    names = {name for kind, name in reaches.items() if kind in kinds} if kinds else {"sliding_window"}
    lengths = {getattr(config, name, None) for name in names} | set(_rope_boundaries(config))
    lengths |= {each["original_max_position_embeddings"] for each in rope_settings(config) if grows(each)}
    return tuple(sorted(int(length) for length in lengths if length))


def inner_gain(model: HookedModel, layer: int) -> Float[Tensor, " width"] | None:
    """The gain of an RMS norm of all heads' mixed values; None where W_O reads them as they are."""
    norm = getattr(original(model.blocks[layer].attn), "attn_sub_norm", None)
    if norm is None:
        return None
    with values_of(model, norm):
        gain = at_least_float32(norm.weight.detach())
    if (gain == 0).any():
        raise ValueError(f"{model.cfg.model_name}: the norm before W_O of layer {layer} has gains of 0.")
    return gain


def output_factor(model: HookedModel, layer: int) -> float:
    """What the outputs of a layer's structures are multiplied with before they are added to the residual stream."""
    return float(getattr(original(model.blocks[layer]), "residual_multiplier", 1.0))


def attention_scale(model: HookedModel, layer: int) -> float:
    """m in R = q̃ · k̃ / m."""
    attn = model.blocks[layer].attn
    module = original(attn)
    # by what transformers' families call it; some multiply where others divide
    names = ((module, name) for name in ("scale_attn", "scaling", "inv_norm_factor", "softmax_scale"))
    for source, name in ((attn, "attn_scale"), *names):
        if (value := getattr(source, name, None)) is not None:
            return float(value) if "attn" in name else 1 / float(value)
    if getattr(module, "scale", None) is True:
        return model.cfg.d_head**0.5
    scales = _scales.setdefault(model, {})
    if layer not in scales:
        scales[layer] = _scale_of_pattern(model, layer)
    return scales[layer]


_scales: MutableMapping[HookedModel, dict[int, float]] = WeakKeyDictionary()
"""Those that a pass has shown: it cannot run while some block computes in another precision."""


@torch.inference_mode()
def _scale_of_pattern(model: HookedModel, layer: int) -> float:
    """m of an attention that does not say it: which of the usual ones is nearest to the pattern of three tokens."""
    cfg, seen = model.cfg, {}
    names = [f"blocks.{layer}.attn.hook_{name}" for name in ("q", "k", "pattern")]
    with (
        settled(model),
        model.hooks(fwd_hooks=[(name, lambda x, hook: seen.update({hook: x[0].double()})) for name in names]),
    ):
        run_wrapped(model, torch.arange(1, 4, device=device_of(model))[None])
    q, k, pattern = seen.values()
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1))[:, -1]
    differences = {
        scale: float(((scores / scale).softmax(-1) - pattern[:, -1]).abs().max()) for scale in (1.0, cfg.d_head**0.5)
    }
    nearest = min(differences, key=differences.__getitem__)
    if differences[nearest] < 1e-2:  # half precision rounds by less
        return nearest
    kind = type(original(model.blocks[layer].attn)).__name__
    raise ValueError(f"{cfg.model_name}: {kind} does not say how it scales attention scores.")


def norm_gain(model: HookedModel, layer: int, norm: Any) -> Float[Tensor, "*head width"]:
    """What a layer's norm multiplies the normalised activation with: a single 1 where it has no weight."""
    stored_as_offset = wrapped_model(model) is not None and getattr(model.cfg, "rmsnorm_uses_offset", False)
    with values_of(model, norm):
        module = original(norm)  # what a bridge shows of it was taken from it once
        parts = [part.weight for part in getattr(module, "norms", ())]  # a norm for each head
        stored = torch.stack(parts) if parts else getattr(module, "w", getattr(module, "weight", None))
    if stored is None:
        return torch.ones(1, dtype=wide_dtype(dtype_of(model)), device=device_of_layer(model, layer))
    gain = at_least_float32(stored.detach())
    return 1 + gain if stored_as_offset else gain


def norm_eps(norm: Any) -> float:
    """What a norm adds to the mean square inside the root."""
    module = original(norm)
    module = module.norms[0] if hasattr(module, "norms") else module
    values = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    return next(float(eps) for eps in values if eps is not None)


@torch.no_grad()
def centres(norm: Module, gain: Tensor) -> bool:
    """Whether nothing is left of a constant."""
    ones = torch.ones(1, *gain.shape, dtype=gain.dtype, device=gain.device)
    dtype = next((parameter.dtype for parameter in norm.parameters()), gain.dtype)
    return bool(norm(ones.to(dtype)).abs().max() < 1e-3 * gain.abs().max())
