"""The activation of each feed-forward's gate: where a pass shows what it is made of, tried once for each model."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from .architecture import HookedModel, device_of, has_feed_forward, original, weight, wrapped_model
from .forward import run_blocks
from .hooks import hooked
from .state import settled

PRE, LINEAR, POST = "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"
"""What the activation function reads, what its values are multiplied with, and the neurons' activations."""
FUNCTIONS = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")
"""What feed-forward modules call their activation function."""
TOLERANCE = 1e-2
"""Of the largest product: half precision rounds by less."""


@dataclass(frozen=True)
class Gate:
    """A layer's gate, act(x·W_gate); without one the activation of the neurons themselves."""

    hook: str
    """The hook point, in full, that shows what the values are computed from."""
    function: Callable[[Tensor], Tensor] | None
    """What computes them; None where they are shown."""
    width: int

    @property
    def gated(self) -> bool:
        """Whether a neuron's activation is this times x·W_in."""
        return self.function is not None

    def values(self, activation: Tensor) -> Tensor:
        """The gate's activation, from what the hook point shows."""
        return activation if self.function is None else self.function(activation)


_GATES: MutableMapping[HookedModel, list[Gate]] = WeakKeyDictionary()


def gates_of(model: HookedModel) -> list[Gate]:
    """The gate of every layer, after a pass over three tokens has shown that the products are what they should be.

    Raises:
        ValueError: for a model without feed-forward, or one in which neurons are not act(x·W_gate) · x·W_in or
            act(x·W_in).
    """
    if not has_feed_forward(model.cfg):
        raise ValueError(f"{model.cfg.model_name} has attention only, and no neuron that fires.")
    if model not in _GATES:
        _GATES[model] = _tried(model)
    return _GATES[model]


def gate_biases(model: HookedModel) -> Float[Tensor, "layer neuron"] | None:
    """What each gated product has added to it, on the CPU; None where that is nothing."""
    gated = [gate.gated for gate in gates_of(model)]
    rows = [_bias(model, layer) if each else None for layer, each in enumerate(gated)]
    if not any(row is not None and bool(row.any()) for row in rows):
        return None
    width = gates_of(model)[0].width
    zeros = torch.zeros(width, dtype=torch.float64)
    return torch.stack([zeros if row is None else row.detach().double().cpu() for row in rows])


def _bias(model: HookedModel, layer: int) -> Tensor | None:
    """Of a bridge None: there x·W_in has it."""
    return weight(model, layer, "mlp.b_in") if wrapped_model(model) is None else None


@torch.inference_mode()
def _tried(model: HookedModel) -> list[Gate]:
    points, seen = model.hook_dict, dict[str, Tensor]()

    def keep(name: str, activation: Tensor, hook: object = None) -> Tensor:
        seen[name] = activation
        return activation

    layers = [{each: f"blocks.{layer}.{each}" for each in (PRE, LINEAR, POST)} for layer in range(model.cfg.n_layers)]
    names = [name for places in layers for name in places.values() if name in points]
    with settled(model), hooked(model, [(name, partial(keep, name)) for name in names]):
        run_blocks(model, torch.arange(1, 4, device=device_of(model))[None])
        return [_gate(model, layer, places, seen) for layer, places in enumerate(layers)]


def _gate(model: HookedModel, layer: int, places: dict[str, str], seen: dict[str, Tensor]) -> Gate:
    pre, linear, post = (seen.get(places[each]) for each in (PRE, LINEAR, POST))
    module: Any = original(model.blocks[layer].mlp)
    functions: list[Any] = [each for name in FUNCTIONS if callable(each := getattr(module, name, None))]
    if pre is not None and post is not None and pre.shape == post.shape and functions:
        products = functions[0](pre)
        if linear is not None:
            bias = _bias(model, layer)
            products = products * linear + (0 if bias is None else bias)
        if (products - post).abs().max() <= TOLERANCE * post.abs().max():
            gated, width = linear is not None, post.shape[-1]
            return Gate(places[PRE], functions[0], width) if gated else Gate(places[POST], None, width)
    raise ValueError(
        f"{model.cfg.model_name}: the feed-forward of layer {layer} ({type(module).__name__}) does not show the "
        "activation of its gate: what it computes is not act(x·W_gate) · x·W_in, nor act(x·W_in)."
    )
