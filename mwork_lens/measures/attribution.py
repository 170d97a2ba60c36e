"""First-order effect of every neuron and head on a text's loss, from one forward and one backward pass."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ..model import forward
from ..model.architecture import HookedModel, at_least_float32, device_of, stream_hook
from ..model.forward import Plan, TokenBatch
from ..model.hooks import hooked
from ..model.sites import SITES
from ..model.state import settled
from ..model.unembedding import differentiable_logits
from ..store.processes import hidden

Statistic = Literal["signed", "absolute"]
ROWS_AT_ONCE = 64
"""States whose logits, and what the loss makes of them, are held at a time."""
HEAD, HEAD_HOOK = "head", "attn.hook_z"
"""What attention heads are called next to the sites, and where their mixed values are."""


@dataclass(frozen=True)
class BatchEffects:
    """One batch, by site (and ``head``): each document's effects in nats, ``[document, layer, neuron]``."""

    effects: Mapping[str, Float[Tensor, "document layer _"]]
    predicted: Int[Tensor, " document"]
    """Tokens of each document whose loss counts: ordinary ones, but for the first of all, which nothing predicts."""


def attributed(
    model: HookedModel, sites: Sequence[str], batches: Plan, statistic: Statistic, *, progress: str | None = None
) -> Iterator[tuple[TokenBatch, BatchEffects]]:
    """Each batch with the effects of switching neurons off, to first order: -Σ_t a(t) · ∂NLL/∂a(t), of every document.

    NLL is the sum over the document's tokens; ``absolute`` is Σ_t |a(t) · ∂NLL/∂a(t)|. Not within inference mode.
    """
    device, done = device_of(model), batches.documents_done
    bar = tqdm(total=batches.documents, initial=done, unit="doc", disable=hidden(progress))
    with settled(model), bar, _frozen(model):
        for batch in batches:
            if progress:
                bar.set_description(f"{progress} {batch.language}", refresh=False)
            batch = batch.to(device)
            yield batch, _effects(model, sites, batch, statistic)
            bar.update(len(batch.rows))


def require_differentiable(model: HookedModel) -> None:
    """A ValueError for weights that no backward pass goes through."""
    if made := next((name for name, each in model.named_parameters() if each.is_inference()), None):
        raise ValueError(
            f"{made} of {model.cfg.model_name} was made in inference mode, and has no gradient beyond it: load the "
            "model outside of torch.inference_mode()."
        )


@contextlib.contextmanager
def _frozen(model: HookedModel) -> Iterator[None]:
    """No weight takes a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _effects(model: HookedModel, sites: Sequence[str], batch: TokenBatch, statistic: Statistic) -> BatchEffects:
    seen: dict[tuple[str, int], Tensor] = {}

    def start(activation: Tensor, hook: object = None) -> Tensor:
        return activation.detach().requires_grad_()

    def read(place: tuple[str, int], activation: Tensor, hook: object = None) -> Tensor:
        activation.register_hook(partial(receive, place, activation.detach()))
        return activation

    def receive(place: tuple[str, int], values: Tensor, gradient: Tensor) -> None:
        products = at_least_float32(values) * at_least_float32(gradient)
        products = products.sum(-1) if place[0] == HEAD else products.flatten(2)
        seen[place] = products.abs().sum(1) if statistic == "absolute" else -products.sum(1)

    points = {**{site: SITES[site].hook for site in sites}, HEAD: HEAD_HOOK}
    places = [(name, layer) for name in points for layer in range(model.cfg.n_layers)]
    hooks = [(f"blocks.{place[1]}.{points[place[0]]}", partial(read, place)) for place in places]
    with torch.enable_grad():
        with hooked(model, [(stream_hook(0), start), *hooks]):
            states = forward.run_blocks(model, batch.tokens)
        predicted = _backward(model, batch, states)
    zero = states.new_zeros(())
    layers = {name: [seen.pop((name, layer)).to(zero.device) for layer in range(model.cfg.n_layers)] for name in points}
    return BatchEffects({name: torch.stack(parts, 1) for name, parts in layers.items()}, predicted)


def _backward(
    model: HookedModel, batch: TokenBatch, states: Float[Tensor, "batch pos d_model"]
) -> Int[Tensor, " document"]:
    """Of the summed loss, with logits of a few states at a time; how many tokens each document's is of."""
    counts = batch.content[:, 1:].to(states.device)
    hidden, targets = states[:, :-1][counts], batch.tokens[:, 1:].to(states.device)[counts]
    gradient = torch.empty_like(hidden)
    for start in range(0, len(hidden), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        leaf = hidden[rows].detach().requires_grad_()
        nats = cross_entropy(differentiable_logits(model, leaf), targets[rows], reduction="sum")
        (gradient[rows],) = torch.autograd.grad(nats, leaf)
    hidden.backward(gradient)
    return counts.sum(1)
