"""Which stored weights belong to some neurons, where they lie in the model's own parameters, and how to train them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import Parameter

from ..neurons import NeuronSet, NeuronSpace
from ..sites import GATE, SITES, HookedModel, Slices, weight


@dataclass(frozen=True)
class Entries:
    """The entries of some neurons in one parameter of the model, or (``neurons`` None) all of it."""

    name: str
    """In TransformerLens's words, e.g. ``blocks.3.attn.W_Q``, whatever the parameter is called."""
    parameter: Parameter
    axes: tuple[int, ...] = ()
    neurons: Int[Tensor, " neuron"] | None = None

    @cached_property
    def _index(self) -> tuple[Tensor, ...]:
        assert self.neurons is not None
        sizes = [self.parameter.shape[axis] for axis in self.axes]
        return torch.unravel_index(self.neurons.to(self.parameter.device), sizes)

    def _by_neuron(self, like_parameter: Tensor) -> Tensor:
        return like_parameter.movedim(self.axes, tuple(range(len(self.axes))))

    def read(self, like_parameter: Tensor) -> Tensor:
        """A copy of these entries of the parameter, or of its gradient: ``[neuron, d_model]``, a bias ``[neuron]``."""
        return like_parameter.clone() if self.neurons is None else self._by_neuron(like_parameter)[self._index]

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Set these entries and no other; rounds to the parameter's dtype."""
        values = values.to(self.parameter)
        if self.neurons is None:
            self.parameter.copy_(values)
        else:
            self._by_neuron(self.parameter.data)[self._index] = values


def selected_entries(model: HookedModel, neurons: NeuronSet, *, gate: bool = False) -> list[Entries]:
    """What ``neurons`` own: one for each layer and weight that holds any of them.

    Columns of W_Q, W_K, W_V and W_in, rows of W_out, and biases where the model has them; ``gate`` adds columns of
    W_gate. A bias that is zero in every layer is one that TransformerLens added.

    Raises:
        ValueError: for no neurons, a set of a model with other sizes, quantised weights, or a gate where none is.
    """
    neurons.space.require_compatible(NeuronSpace.of(model))
    if not len(neurons):
        raise ValueError(f"{neurons!r} holds no neurons: there is nothing to tune.")
    found = []
    for site, mask in neurons.masks.items():
        slices = (*SITES[site].tuning, GATE) if gate and site == "mlp" else SITES[site].tuning
        for piece in (piece for piece in slices if not piece.is_bias or _is_real(model, piece)):
            for layer, row in enumerate(mask):
                if row.any():
                    found.append(entries_of(model, layer, piece, row.nonzero().flatten()))
    return found


def entries_of(model: HookedModel, layer: int, piece: Slices, neurons: Int[Tensor, " neuron"]) -> Entries:
    """The entries of ``neurons`` in one weight of one layer."""
    name = f"blocks.{layer}.{piece.weight}"
    shown = _shown(model, layer, piece)
    if shown is None:
        raise ValueError(f"{model.cfg.model_name} has no {name}.")
    if not shown.is_floating_point():
        raise ValueError(f"{name} of {model.cfg.model_name} is {shown.dtype}: quantised weights cannot be tuned.")
    if isinstance(shown, Parameter):
        return Entries(name, shown, piece.neuron_axes, neurons)
    parameter, axis = _behind(model, layer, piece, shown)
    return Entries(name, parameter, (axis,), neurons)


def _shown(model: HookedModel, layer: int, piece: Slices) -> Tensor | None:
    try:
        return weight(model, layer, piece.weight)
    except AttributeError:
        return None


def _is_real(model: HookedModel, piece: Slices) -> bool:
    shown = (_shown(model, layer, piece) for layer in range(model.cfg.n_layers))
    return any(bias is not None and bool(bias.any()) for bias in shown)


# what a raw bridge calls the linear maps behind the weights that it shows
_LINEAR = {"Q": "q", "K": "k", "V": "v", "in": "in", "out": "out", "gate": "gate"}


def _behind(model: HookedModel, layer: int, piece: Slices, shown: Tensor) -> tuple[Parameter, int]:
    """The parameter that a bridge shows reshaped, and on which of its axes the neurons are (in one row: all heads)."""
    module, leaf = piece.weight.split(".")
    linear: Any = getattr(getattr(model.blocks[layer], module), _LINEAR[leaf[2:]])  # pyright: ignore
    parameter = linear.bias if piece.is_bias else linear.weight
    if not isinstance(parameter, Parameter) or parameter.data_ptr() != shown.data_ptr():
        raise ValueError(f"blocks.{layer}.{piece.weight} of {model.cfg.model_name} is no parameter that can be tuned.")
    return parameter, parameter.stride().index(shown.stride(piece.neuron_axes[-1]))


# --- training -------------------------------------------------------------------------------------


class Trained:
    """Entries with their master copy, which the optimiser sees: float32 where the weights are narrower."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        parameter = entries.parameter
        wide = parameter.dtype in (torch.float32, torch.float64)
        # all of a wide parameter is its own master; anything else gets a copy of just these entries
        self.in_place = entries.neurons is None and wide
        values = parameter.detach() if self.in_place else entries.read(parameter.detach())
        self.master = parameter if self.in_place else Parameter(values if wide else values.float())

    def collect(self, parameter: Parameter) -> None:
        """Called as the gradient arrives: keeps the selected entries and frees the rest at once."""
        assert parameter.grad is not None
        self.add(self.entries.read(parameter.grad))
        parameter.grad = None

    def add(self, gradient: Tensor) -> None:
        """Accumulate a gradient of the master's shape."""
        gradient = gradient.to(self.master.dtype)
        self.master.grad = gradient if self.master.grad is None else self.master.grad.add_(gradient)

    def write(self) -> None:
        """The master into the model."""
        if not self.in_place:
            self.entries.write(self.master.detach())


@contextlib.contextmanager
def training(model: HookedModel, parts: Sequence[Trained], ties: Sequence[Any] = ()) -> Iterator[None]:
    """Gradients for these parts only, on any exit as before; with nothing selected before a layer backward stops there.

    Everything else needs no gradient, so autograd neither computes nor stores it.
    """
    everything: list[Parameter] = list(model.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    before = [parameter.requires_grad for parameter in everything]
    handles = []
    try:
        for parameter in everything:
            parameter.requires_grad_(False)
        for part in parts:
            part.entries.parameter.requires_grad_(True)
            if not part.in_place:
                handles.append(part.entries.parameter.register_post_accumulate_grad_hook(part.collect))
        for tie in ties:
            tie.embedding.requires_grad_(True)
            handles.append(tie.embedding.register_post_accumulate_grad_hook(tie.collect))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in zip(everything, before, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = None
