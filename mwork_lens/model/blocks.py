"""What a block is made of: refused where its neurons have no columns of their own, or no closed form."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from .architecture import HookedModel, original, require_hooked, wrapped_model
from .trial import trial_of

# parts of TransformerLens's blocks whose neurons and whose effect on them are known
_PARTS = {"attn", "mlp", "ln1", "ln1_post", "ln2", "ln2_post"}
# what Gemma 4 adds after its feed-forward
_PARTS |= {"per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"}
_PROJECTIONS = {"q", "k", "v", "o", "qkv", "q_norm", "k_norm", "v_norm", "sinks", "attn_sub_norm"}
_EXPERTS = {"experts", "router"}


def require_attention(model: HookedModel) -> None:
    """A ValueError that says what it is where some layer has no attention with queries, keys and values.

    Only a raw bridge can: a HookedTransformer's layers are always softmax attention and a feed-forward.
    """
    if wrapped_model(model) is None:
        return
    if not hasattr(model, "blocks"):
        raise ValueError(f"{model.cfg.model_name} is recurrent: it runs stacks of layers several times for each token.")
    _require(model, _without_attention, _latent)


def require_known_blocks(model: HookedModel) -> None:
    """The same where some layer has parts that neurons are not defined for, or what is there is not a hooked model."""
    require_hooked(model)
    require_attention(model)
    if wrapped_model(model) is not None:
        _require(model, _experts, _beside, _changed)
        trial_of(model, 0)  # now, as later passes may be watched


def layers_apart(model: HookedModel) -> dict[int, str]:
    """Layers of a bridge that lack neurons of the first layer, or have another number; what they have instead."""
    if wrapped_model(model) is None:
        return {}
    first, *others = (_shapes(block) for block in model.blocks)
    compared = ((layer, _other_than(first, shapes)) for layer, shapes in enumerate(others, 1))
    return {layer: reason for layer, reason in compared if reason}


def _shapes(block: Any) -> dict[str, tuple[int, ...]]:
    """Of the matrices that have neurons, by name."""
    parts = {name: getattr(original(part), "weight", None) for name, part in block.attn.named_children()}
    parts["mlp"] = getattr(getattr(getattr(block, "mlp", None), "out", None), "weight", None)
    return {name: tuple(x.shape) for name, x in parts.items() if isinstance(x, Tensor) and x.ndim == 2}


def _other_than(first: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    missing = sorted(first.keys() - shapes.keys())
    if missing == ["v"]:
        return "takes its keys for values, so that a neuron of one is one of the other"
    if missing:
        return f"has no {' and '.join(missing)} of its own, but takes those of an earlier layer"
    other = next((name for name in first if shapes[name] != first[name]), None)
    return other and f"has a matrix {other} of shape {shapes[other]}, where that of layer 0 is {first[other]}"


def _require(model: HookedModel, *faults: Callable[[Any], str | None]) -> None:
    for find, (layer, block) in product(faults, enumerate(model.blocks)):
        if fault := find(block):
            raise ValueError(f"{model.cfg.model_name}: layer {layer} {fault}.")


def _without_attention(block: Any) -> str | None:
    reason = "recurrent, convolutional and linear attention layers have no neurons of queries and keys"
    return None if hasattr(block, "attn") else f"has no attention pattern ({_listed(_parts(block))}): {reason}"


def _latent(block: Any) -> str | None:
    projections = set(_parts(block.attn))
    reason = "its query, key and value neurons have no columns of their own"
    return None if projections & {"qkv", "q", *_EXPERTS} else f"has latent attention ({_listed(projections)}): {reason}"


def _experts(block: Any) -> str | None:
    names = {name for path, _ in block.named_modules() for name in path.split(".")}
    return "is a mixture of experts: feed-forward neurons differ from token to token" if names & _EXPERTS else None


def _beside(block: Any) -> str | None:
    renamed = {name for name, part in block.named_children() if part is getattr(block, "mlp", None)}
    parts = set(_parts(block)) - _PARTS - renamed
    reason = "whose part in what neurons do is unknown"
    return f"has {_listed(parts)} beside attention and feed-forward, {reason}" if parts else None


def _changed(block: Any) -> str | None:
    unknown = set(_parts(block.attn)) - _PROJECTIONS
    return f"changes what attention mixes ({_listed(unknown)}), which has no closed form here" if unknown else None


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(sorted(set(parts)))


def _parts(module: Module) -> Iterator[str]:
    """A bridge's parts that have weights, and those that only transformers' own module knows."""
    known = [(name, part) for name, part in module.named_children() if hasattr(part, "original_component")]
    yield from (name for name, part in known if any(True for _ in part.parameters()))
    held = {id(parameter) for _, part in known for parameter in part.parameters()}
    own = _own_parameters(original(module))
    yield from (path.split(".")[0] for path, parameter in own if id(parameter) not in held)


def _own_parameters(module: Module) -> Iterator[tuple[str, Parameter]]:
    """Those outside of the parts that a bridge has put into a module of transformers."""
    yield from module.named_parameters(recurse=False)
    for name, part in module.named_children():
        if not hasattr(part, "original_component"):
            yield from ((f"{name}.{rest}", parameter) for rest, parameter in _own_parameters(part))
