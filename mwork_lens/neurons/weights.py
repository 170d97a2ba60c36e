"""Which stored weights belong to some neurons, where they lie in the model's own parameters; zeroing them."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import Parameter

from ..model import GATE, SITES, HookedModel, Slices, changed_by_user, to_the_end, weight
from ..model.offloaded import require_in_memory
from ..text import check_arguments
from .sets import NeuronSet
from .space import NeuronSpace


@dataclass(frozen=True)
class Entries:
    """The entries of some neurons in one parameter of the model, or (``neurons`` None) all of it."""

    name: str
    """In TransformerLens's words, e.g. ``blocks.3.attn.W_Q``, whatever the parameter is called."""
    parameter: Parameter
    axes: tuple[int, ...] = ()
    neurons: Int[Tensor, " neuron"] | None = None

    @cached_property
    def _index(self) -> tuple[Any, ...]:
        if self.neurons is None:
            return (...,)
        sizes = [self.parameter.shape[axis] for axis in self.axes]
        return torch.unravel_index(self.neurons.to(self.parameter.device), sizes)

    def _by_neuron(self, like_parameter: Tensor) -> Tensor:
        return like_parameter.movedim(self.axes, tuple(range(len(self.axes))))

    def read(self, gradient: Tensor | None = None) -> Tensor:
        """A copy of these entries of the parameter, or of its gradient: ``[neuron, d_model]``, a bias ``[neuron]``."""
        return self._by_neuron(self.parameter.detach() if gradient is None else gradient)[self._index].clone()

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Set these entries and no other; rounds to the parameter's dtype."""
        self._by_neuron(self.parameter.data)[self._index] = values.to(self.parameter)


def selected_entries(model: HookedModel, neurons: NeuronSet, *, gate: bool = False) -> list[Entries]:
    """What belongs to ``neurons`` (with ``gate``, columns of W_gate too): one for each layer and weight with any.

    Refuses a set without neurons or of other sizes, quantised weights, and a gate that the model lacks.
    """
    if not len(neurons):
        raise ValueError(f"{neurons!r} holds no neurons: there is nothing to change.")
    pieces = {name: (*site.tuning, *((GATE,) if gate and name == "mlp" else ())) for name, site in SITES.items()}
    return _entries(model, neurons, pieces)


def silencing_entries(model: HookedModel, neurons: NeuronSet) -> list[Entries]:
    """What is zero where ``neurons`` are switched off in the weights, one for each layer and weight that holds any."""
    return _entries(model, neurons, {name: site.silencing for name, site in SITES.items()})


def _entries(model: HookedModel, neurons: NeuronSet, pieces: Mapping[str, Sequence[Slices]]) -> list[Entries]:
    require_in_memory(model, "changed")
    neurons.space.require_compatible(NeuronSpace.of(model))

    def exists(piece: Slices) -> bool:  # a bias that is zero in every layer is one that TransformerLens added
        shown = (_shown(model, layer, piece) for layer in range(model.cfg.n_layers))
        return not piece.is_bias or any(bias is not None and bool(bias.any()) for bias in shown)

    def require_a_column_for_each(piece: Slices, width: int) -> None:
        shown = _shown(model, 0, piece)
        if shown is not None and (columns := math.prod(shown.shape[axis] for axis in piece.neuron_axes)) != width:
            raise ValueError(
                f"{piece.weight} of {model.cfg.model_name} has {columns} columns for {width} neurons: it is fused with "
                "another weight, which would be changed."
            )

    for site, mask in neurons.masks.items():
        for piece in filter(exists, pieces[site] if mask.any() else ()):
            require_a_column_for_each(piece, mask.shape[-1])
    return [
        entries_of(model, layer, piece, row.nonzero().flatten())
        for site, mask in neurons.masks.items()
        for piece in filter(exists, pieces[site])
        for layer, row in enumerate(mask)
        if row.any()
    ]


def entries_of(model: HookedModel, layer: int, piece: Slices, neurons: Int[Tensor, " neuron"]) -> Entries:
    """The entries of ``neurons`` in one weight of one layer."""
    name, of_model = f"blocks.{layer}.{piece.weight}", model.cfg.model_name
    shown = _shown(model, layer, piece)
    if shown is None:
        raise ValueError(f"{of_model} has no {name}.")
    if not shown.is_floating_point():
        raise ValueError(f"{name} of {of_model} is {shown.dtype}: quantised weights cannot be changed.")
    if isinstance(shown, Parameter):
        return Entries(name, shown, piece.neuron_axes, neurons)
    module, leaf = piece.weight.split(".")
    # a bridge shows the weight of a linear map reshaped, which it calls e.g. q behind W_Q
    linear: Any = getattr(getattr(model.blocks[layer], module), leaf[2:].lower())
    parameter = linear.bias if piece.is_bias else linear.weight
    if not isinstance(parameter, Parameter) or parameter.data_ptr() != shown.data_ptr():
        raise ValueError(f"{name} of {of_model} is a copy: changing it would not reach the model.")
    # there the neurons of all heads are on one axis
    return Entries(name, parameter, (parameter.stride().index(shown.stride(piece.neuron_axes[-1])),), neurons)


def _shown(model: HookedModel, layer: int, piece: Slices) -> Tensor | None:
    try:
        return weight(model, layer, piece.weight)
    except AttributeError:
        return None


Stored = list[tuple[Entries, Tensor]]
_edits: WeakKeyDictionary[HookedModel, list[Stored]] = WeakKeyDictionary()
"""What the open edits of a model have replaced, in the order in which they were opened."""


@contextlib.contextmanager
def edit_weights(model: HookedModel, neurons: NeuronSet) -> Iterator[HookedModel]:
    """``model`` with the set's neurons switched off in its weights; every weight is bit-identical again on any exit.

    Zero are the columns (and biases) of W_Q, W_K and W_V that belong to the set, and its rows of W_down. Outputs are
    those of ``ablate(model, neurons)``; hooks of your own see zeros in q, k and v, but ``mlp.hook_post`` unchanged.
    Within the context ``model.state_dict()`` holds the edited weights. Several may be left in any order.

    Raises:
        ValueError: if the set is of a model with other sizes, or a weight is a copy that edits would not reach.
    """
    check_arguments(edit_weights, locals())
    with changed_by_user(model):
        entries = silencing_entries(model, neurons)
        edits, stored = _edits.setdefault(model, []), [(each, each.read()) for each in entries]
        try:
            edits.append(stored)
            _silence(stored)
            yield model
        finally:
            to_the_end(partial(_undo, edits, stored))


def _undo(edits: list[Stored], stored: Stored) -> None:
    """Take back one edit and leave those that were opened after it; interrupted at any moment, it may run again."""
    place = next((i for i, edit in enumerate(edits) if edit is stored), None)
    if place is None:
        return
    later = edits[place:]
    for edit in reversed(later):
        _restore(edit)
    for edit in later[1:]:
        edit[:] = [(each, each.read()) for each, _ in edit]
        _silence(edit)
    del edits[place]


def _silence(stored: Stored) -> None:
    for entries, values in stored:
        entries.write(torch.zeros_like(values))


def _restore(stored: Stored) -> None:
    for entries, values in stored:
        entries.write(values)
