"""What follows in a model when one neuron is off: copies of one document, from that neuron's layer on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..detection.replaying import Replay, caught
from ..model import SITES, HookedModel, TokenBatch, device_of, dtype_of, hooked, stream, wrapped_model
from ..model.hooks import ForwardHook

Places = Sequence[tuple[str, int]]
"""Site and number of some neurons of one layer."""
SAME = 1e-3
"""Share of what switching a neuron off changes, to which copies and a pass of its own agree, rounding aside."""
ROUNDING = 64
"""Units in the last place of the whole stream that are taken for rounding."""


@dataclass(frozen=True)
class Tails:
    """The forward pass of one document, to be gone on with from any layer of it."""

    model: HookedModel
    batch: TokenBatch
    states: Float[Tensor, "1 pos d_model"]
    """The residual stream after the last block."""
    replays: Mapping[int, Replay]

    @classmethod
    def of(cls, model: HookedModel, document: TokenBatch, first: int) -> "Tails":
        """One pass, in which the arguments of every block from the first are kept."""
        with caught(model, range(first, model.cfg.n_layers)) as replays:
            [(batch, states)] = stream(model, [document.to(device_of(model))])
        return cls(model, batch, states, replays)

    @torch.inference_mode()
    def without(self, layer: int, places: Places) -> Float[Tensor, "neuron pos d_model"]:
        """The stream after the last block with each of these neurons off, alone, at every position."""
        states = self.replays[layer].states.repeat(len(places), 1, 1)
        with hooked(self.model, zero_each(layer, places)):
            for each in range(layer, self.model.cfg.n_layers):
                states = self.replays[each].given(states).run()
        return states


def zero_each(layer: int, places: Places) -> list[ForwardHook]:
    """Hooks that set one neuron to zero in each row of a batch."""
    by_site: dict[str, list[tuple[int, int]]] = {}
    for row, (site, neuron) in enumerate(places):
        by_site.setdefault(site, []).append((row, neuron))
    return [(SITES[site].hook_name(layer), partial(_zero, pairs)) for site, pairs in by_site.items()]


def _zero(pairs: Sequence[tuple[int, int]], activation: Tensor, hook: object = None) -> Tensor:
    flat = activation.flatten(2).clone()
    rows, neurons = zip(*pairs, strict=True)
    flat[list(rows), :, list(neurons)] = 0
    return flat.view(activation.shape)


@torch.inference_mode()
def require_same(tails: Tails, layer: int, places: Places) -> None:
    """Refuse a model in which copies from a layer on are not what a whole pass with the neuron off gives.

    Raises:
        ValueError: naming the neuron; the first of these is compared.
    """
    model, (site, neuron) = tails.model, places[0]
    with hooked(model, zero_each(layer, places[:1])):
        [(_, alone)] = stream(model, [tails.batch])
    own, clean = alone[0].double(), tails.states[0].double()
    try:
        ours = tails.without(layer, [places[0], places[-1]])[0].double()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(_refusal(model, layer, site, neuron, f"fails ({error!s:.200})")) from error
    rounding = ROUNDING * max(torch.finfo(each).eps for each in (dtype_of(model), torch.float32))
    error, change = float((ours - own).norm()), float((own - clean).norm())
    if not error <= max(SAME * change, rounding * float(own.norm())):
        apart = f"gives another stream than a whole pass ({error:.2g} apart, where the neuron changes {change:.2g})"
        raise ValueError(_refusal(model, layer, site, neuron, apart))


def _refusal(model: HookedModel, layer: int, site: str, neuron: int, what: str) -> str:
    kind = type(wrapped_model(model) or model).__name__
    return (
        f"{model.cfg.model_name}: with {site} neuron {neuron} of layer {layer} off, running only the blocks from there "
        f"on {what}: {kind} does more between its blocks. effect_matrix measures sets, of one neuron too, by whole "
        "passes."
    )
