"""What a block is made of: refused where its neurons have no columns of their own, or no closed form."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

from torch.nn import Module, Parameter

from .architecture import HookedModel, original, require_hooked, wrapped_model
from .trial import trial_of

# parts of TransformerLens's blocks whose neurons and whose effect on them are known
_PARTS = {"attn", "mlp", "ln1", "ln1_post", "ln2", "ln2_post"}
_PROJECTIONS = {"q", "k", "v", "o", "qkv", "q_norm", "k_norm", "sinks", "attn_sub_norm"}
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
