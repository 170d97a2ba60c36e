"""Training some entries of a model's weights: their masters, and gradients that are masked as they arrive."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..model import HookedModel
from ..neurons import Entries


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
    everything: list[Parameter] = list(model.parameters())
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
