"""What neurons read: where in a corpus each is strongest, and how often and how much it is active by language."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import SITES, ExactSum, ForwardHook, HookedModel, Plan, Reducer, Running, TokenBatch, stream

GATE = "mlp.hook_pre"
"""What the feed-forward's nonlinearity reads: a neuron fires where this is above zero."""

Place = tuple[int, str]
Places = Mapping[Place, Int[Tensor, " _"]]
"""The neurons to follow, by layer and site; one after the other they are an axis ``neuron``."""


@dataclass(frozen=True)
class Strongest:
    """The activations of largest absolute value of each neuron."""

    values: Float[Tensor, "neuron rank"]
    """With their sign, strongest first."""
    where: Int[Tensor, "neuron rank 3"]
    """Language, passage and position of each; -1 where there are fewer."""

    def add(self, other: "Strongest") -> None:
        """Take in others; of equally strong ones those that come first in the corpus stay."""
        values, where = torch.cat([self.values, other.values], 1), torch.cat([self.where, other.where], 1)
        strength = torch.where(where[..., 0] < 0, -1, values.abs())
        order = torch.arange(values.shape[1]).expand_as(values)
        for key in (*reversed(where.unbind(-1)), -strength):
            order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
        order = order[:, : self.values.shape[1]]
        self.values.copy_(values.gather(1, order))
        self.where.copy_(where.gather(1, order[..., None].expand(-1, -1, 3)))


@dataclass(frozen=True)
class Activity(Reducer):
    """What some neurons do on the ordinary tokens of a corpus."""

    positions: Int[Tensor, " language"]
    fired: Int[Tensor, "language neuron"]
    """Positions where each neuron fires; 0 where it does not belong to a nonlinearity."""
    total: ExactSum
    magnitude: ExactSum
    """``[language, neuron]``: sums of activations and of their absolute values."""
    strongest: Strongest

    @classmethod
    def empty(cls, plan: Plan, neurons: int, contexts: int) -> "Activity":
        """On no tokens."""
        shape = (len(plan.encoded), neurons)
        return cls(
            **Reducer.start(plan),
            positions=torch.zeros(len(plan.encoded), dtype=torch.long),
            fired=torch.zeros(shape, dtype=torch.long),
            total=ExactSum.zeros(*shape),
            magnitude=ExactSum.zeros(*shape),
            strongest=Strongest(torch.zeros(neurons, contexts), torch.full((neurons, contexts, 3), -1)),
        )

    def update(self, batch: TokenBatch, language: int, neurons: Mapping[str, Tensor]) -> None:
        """Add a batch of one language, by its number.

        Raises:
            ValueError: if it is in already.
            OverflowError: if a sum reaches 7e13.
        """
        self.claim(batch)
        rows, positions = (axis.cpu() for axis in batch.content.nonzero(as_tuple=True))
        self.positions[language] += len(rows)
        self.fired[language] += neurons["fired"]
        self.total.add(ExactSum.of(neurons["total"][None]), language)
        self.magnitude.add(ExactSum.of(neurons["magnitude"][None]), language)
        where = torch.stack([torch.full_like(rows, language), torch.tensor(batch.rows)[rows], positions], 1)
        self.strongest.add(Strongest(neurons["strongest"], where[neurons["where"]]))


def follow(model: HookedModel, places: Places, plan: Plan, *, contexts: int, progress: bool) -> Activity:
    """Stream a corpus through the model."""
    activity = Activity.empty(plan, sum(map(len, places.values())), contexts)
    reader, languages = _Reader(model, places, contexts), list(plan.encoded)
    for batch, _ in stream(model, plan, reader.hooks(), reader.running, progress="reading" if progress else None):
        activity.update(batch, languages.index(batch.language), reader.taken())
    return activity


def fires(model: HookedModel, site: str) -> bool:
    """Whether neurons of a site fire or not: those behind the feed-forward's nonlinearity."""
    return site == "mlp" and f"blocks.0.{GATE}" in model.hook_dict


class _Reader:
    """What hooks make of the neurons' activations in the running batch, by layer and site."""

    def __init__(self, model: HookedModel, places: Places, contexts: int) -> None:
        self.model, self.places, self.contexts, self.running = model, places, contexts, Running()
        self.seen: dict[Place, dict[str, Tensor]] = {place: {} for place in places}

    def hooks(self) -> list[ForwardHook]:
        activations = [
            (SITES[site].hook_name(layer), partial(self._read, (layer, site))) for layer, site in self.places
        ]
        firing = [place for place in self.places if fires(self.model, place[1])]
        return [
            *activations,
            *((f"blocks.{layer}.{GATE}", partial(self._count, (layer, site))) for layer, site in firing),
        ]

    def _of(self, place: Place, activation: Tensor) -> Float[Tensor, "neuron row"]:
        """The neurons' values at the ordinary tokens."""
        neurons = self.places[place].to(activation.device)
        return activation.flatten(2)[self.running.batch.content][:, neurons].t()

    def _count(self, place: Place, activation: Tensor, hook: Any = None) -> Tensor:
        self.seen[place]["fired"] = (self._of(place, activation) > 0).sum(1).cpu()
        return activation

    def _read(self, place: Place, activation: Tensor, hook: Any = None) -> Tensor:
        values = self._of(place, activation).cpu().float()
        where = values.abs().topk(min(self.contexts, values.shape[1]), dim=1).indices
        wide = values.double()
        sums = {"total": wide.sum(1), "magnitude": wide.abs().sum(1)}
        self.seen[place] |= {**sums, "strongest": values.gather(1, where), "where": where}
        return activation

    def taken(self) -> dict[str, Tensor]:
        """What was read, over all neurons, once the batch is through."""
        for place, neurons in self.places.items():
            self.seen[place].setdefault("fired", torch.zeros(len(neurons), dtype=torch.long))
        return {name: torch.cat([seen[name] for seen in self.seen.values()]) for name in next(iter(self.seen.values()))}
