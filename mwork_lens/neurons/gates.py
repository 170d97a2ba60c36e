"""The gate's activation of feed-forward neurons, with a language's mean added to it or in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..model.gates import LINEAR
from ..model.hooks import ContentPositions, ForwardHook, GateMode, Mode, placing
from ..model.sites import SITES
from ..store import storable
from .space import NeuronSpace


@storable
@dataclass(frozen=True)
class GateValues:
    """A value for the gate's activation a of every feed-forward neuron, and how a model's neurons are made of a.

    Given by :meth:`Firing.gate_values`, taken by :meth:`NeuronSet.hooks`; of your own, with other ``values``:
    ``dataclasses.replace(values, values=...)``.
    """

    space: NeuronSpace
    values: Float[Tensor, "layer neuron"]
    gated: Sequence[bool]
    """By layer: whether the neuron's activation is a·u + bias, with u = x·W_in; otherwise it is a."""
    biases: Float[Tensor, "layer neuron"] | None = None
    """Added to the product; None where nothing is."""

    def __post_init__(self) -> None:
        expected = self.space.n_layers, self.space.d_mlp
        for name, values in {"values": self.values, "biases": self.biases}.items():
            if values is not None and tuple(values.shape) != expected:
                raise ValueError(f"{name} have shape {tuple(values.shape)}, where {self.space.model} has {expected}.")
        if len(self.gated) != self.space.n_layers:
            raise ValueError(f"gated has {len(self.gated)} entries for the {self.space.n_layers} layers.")


def is_of_gate(mode: Mode) -> bool:
    """Whether a mode changes the gate's activation."""
    return mode in get_args(GateMode)


def gate_hooks(
    space: NeuronSpace,
    masks: Mapping[str, Bool[Tensor, "layer _"]],
    values: Any,
    *,
    mode: GateMode,
    language: str | None,
    own: str | None,
    factor: float | None,
    content: ContentPositions | None,
) -> list[ForwardHook]:
    """Two hooks for each gated layer, of which one keeps u for the other; one for a layer without gate.

    u is what ``mlp.hook_pre_linear`` shows in the same pass, changed by whatever hooks were there before these.

    Raises:
        ValueError: for neurons of attention, or values that are not of gates, of another model or of no language.
    """
    for site, mask in masks.items():
        if site != "mlp" and mask.any():
            advice = f"has {int(mask.sum())} of {site}: restrict(sites=['mlp'])"
            raise ValueError(f"mode={mode!r} acts on the gates of feed-forward neurons, and the set {advice}.")
    of_gates = _of_language(values, mode, language, own)
    space.require_compatible(of_gates.space, stacklevel=4)
    layers = masks["mlp"].any(-1).nonzero().flatten().tolist() if "mlp" in masks else []
    scale = 1.0 if factor is None else factor
    hooks = [_layer_hooks(layer, masks["mlp"][layer], of_gates, mode, scale, content) for layer in layers]
    return [hook for of_layer in hooks for hook in of_layer]


def _of_language(values: Any, mode: str, language: str | None, own: str | None) -> GateValues:
    if isinstance(values, GateValues):
        if language is not None:
            raise ValueError(f"mode={mode!r} with {language=}: GateValues are of one language already.")
        return values
    if not hasattr(values, "gate_values"):
        raise ValueError(f"mode={mode!r} needs values of collect_firing, not {type(values).__name__}.")
    if (language or own) is None:
        raise ValueError(f"mode={mode!r} needs language=: whose mean of the gate's activation?")
    return values.gate_values(language or own)


def _layer_hooks(
    layer: int,
    mask: Bool[Tensor, " neuron"],
    of_gates: GateValues,
    mode: GateMode,
    factor: float,
    content: ContentPositions | None,
) -> list[ForwardHook]:
    post, linear = SITES["mlp"].hook_name(layer), f"blocks.{layer}.{LINEAR}"
    gated, values = of_gates.gated[layer], of_gates.values[layer] * factor
    bias = torch.zeros_like(values) if of_gates.biases is None else of_gates.biases[layer]
    place, latest = placing(content, mask, values, bias), list[Tensor]()

    def keep(activation: Tensor, hook: Any = None) -> Tensor:
        latest[:] = [activation]
        return activation

    def change(activation: Tensor, hook: Any = None) -> Tensor:
        where, product, bias = place(activation)
        if gated:
            if not latest:
                raise ValueError(f"mode={mode!r}: the values are of gated neurons, and {linear} shows none here.")
            product = product * latest.pop()
        return torch.where(where, activation + product if mode == "add" else product + bias, activation)

    return [*([(linear, keep)] if gated else []), (post, change)]
