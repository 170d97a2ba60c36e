"""One document's attention in one layer: what every query and key score is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32
from ...model.heads import HeadNorm, rotates
from ...model.rotary import Rotary
from ..measure import Activations
from .sides import Coefficients, Side

EXPLAINED = 0.05
"""How far log P may be from what scores say, in half precision too, for the scores to be all that P is made of."""
READS = ("attn.hook_q", "attn.hook_k", "attn.hook_pattern")


@dataclass(frozen=True)
class Attention:
    """In float32 at least; rows without content are left out."""

    geometry: "Geometry"
    """Of the layer; for rotated neurons as if it neither normalised nor rotated."""
    pattern: Float[Tensor, "head query key"]
    scores: Float[Tensor, "head query key"]
    """Raw scores R = q̃ · k̃ / m, before soft cap, biases and mask."""
    queries: Float[Tensor, "head d_head query"]
    """q̃, rotated."""
    keys: Float[Tensor, "group d_head key"]
    """k̃, rotated."""
    query_neurons: Coefficients
    key_neurons: Coefficients
    positions: Int[Tensor, " query"] | None
    """The position of each row where a query sees no later key; None where it may see all."""
    kept: torch.dtype
    """What the model keeps the pattern in: weights below its normal numbers are rounded roughly, or lost."""

    @property
    def rows(self) -> int:
        """Queries that are scored."""
        return self.pattern.shape[1]

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key head."""
        return len(self.queries) // len(self.keys)

    @cached_property
    def log_pattern(self) -> Float[Tensor, "head query key"] | None:
        """log P where its smallest weights are lost or rounded: for these f(R) − log Σ e^f(R). None where none is.

        −∞ for masked keys; NaN for weights that may be masked or lost, as these scores do not explain their row
        (a bias, a window).
        """
        by_head = [self._log_pattern(*of_head) for of_head in zip(self.pattern, self.scores, strict=True)]
        if all(logs is None for logs in by_head):
            return None
        return torch.stack([p.log() if logs is None else logs for p, logs in zip(self.pattern, by_head, strict=True)])

    def _log_pattern(
        self, pattern: Float[Tensor, "query key"], scores: Float[Tensor, "query key"]
    ) -> Float[Tensor, "query key"] | None:
        if not ((pattern < torch.finfo(self.kept).tiny) & self.sees).any():
            return None
        if cap := self.geometry.cap:
            scores = cap * torch.tanh(scores / cap)
        most, star = pattern.max(-1, keepdim=True)
        known, told = pattern.log(), scores - scores.gather(-1, star) + most.log()
        lost = self.sees & (told < math.log(torch.finfo(self.kept).tiny))
        if not lost.any():
            return None
        unexplained = self.sees & ~lost & ((known - told).abs() >= EXPLAINED)
        told[unexplained.any(-1)] = torch.nan
        return torch.where(lost & ((pattern == 0) | ~told.isnan()), told, known)

    @property
    def coarse(self) -> bool:
        """Whether the pattern loses weights that single precision holds, as it does in float16."""
        return torch.finfo(self.kept).tiny > torch.finfo(self.pattern.dtype).tiny

    @cached_property
    def doubtful(self) -> bool:
        """Whether such weights may be lost and cannot be told from masked ones."""
        return self.coarse and self.log_pattern is not None and bool(self.log_pattern.isnan().any())

    def with_small_weights(self) -> "Attention":
        """With the weights that a coarse pattern rounded or lost, as far as scores tell them."""
        if not self.coarse or self.log_pattern is None:
            return self
        told = self.log_pattern.exp()
        small = (self.pattern < torch.finfo(self.kept).tiny) & ~told.isnan()
        return replace(self, pattern=torch.where(small, told, self.pattern))

    @property
    def sees(self) -> Bool[Tensor, "#query key"]:
        """Which keys are not later than the query, where it sees no later ones."""
        numbers = torch.arange(self.keys.shape[-1], device=self.keys.device)
        return numbers[None] >= 0 if self.positions is None else numbers <= self.positions[:, None]

    @cached_property
    def pair(self) -> Int[Tensor, " d_head"]:
        """The coordinate that rotation mixes each coordinate with (itself where it is not rotated)."""
        rotary, keys = self.geometry.rotary, self.keys
        return rotary.pair if rotary else torch.arange(keys.shape[1], device=keys.device)

    def with_rotated_neurons(self) -> "Attention":
        """Coordinates of q̃ and k̃ as neurons: Δ_ij = q̃_id k̃_jd / m, as if nothing normalised or rotated them."""
        sides = (self.queries, self.keys)
        neurons = [Coefficients(torch.zeros_like(x), x / self.geometry.scale, torch.zeros_like(x)) for x in sides]
        plain = Side(self.geometry.scale, clip=None, norm=None, rotary=None)
        geometry = replace(self.geometry, rotary=None, query=plain, key=plain)
        return replace(self, geometry=geometry, query_neurons=neurons[0], key_neurons=neurons[1])

    def parts(self, neurons: Coefficients) -> Sequence[Float[Tensor, "head d_head pos"]]:
        """The coefficients of a neuron's coordinate and, where there is rotation, of its partner."""
        return (neurons.direct, neurons.paired) if self.geometry.rotary else (neurons.direct,)

    def row_blocks(self, size: int) -> Iterator[slice]:
        """All scored rows, ``size`` at a time."""
        return (slice(start, start + size) for start in range(0, self.rows, size))

    def seen_keys(self, rows: slice) -> slice:
        """The keys that these rows can see."""
        return slice(0, self.keys.shape[-1] if self.positions is None else int(self.positions[rows][-1]) + 1)


