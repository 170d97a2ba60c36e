"""All that a call must leave as it was: of a model, of the process, and of a caller's transformers model."""

import logging
import warnings
from typing import Any

import numpy as np
import torch
import transformers


def state_of(model: Any) -> dict[str, Any]:
    """Everything that a model holds, bit for bit, by where it is."""
    held: dict[str, Any] = {}
    for whole, root in (("ours", model), ("wrapped", getattr(model, "original_model", None))):
        for name, module in root.named_modules() if root is not None else ():
            held |= {f"{whole} {name} {what}": value for what, value in _module(module).items()}
    for name, parameter in model.named_parameters():
        held[f"parameter {name}"] = (
            parameter.requires_grad,
            parameter.grad is None,
            parameter.data_ptr(),
            _bits(parameter),
        )
    return held


def _module(module: Any) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "fwd_hooks", "bwd_hooks")
    tensors = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
    return {
        "training": module.training,
        "hooks": [len(vars(module).get(name, ())) for name in hooks],
        "buffers": {name: (value is None or _bits(value)) for name, value in module._buffers.items()},
        "passing buffers": sorted(module._non_persistent_buffers_set),
        "tensors": {name: _bits(value) for name, value in tensors.items()},
    }


def _bits(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach()
    return str(tensor.dtype), tuple(tensor.shape), tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def state_of_process() -> dict[str, Any]:
    """Modes, random numbers, and what libraries say."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "warnings": [str(each) for each in warnings.filters],
        "logging": (logging.getLogger().level, transformers.utils.logging.get_verbosity()),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Where two states differ."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
