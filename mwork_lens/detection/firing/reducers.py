"""What a pass counts of each feed-forward neuron's gate: how often it fires, sums, document means, histograms."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...model.architecture import HookedModel, at_least_float32
from ...model.forward import Plan, Progress, Running, TokenBatch, stream
from ...model.gates import Gate, gates_of
from ...model.reducers import ExactSum, Reducer
from ...neurons import NeuronSpace
from ...store import storable

ROWS_AT_ONCE = 256
"""Tokens whose bins are found at a time."""


@dataclass(frozen=True)
class BatchFiring:
    """One batch, by layer and neuron; on the CPU."""

    counts: Int[Tensor, "layer neuron"]
    """Ordinary tokens on which the gate's activation is above zero."""
    sums: ExactSum
    squares: ExactSum
    means: Float[Tensor, "document layer neuron"] | None
    """Of each document."""


@dataclass(frozen=True)
class FiringSums(Reducer, kind="firing_sums"):
    """What one language's ordinary tokens add up to."""

    counts: Int[Tensor, "layer neuron"]
    sums: ExactSum
    squares: ExactSum
    tokens: Int[Tensor, ""]
    means: Float[Tensor, "document layer neuron"]
    """Of each document, 0 where its batch is not in this yet; of no document where they are not kept."""

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str, made_with: str, documents: int) -> "FiringSums":
        """Of no tokens."""
        shape = space.n_layers, space.d_mlp
        return cls(
            **Reducer.start(plan, language, made_with),
            counts=torch.zeros(shape, dtype=torch.int64),
            sums=ExactSum.zeros(*shape),
            squares=ExactSum.zeros(*shape),
            tokens=torch.tensor(0),
            means=torch.zeros(documents, *shape),
        )

    def update(self, batch: TokenBatch, observed: BatchFiring) -> None:
        """Add a batch; refused where :meth:`claim` or :meth:`ExactSum.add` refuses."""
        self.claim(batch)
        self.sums.add(observed.sums)
        self.squares.add(observed.squares)
        self.counts.add_(observed.counts)
        self.tokens.add_(batch.content.sum().cpu())
        if observed.means is not None:
            self.means[list(batch.rows)] = observed.means


def firing_of(
    model: HookedModel, batches: Plan, *, by_document: bool, progress: Progress = None
) -> Iterator[tuple[TokenBatch, BatchFiring]]:
    """Each batch with what its gates show."""
    running, seen = Running(), dict[int, tuple[Tensor, Tensor, Tensor]]()

    def read(layer: int, gate: Gate, activation: Tensor, hook: object = None) -> Tensor:
        values = at_least_float32(gate.values(activation))
        content = running.beside(activation).content.to(values.dtype)
        tokens, flat = content.flatten(), values.flatten(0, 1)
        sums = torch.bmm(content[:, None], values)[:, 0]
        seen[layer] = (tokens @ (flat > 0).to(values.dtype), sums, tokens @ flat.square())
        return activation

    hooks = [(gate.hook, partial(read, layer, gate)) for layer, gate in enumerate(gates_of(model))]
    for batch, states in stream(model, batches, hooks, running, progress=progress):
        parts = zip(*(seen[layer] for layer in range(len(hooks))), strict=True)
        counts, sums, squares = (torch.stack([each.to(states.device) for each in part]) for part in parts)
        means = (sums / batch.scored).movedim(1, 0).float().cpu() if by_document else None
        sums, squares = (ExactSum.of(each[None]) for each in (sums.double().sum(1), squares))
        yield batch, BatchFiring(counts.long().cpu(), sums, squares, means)
        seen.clear()


@storable
@dataclass(frozen=True)
class Bins:
    """Bins of each neuron's activation, equally wide, and one on either side for what lies outside."""

    low: Float[Tensor, "layer neuron"]
    high: Float[Tensor, "layer neuron"]
    inner: int
    """How many lie between these."""
    layers: Sequence[int]
    """Which layers the rows are."""

    @property
    def number(self) -> int:
        """Of all bins."""
        return self.inner + 2

    @property
    def identity(self) -> str:
        """SHA-256, shortened."""
        edges = b"".join(each.numpy().tobytes() for each in (self.low, self.high))
        return hashlib.sha256(f"{self.inner} {list(self.layers)}".encode() + edges).hexdigest()[:16]


@dataclass(frozen=True)
class FiringHistograms(Reducer, kind="firing_histograms"):
    """One language's ordinary tokens by activation."""

    tokens: Int[Tensor, "layer neuron bin"]

    @classmethod
    def empty(cls, bins: Bins, plan: Plan, language: str, made_with: str) -> "FiringHistograms":
        """Of no tokens."""
        tokens = torch.zeros(*bins.low.shape, bins.number, dtype=torch.int32)
        return cls(**Reducer.start(plan, language, made_with), tokens=tokens)

    def update(self, batch: TokenBatch, layers: Sequence[Int[Tensor, "neuron bin"]]) -> None:
        """Add a batch, a tensor for each layer; refused where :meth:`claim` refuses."""
        self.claim(batch)
        for tokens, of_batch in zip(self.tokens, layers, strict=True):
            tokens += of_batch


def histograms_of(
    model: HookedModel, bins: Bins, batches: Plan, *, progress: Progress = None
) -> Iterator[tuple[TokenBatch, list[Int[Tensor, "neuron bin"]]]]:
    """Each batch with the histograms of its ordinary tokens, by layer; on the CPU."""
    running, seen, gates = Running(), dict[int, Tensor](), gates_of(model)

    def read(row: int, gate: Gate, activation: Tensor, hook: object = None) -> Tensor:
        values = at_least_float32(gate.values(activation))[running.beside(activation).content]
        low, high = (edge[row].to(values) for edge in (bins.low, bins.high))
        of = torch.arange(len(low), device=values.device) * bins.number
        total = torch.zeros(len(low) * bins.number, dtype=torch.int64, device=values.device)
        for rows in values.split(ROWS_AT_ONCE):
            inner = ((rows - low) / (high - low) * bins.inner).floor().clamp_(-1, bins.inner).long() + 1
            total += torch.bincount((inner + of).flatten(), minlength=len(total))
        seen[row] = total.view(len(low), bins.number).int()
        return activation

    hooks = [(gates[layer].hook, partial(read, row, gates[layer])) for row, layer in enumerate(bins.layers)]
    for batch, _ in stream(model, batches, hooks, running, progress=progress):
        yield batch, [seen[row].cpu() for row in range(len(hooks))]
        seen.clear()
