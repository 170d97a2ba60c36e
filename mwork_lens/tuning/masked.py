"""Training some entries of a model's weights, or all of them: masters, and gradients that are masked as they arrive."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..model import HookedModel, settled, to_the_end
from ..model.offloaded import require_in_memory
from ..neurons import Entries


class MaskedParameter:
    """Entries with their master copy, which the optimiser sees: float32 where the weights are narrower."""

    def __init__(self, entries: Entries) -> None:
        self.entries, self.name, self.parameter = entries, entries.name, entries.parameter
        wide = self.parameter.dtype in (torch.float32, torch.float64)
        # all of a wide parameter is its own master; anything else gets a copy of just these entries
        self.in_place = entries.neurons is None and wide
        values = self.parameter.detach() if self.in_place else entries.read()
        self.master = self.parameter if self.in_place else Parameter(values if wide else values.float())

    def collect(self, parameter: Parameter) -> None:
        """Called as the gradient arrives: keeps the selected entries and frees the rest at once."""
        assert parameter.grad is not None
        self.add(self.entries.read(parameter.grad))
        parameter.grad = None

    def add(self, gradient: Tensor) -> None:
        """Accumulate a gradient of the master's shape."""
        gradient = gradient.to(self.master)
        self.master.grad = gradient if self.master.grad is None else self.master.grad.add_(gradient)

    def write(self) -> None:
        """The master into the model."""
        if not self.in_place:
            self.entries.write(self.master.detach())


@dataclass(frozen=True)
class TiedWeights:
    """TransformerLens stores one tied matrix twice, W_E = ``scale`` · W_Uᵀ: train it once."""

    embedding: Parameter
    unembedding: MaskedParameter
    scale: float

    def collect(self, embedding: Parameter) -> None:
        """The embedding's gradient goes where the unembedding's is."""
        assert embedding.grad is not None
        self.unembedding.add(embedding.grad.t() * self.scale)
        embedding.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """The embedding follows the unembedding."""
        by_token, embedding = self.unembedding.parameter.t(), self.embedding.data
        if by_token.device == embedding.device:
            torch.mul(by_token, self.scale, out=embedding)
        else:  # in a model over several
            embedding.copy_(by_token * self.scale)


@contextlib.contextmanager
def training(model: HookedModel, parts: Sequence[MaskedParameter], ties: Sequence[TiedWeights] = ()) -> Iterator[None]:
    """Gradients for these parts only, no dropout, on any exit as before; backward stops below the lowest part.

    Whether gradients are recorded outside, or inference mode is on, does not matter; what is trained must have been
    made with it off.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    collectors = [(part.parameter, None if part.in_place else part.collect) for part in parts]
    collectors += [(tie.embedding, tie.collect) for tie in ties]
    handles = []
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter, collect in collectors:
            parameter.requires_grad_(True)
            if collect is not None:
                handles.append(parameter.register_post_accumulate_grad_hook(collect))
        with settled(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        to_the_end(partial(_as_before, handles, before))


def _as_before(handles: Sequence[Any], before: Sequence[tuple[Parameter, bool]]) -> None:
    for handle in handles:
        handle.remove()
    for parameter, required in before:
        parameter.requires_grad_(required)
        parameter.grad = None


def whole_model(model: HookedModel) -> tuple[list[MaskedParameter], list[TiedWeights]]:
    """Every parameter that a checkpoint has: not the zero biases that TransformerLens adds, tied matrices once."""
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if not parameter.is_floating_point():
            kind = f"{name} of {model.cfg.model_name} is {parameter.dtype}"
            raise ValueError(f"{kind}: quantised weights cannot be tuned.")
    # W_Q of every layer is one kind; TransformerLens adds biases, b_Q or _b_Q, that are zero in all layers
    kinds = {name: re.sub(r"^blocks\.\d+\.", "", name) for name in named}
    real = {kind for name, kind in kinds.items() if not re.search(r"(^|\.)_*b_[^.]*$", name) or named[name].any()}
    scale = _tied_scale(named)
    embedding = named.pop("embed.W_E") if scale is not None else None
    parts = {name: MaskedParameter(Entries(name, p)) for name, p in named.items() if kinds[name] in real}
    if embedding is None or scale is None:
        return list(parts.values()), []
    return list(parts.values()), [TiedWeights(embedding, parts["unembed.W_U"], scale)]


@contextlib.contextmanager
def kept_weights(model: HookedModel) -> Iterator[None]:
    """Every parameter is bit-identical again on any exit; copies are in the CPU's memory."""
    require_in_memory(model, "changed")
    with settled(model):
        copies = [(parameter, parameter.detach().to("cpu", copy=True)) for parameter in model.parameters()]
        try:
            yield
        finally:
            with torch.no_grad():
                to_the_end(lambda: [parameter.copy_(values) for parameter, values in copies])


def _tied_scale(named: dict[str, Parameter]) -> float | None:
    """W_E over W_Uᵀ if that is one number for all entries; HookedTransformer only, a bridge keeps the tie itself."""
    if not {"embed.W_E", "unembed.W_U"} <= named.keys():
        return None
    w_e, w_u = named["embed.W_E"].detach(), named["unembed.W_U"].detach().t()
    if w_e.shape != w_u.shape:
        return None
    for scale in (1.0, w_e.shape[1] ** 0.5):
        # Gemma's embedding is multiplied by √d_model, in the model's dtype
        rounded = torch.tensor(scale, dtype=w_e.dtype).item()
        parts = zip(w_e.split(4096), w_u.split(4096), strict=True)
        if all(torch.equal(a, b.to(a.device) * rounded) for a, b in parts):
            return rounded
    return None
