"""A mask and values in, hook functions out; they take the activation's own shape and device and leave no trace."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..text.choices import require_choice
from .architecture import HookedModel, special_ids
from .sites import SITES
from .state import OwnHook, to_the_end

_SWITCHES = {
    "attn.hook_result": "use_attn_result",
    ("hook_q_input", "hook_k_input", "hook_v_input"): "use_split_qkv_input",
    "mlp_in": "use_hook_mlp_in",
    "attn_in": "use_attn_in",
}
"""Endings of hook points that TransformerLens leaves out until a setting is on."""

GateMode = Literal["add", "replace"]
"""What is done to the gate's activation, not to the neuron's."""
Mode = Literal["zero", "mean", "language_mean", "set", "scale", "resample", GateMode]
Positions = Literal["all", "content"]
ForwardHook = tuple[str, Callable[..., Tensor]]
Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From an activation, the mask of what changes and the layer's values (of the activation's dtype): the activation."""


class ContentPositions:
    """Which positions of the running forward pass hold ordinary tokens; special tokens and padding are left unchanged.

    A context manager that watches the token ids entering ``model.embed``, in forward passes and in ``generate``::

        with ContentPositions(model) as content:
            model.run_with_hooks(tokens, fwd_hooks=french.hooks(positions=content))
    """

    def __init__(self, model: HookedModel) -> None:
        self._embed: torch.nn.Module = model.embed
        self._special = special_ids(model)
        self._seen: Tensor | None = None
        self._handle: Any = None

    def __enter__(self) -> "ContentPositions":
        self._handle = self._embed.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._seen = None

    def _note(self, _: Any, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        tokens: Int[Tensor, "batch pos"] = positional[0] if positional else next(iter(named.values()))
        content = ~torch.isin(tokens, self._special.to(tokens.device))
        # generate embeds each new token alone, and without a cache then runs all of them again
        if self._seen is not None and tokens.shape[1] == 1 and len(self._seen) == len(tokens):
            content = torch.cat([self._seen, content], 1)
        self._seen = content

    def of(self, activation: Tensor) -> Bool[Tensor, "batch pos"]:
        """The ordinary tokens among the activation's positions.

        Raises:
            RuntimeError: outside the context, or if the forward pass did not begin with token ids.
        """
        batch, pos = activation.shape[:2]
        if self._seen is None or len(self._seen) != batch or self._seen.shape[1] < pos:
            raise RuntimeError(
                f"The tokens of these {batch} × {pos} positions were not seen: enter ContentPositions(model) first, "
                "and run the model from token ids."
            )
        return self._seen[:, -pos:].to(activation.device)


def placing(
    content: ContentPositions | None, mask: Bool[Tensor, " neuron"], *values: Float[Tensor, " neuron"]
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What gives, for an activation, where it changes (only in ``content``) and the values, in its shape and dtype."""
    placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def place(activation: Tensor) -> tuple[Tensor, ...]:
        of = (activation.device, activation.dtype)
        if of not in placed:
            # [neuron] as the activation has it: [head, d_head] in attention, [d_mlp] in the feed-forward
            shape = activation.shape[2:]
            if shape.numel() != len(mask):
                raise ValueError(f"A layer has {shape.numel()} neurons where the set's layers have {len(mask)}.")
            placed[of] = (mask.to(of[0]).view(shape), *(each.to(*of).reshape(shape) for each in values))
        where, *others = placed[of]
        if content is not None:
            where = where & content.of(activation).view(*activation.shape[:2], *(1 for _ in where.shape))
        return where, *others

    return place


def mask_hooks(
    masks: Mapping[str, Bool[Tensor, "layer _"]],
    change: Change,
    values: Mapping[str, Float[Tensor, "layer _"]] | None = None,
    content: ContentPositions | None = None,
) -> list[ForwardHook]:
    """Hook functions that change the masked neurons, one for each layer and site that has any.

    They act on every position (or on ``content``), prompt or generated, with or without a key-value cache: use them
    as ``run_with_hooks(fwd_hooks=...)`` or ``model.hooks(...)``, together with any hooks of your own.
    """

    def changing(mask: Bool[Tensor, " neuron"], values: Float[Tensor, " neuron"]) -> Callable[..., Tensor]:
        place = placing(content, mask, values)

        def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
            where, placed_values = place(activation)
            return change(activation, where, placed_values)

        return hook_function

    if values is None:  # zeros that take no memory
        values = {site: torch.zeros(()).expand(by_layer.shape) for site, by_layer in masks.items()}
    return [
        (SITES[site].hook_name(layer), changing(mask, values[site][layer]))
        for site, by_layer in masks.items()
        for layer, mask in enumerate(by_layer)
        if mask.any()
    ]


def require_options(mode: Mode, factor: float | None, valued: bool) -> None:
    """ValueError for an unknown mode, and for options that one lacks or has no use for."""
    require_choice("mode", mode, get_args(Mode))
    if (factor is None) == (mode == "scale") and mode != "add":
        belongs = "a factor belongs to 'scale', which needs one, and to 'add'"
        raise ValueError(f"mode={mode!r} with factor={factor}: {belongs}.")
    if valued == (mode in ("zero", "scale")):
        source = "collect_firing" if mode in get_args(GateMode) else "collect_means"
        needs = "takes no values=" if valued else f"needs values=, e.g. {source}(model, corpus)"
        raise ValueError(f"mode={mode!r} {needs}.")


def change_of(factor: float | None) -> Change:
    """What is done to an activation: it is multiplied with a factor or, without one, held at the values."""
    if factor is None:
        return lambda activation, where, values: torch.where(where, values, activation)
    return lambda activation, where, values: torch.where(where, activation * factor, activation)


@contextlib.contextmanager
def hooked(model: HookedModel, hooks: Sequence[ForwardHook]) -> Iterator[HookedModel]:
    """``model`` with ``hooks`` in place, for this thread; exactly these are removed on any exit, whatever came since.

    TransformerLens's own contexts remove what is on their level of nesting, which may be another's.
    """
    points = model.hook_dict if hooks else {}  # made anew at each look by a raw bridge
    for name, _ in hooks:
        if name not in points:
            raise ValueError(f"{model.cfg.model_name} has no hook point {name!r}.")
        switch = next((switch for ends, switch in _SWITCHES.items() if name.endswith(ends)), None)
        if switch and not getattr(model.cfg, switch, False):
            raise ValueError(f"{name!r} of {model.cfg.model_name} does not run before model.set_{switch}(True).")
    in_place: list[tuple[Any, Any, OwnHook]] = []
    try:
        for name, function in hooks:
            point = points[name]
            own = OwnHook(function, model.cfg.model_name)
            point.add_hook(own)
            in_place.append((point, point.fwd_hooks[-1], own))
        yield model
    finally:
        to_the_end(lambda: _remove(in_place))


def _remove(in_place: Sequence[tuple[Any, Any, OwnHook]]) -> None:
    for point, handle, own in in_place:
        own.open = False
        handle.hook.remove()
        point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
