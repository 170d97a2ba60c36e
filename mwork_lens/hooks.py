"""A mask in, hook functions out; they take the activation's own shape and device and leave no trace."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from jaxtyping import Bool
from torch import Tensor

from .sites import SITES, HookedModel

Mode = Literal["zero"]
ForwardHook = tuple[str, Callable[..., Tensor]]


def mask_hooks(masks: Mapping[str, Bool[Tensor, "layer _"]], mode: Mode = "zero") -> list[ForwardHook]:
    """Hook functions that switch the masked neurons off, one for each layer and site that has any.

    They act on every position, prompt or generated, with or without a key-value cache, and need no model:
    use them as ``run_with_hooks(fwd_hooks=...)`` or ``model.hooks(...)``, beside any hooks of your own.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"There is no mode {mode!r}; modes are {', '.join(get_args(Mode))}.")
    return [
        (SITES[site].hook_name(layer), _zeroing(mask))
        for site, by_layer in masks.items()
        for layer, mask in enumerate(by_layer)
        if mask.any()
    ]


def _zeroing(mask: Bool[Tensor, " neuron"]) -> Callable[..., Tensor]:
    on_device = mask

    def zero(activation: Tensor, hook: Any = None) -> Tensor:
        nonlocal on_device
        if on_device.device != activation.device:
            on_device = on_device.to(activation.device)
        # [neuron] as the activation has it: [head, d_head] in attention, [d_mlp] in the feed-forward
        own_shape = activation.shape[2:]
        return activation.masked_fill(on_device.view(own_shape), 0)

    return zero


@contextlib.contextmanager
def hooked(model: HookedModel, hooks: Sequence[ForwardHook]) -> Iterator[HookedModel]:
    """``model`` with ``hooks`` in place; exactly these are removed on any exit.

    Raises:
        ValueError: for a hook point the model does not have (a raw bridge would ignore it silently).
    """
    missing = [name for name, _ in hooks if name not in model.hook_dict]
    if missing:
        raise ValueError(f"{model.cfg.model_name} has no hook point {missing[0]!r}.")
    with model.hooks(fwd_hooks=list(hooks)):
        yield model