def wide_pattern(pattern: Float[Tensor, "*head query key"], *, sinks: bool) -> Float[Tensor, "*head query key"]:
    """In float32 at least; rows of half precision add up to 1 only roughly, and here do so again."""
    wide = at_least_float32(pattern)
    return wide if wide.dtype == pattern.dtype or sinks else wide / wide.sum(-1, keepdim=True)


def least_log(kept: torch.dtype) -> float:
    """The logarithm of the smallest weight of a softmax that such numbers keep: some flush what is not normal."""
    of = torch.finfo(kept)
    return math.log(of.tiny * of.eps if kept == torch.float16 else of.tiny)


@dataclass(frozen=True)
class Geometry:
    """What attention scores are made of in one layer, read from the model."""

    scale: float
    cap: float | None
    rotary: Rotary | None
    query: Side
    key: Side
    causal: bool
    sinks: bool
    """Whether every row also attends to a sink, which has a score but no key."""
    rotated_neurons: bool = False
    """Whether a neuron is a coordinate of q̃ and k̃, after normalisation and rotation (as in the paper)."""

    @property
    def _norms(self) -> tuple[HeadNorm, ...]:
        return tuple(side.norm for side in (self.query, self.key) if side.norm)

    @property
    def normalises(self) -> bool:
        """Whether a neuron rescales the others of its head; without it ``shrink`` is zero."""
        return bool(self._norms)

    @property
    def across_heads(self) -> bool:
        """Whether normalisation runs over all heads, so that a neuron rescales the other heads' scores too."""
        return any(norm.across_heads for norm in self._norms)

    @property
    def dense_only(self) -> bool:
        """Whether only ``qk_dense`` has its scores: a neuron moves more than itself and the size of its own head."""
        return any(norm.across_heads or norm.centred for norm in self._norms)

    @classmethod
    def of(cls, model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> "Geometry":
        """Read one layer; ValueError for scores that depend on q and k in a way without a closed form here."""
        cfg = model.cfg
        cap = getattr(cfg, "attn_scores_soft_cap", -1.0) or -1.0
        rotating = cfg.positional_embedding_type == "rotary" and rotates(model, layer)
        rotary = Rotary(model, layer) if rotating else None
        query, key = Side.of(model, layer, "q", rotary), Side.of(model, layer, "k", rotary)
        return cls(
            scale=query.scale,
            cap=float(cap) if cap > 0 else None,
            rotary=rotary,
            query=query,
            key=key,
            causal=getattr(cfg, "attention_dir", "causal") == "causal",
            sinks=bool(getattr(cfg, "use_attention_sinks", False)),
            rotated_neurons=rotated_neurons,
        )

    def documents(self, seen: Activations, batch: TokenBatch) -> Iterator[Attention]:
        """Every document of a batch, from what ``READS`` showed, without its padding."""
        for i, length in enumerate(batch.lengths):
            q, k, pattern = (seen[name][i] for name in READS)
            yield self.attention(q[:length], k[:length], pattern[:, :length, :length], batch.content[i, :length])

    def attention(
        self,
        q: Float[Tensor, "pos head d_head"],
        k: Float[Tensor, "pos group d_head"],
        pattern: Float[Tensor, "head pos pos"],
        content: Bool[Tensor, " pos"],
    ) -> Attention:
        """One document."""
        positions, (rows,) = torch.arange(len(content), device=q.device), content.nonzero(as_tuple=True)
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            rows = slice(first, last + 1)  # which copies nothing
        queries, query_neurons = self.query.turned(at_least_float32(q[rows]), positions[rows], len(content))
        keys, key_neurons = self.key.turned(at_least_float32(k), positions, len(content))
        by_group = rearrange(queries, "(group head) d query -> group head query d", group=len(keys))
        scores = by_group @ (keys / self.scale)[:, None]
        attention = Attention(
            geometry=self,
            pattern=wide_pattern(pattern[:, rows], sinks=self.sinks),
            scores=rearrange(scores, "group head query key -> (group head) query key"),
            queries=queries,
            keys=keys,
            query_neurons=query_neurons,
            key_neurons=key_neurons,
            positions=positions[rows] if self.causal else None,
            kept=pattern.dtype,
        ).with_small_weights()
        return attention.with_rotated_neurons() if self.rotated_neurons else attention
