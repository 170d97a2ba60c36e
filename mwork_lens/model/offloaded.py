"""Weights that lie on disk: accelerate brings a module's values for its forward pass only, and shows none otherwise."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module's own values are brought for its forward pass only."""
    return bool(getattr(_hook(module), "offload", False))


def _hook(module: nn.Module) -> Any:
    """accelerate's of this very module: a bridge shows that of what it wraps as its own."""
    return vars(module).get("_hf_hook")


def modules_of(model: Any) -> list[nn.Module]:
    """Each once; what a bridge wraps is not among its modules."""
    wholes = [model, getattr(model, "original_model", None)]
    return [*dict.fromkeys(module for whole in wholes if whole is not None for module in whole.modules())]


def place_of(module: Any) -> torch.device:
    """Where a module, or a model, computes: beside its first parameter, or where the values of that are brought."""
    device = next(module.parameters()).device
    hooks = (_hook(part) for part in modules_of(module) if is_offloaded(part)) if device.type == "meta" else ()
    return next((torch.device(hook.execution_device) for hook in hooks), device)


@contextlib.contextmanager
def present(*wholes: Any) -> Iterator[None]:
    """The values of some modules and all below them; tensors that are read within stay what they are."""
    from accelerate.utils import align_module_device

    with contextlib.ExitStack() as stack:
        for module in dict.fromkeys(module for whole in wholes for module in modules_of(whole)):
            if is_offloaded(module) and any(each.is_meta for each in module.parameters(recurse=False)):
                stack.enter_context(align_module_device(module))
        yield


@contextlib.contextmanager
def brought_as(dtype: torch.dtype, *modules: nn.Module) -> Iterator[None]:
    """Values that are brought for a module's pass come in a dtype that is at least as wide."""
    narrow = [
        (module, name, parameter.dtype)
        for module in filter(is_offloaded, modules)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point() and parameter.dtype.itemsize < dtype.itemsize
    ]
    try:
        for module, name, _ in narrow:
            _place_held(module, name, dtype)
        yield
    finally:
        for module, name, before in narrow:
            _place_held(module, name, before)


def _place_held(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Accelerate makes what it brings of the dtype of what holds the place."""
    held: Any = module._parameters[name]
    module._parameters[name] = nn.Parameter(held.detach().to("meta", dtype), requires_grad=held.requires_grad)


def require_in_memory(model: Any, cannot: str) -> None:
    """A ValueError that says what ``cannot`` be, for a model of which weights lie on disk."""
    if any(map(is_offloaded, modules_of(model))):
        raise ValueError(
            f"Weights of {model.cfg.model_name} lie on disk (device_map), from where they are read for every pass: "
            f"they cannot be {cannot}. Load the model without layers on disk; neurons can be switched off by "
            "mw.ablate."
        )


def is_held(tensor: Any) -> bool:
    """Whether a tensor only holds the place of values on disk."""
    return isinstance(tensor, Tensor) and tensor.is_meta
