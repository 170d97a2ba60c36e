"""What neurons read: where in a corpus each is strongest, and how often and how much it is active by language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..model import SITES, ForwardHook, HookedModel, TokenBatch, batches, hooked, run_blocks

GATE = "mlp.hook_pre"
"""What the feed-forward's nonlinearity reads: a neuron fires where this is above zero."""

Places = dict[tuple[int, str], Int[Tensor, " _"]]
"""The neurons to follow, by layer and site."""


@dataclass
class Followed:
    """Running results for some neurons of one layer and site."""

    neurons: Int[Tensor, " neuron"]
    fired: Float[Tensor, "neuron language"]
    """Positions where each neuron fires."""
    total: Float[Tensor, "neuron language"]
    magnitude: Float[Tensor, "neuron language"]
    """Sums of activations and of their absolute values."""
    strongest: Float[Tensor, "neuron rank"]
    """The activations of largest absolute value, with their sign."""
    where: Int[Tensor, "neuron rank 3"]
    """Language, passage and position of each of these; -1 where there are fewer."""

    @classmethod
    def empty(cls, neurons: Int[Tensor, " neuron"], languages: int, contexts: int) -> "Followed":
        """Nothing read yet."""
        fired, total, magnitude = torch.zeros(3, len(neurons), languages, dtype=torch.float64)
        where = torch.full((len(neurons), contexts, 3), -1)
        return cls(neurons, fired, total, magnitude, torch.zeros(len(neurons), contexts), where)

    def add(self, language: int, activations: Float[Tensor, "row neuron"], where: Int[Tensor, "row 2"]) -> None:
        """Take in the activations at some positions, given by passage and position."""
        found = activations.detach().cpu().float().t()
        self.total[:, language] += found.double().sum(1)
        self.magnitude[:, language] += found.double().abs().sum(1)
        number = min(self.strongest.shape[1], found.shape[1])
        rows = found.abs().topk(number, dim=1).indices
        places = torch.cat([torch.full((len(where), 1), language), where], 1)[rows]  # [neuron, rank, 3]
        values = torch.cat([self.strongest, found.gather(1, rows)], 1)
        every = torch.cat([self.where, places], 1)
        best = values.abs().topk(self.strongest.shape[1], dim=1).indices
        self.strongest = values.gather(1, best)
        self.where = every.gather(1, best[..., None].expand(-1, -1, 3))

    def add_gate(self, language: int, gate: Float[Tensor, "row neuron"]) -> None:
        """Count the positions where the neurons fire."""
        self.fired[:, language] += (gate > 0).sum(0).double().cpu()


@torch.inference_mode()
def follow(
    model: HookedModel,
    neurons: Places,
    encoded: Mapping[str, Sequence[Int[Tensor, " _"]]],
    *,
    contexts: int,
    batch_size: int | None,
    progress: bool,
) -> tuple[dict[tuple[int, str], Followed], dict[str, int]]:
    """Stream a corpus through the model; also how many positions of ordinary tokens each language has."""
    found = {place: Followed.empty(chosen, len(encoded), contexts) for place, chosen in neurons.items()}
    positions = dict.fromkeys(encoded, 0)
    running: list[tuple[int, TokenBatch, Tensor]] = []
    hooks = [hook for place, followed in found.items() for hook in _hooks(model, place, followed, running)]
    total = sum(map(len, encoded.values()))
    with tqdm(total=total, unit="passage", disable=not progress) as bar, hooked(model, hooks):
        for number, (language, documents) in enumerate(encoded.items()):
            bar.set_description(f"reading {language}")
            for batch in batches(model, documents, batch_size):
                rows, places = batch.content.nonzero(as_tuple=True)
                where = torch.stack([torch.tensor(batch.rows)[rows.cpu()], places.cpu()], 1)
                running[:] = [(number, batch, where)]
                run_blocks(model, batch.tokens)
                positions[language] += len(where)
                bar.update(len(batch.rows))
    return found, positions


def fires(model: HookedModel, site: str) -> bool:
    """Whether neurons of a site fire or not: those behind the feed-forward's nonlinearity."""
    return site == "mlp" and f"blocks.0.{GATE}" in model.hook_dict


def _hooks(
    model: HookedModel, place: tuple[int, str], followed: Followed, running: list[tuple[int, TokenBatch, Tensor]]
) -> list[ForwardHook]:
    def receive(gate: bool, activation: Tensor, hook: Any = None) -> Tensor:
        language, batch, where = running[-1]
        seen = _chosen(activation, batch.content, followed.neurons)
        if gate:
            followed.add_gate(language, seen)
        else:
            followed.add(language, seen, where)
        return activation

    layer, site = place
    hooks: list[ForwardHook] = [(SITES[site].hook_name(layer), partial(receive, False))]
    return [*hooks, (f"blocks.{layer}.{GATE}", partial(receive, True))] if fires(model, site) else hooks


def _chosen(
    activation: Tensor, content: Bool[Tensor, "batch pos"], neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "row neuron"]:
    return activation.flatten(2)[content][:, neurons.to(activation.device)]
