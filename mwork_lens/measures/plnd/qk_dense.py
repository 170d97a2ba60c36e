"""The exact change of the attention pattern that query and key neurons make, by tensor operations.

A *unit* is a neuron in one query head that it reaches. Blocks of units, and of rows with the keys that they see, stay
in a processor's cache.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention, least_log

ELEMENTS_AT_ONCE = 2**18
"""Entries of [unit, query, key] held at a time."""
ROWS_AT_ONCE = 128
LOST = (
    "In this text attention scores lie so far apart that the softmax gave keys no weight at all in this precision, and "
    "switching a neuron off would bring them back. Which keys these are cannot be told in a layer with a window or "
    "biases between positions, nor from large scores in half precision: load the model with a wider dtype ('float64'), "
    "or leave the layer out with layers=."
)
"""Where weights may have been lost that count."""

PatternSite = Literal["q", "k"]


@dataclass(frozen=True)
class _Units:
    """Neurons in one query head: Δ = Σ_part by_query_i by_key_j + shrink R − centre Σ_e level_e k̃_e."""

    attention: Attention
    head: int
    by_query: Float[Tensor, "unit query part"]
    by_key: Float[Tensor, "unit part key"]
    shrink: Float[Tensor, "unit pos"]
    centre: Float[Tensor, "unit pos"] | None
    levels: tuple[Float[Tensor, "d_head query"], Float[Tensor, "d_head key"]] | None
    of_queries: bool

    @classmethod
    def of(cls, attention: Attention, site: PatternSite, neurons: Int[Tensor, " unit"], head: int) -> "_Units":
        """Those of ``neurons`` that reach the head, and zeros for the others."""
        group, of_queries = head // attention.heads_per_group, site == "q"
        side, others = attention.query_neurons, attention.keys[group]
        if not of_queries:
            side, others = attention.key_neurons, attention.queries[head]
        own = head if of_queries else group
        index, mine = neurons % len(others), (neurons // len(others) == own)[:, None]
        left = [part.flatten(0, 1)[neurons] * mine for part in attention.parts(side)]
        right = [others[d] for d in (index, attention.pair[index])[: len(left)]]
        by_query = torch.stack(left if of_queries else right, -1)
        by_key = torch.stack(right if of_queries else left, -2)
        shrink = side.shrink.flatten(0, 1)[neurons]
        centre = None if side.centre is None else side.centre.flatten(0, 1)[neurons]
        levels = None
        if side.level is not None:
            levels = (side.level[own], others) if of_queries else (others, side.level[own])
        return cls(attention, head, by_query, by_key, shrink, centre, levels, of_queries)

    def change(self, rows: slice, keys: slice) -> Float[Tensor, "unit query key"]:
        """−Δ for some rows and the keys that they see, after a soft cap."""
        change = einsum(-self.by_query[:, rows], self.by_key[..., keys], "u query part, u part key -> u query key")
        scores, geometry = self.attention.scores[self.head, rows, keys], self.attention.geometry
        if geometry.normalises:
            change.addcmul_(self._along(self.shrink, rows, keys), scores, value=-1)
        if self.centre is not None and self.levels is not None:
            queries, met = self.levels
            change.addcmul_(self._along(self.centre, rows, keys), queries[:, rows].T @ met[:, keys])
        return capped_change(geometry.cap, scores, change) if geometry.cap else change

    def _along(self, x: Float[Tensor, "unit pos"], rows: slice, keys: slice) -> Float[Tensor, "unit #query #key"]:
        return x[:, rows, None] if self.of_queries else x[:, None, keys]


def exact_squares(
    attention: Attention, site: PatternSite, neurons: Int[Tensor, " neuron"] | None = None
) -> Float[Tensor, " neuron"]:
    """Squared pattern change of neurons (head * d_head + index), of all by default, over the query heads they reach."""
    heads, d_head, device = *attention.queries.shape[:2], attention.pattern.device
    owners = heads if site == "q" else len(attention.keys)
    neurons = torch.arange(owners * d_head, device=device) if neurons is None else neurons
    squares = attention.pattern.new_zeros(len(neurons))
    at_once = max(1, ELEMENTS_AT_ONCE // (min(ROWS_AT_ONCE, attention.rows) * attention.keys.shape[-1]))
    for head in range(heads):
        reached = (neurons // d_head == head * owners // heads) | attention.geometry.across_heads
        for some in reached.nonzero().flatten().split(at_once):
            units = _Units.of(attention, site, neurons[some], head)
            for rows in attention.row_blocks(ROWS_AT_ONCE):
                keys = attention.seen_keys(rows)
                pattern, logs = attention.pattern[head, rows, keys], attention.log_pattern
                logs = None if logs is None else logs[head, rows, keys]
                kept = attention.kept if attention.doubtful else None
                changed = changed_rows(pattern, units.change(rows, keys), logs, kept, sinks=attention.geometry.sinks)
                squares[some] += changed.sum(-1)
    return squares


def changed_rows(
    pattern: Float[Tensor, "*#unit query key"],
    change: Float[Tensor, "unit query key"],
    log_pattern: Float[Tensor, "*#unit query key"] | None = None,
    kept: torch.dtype | None = None,
    *,
    sinks: bool,
) -> Float[Tensor, "unit query"]:
    """Σ_j (softmax(S + x) − P)² of each row for x = ``change``; uses ``change`` up.

    softmax(S + x) − P = P ∘ (expm1(x) − E) / (1 + E) with E = Σ_j P expm1(x). The softmax does not see a shift of x,
    so its mean under P is taken out first, which leaves E small. Rows with such x that the squares would overflow, or
    that weights which the softmax lost (in ``kept``) come back, are taken from their new scores instead.
    """
    kept = kept or change.dtype
    mean = (change * pattern).sum(-1)
    x = change.sub_(mean[..., None])
    sink = (1 - pattern.sum(-1)).clamp(min=0) if sinks else None
    limit = farthest(x.dtype, kept)
    far = (x.amax(-1) if sink is None else torch.maximum(x.amax(-1), -mean)) > limit
    turned = None
    if far.any():
        log_pattern = pattern.log() if log_pattern is None else log_pattern
        seen = x.masked_fill(log_pattern == -torch.inf, -torch.inf).amax(-1)
        far &= (seen if sink is None else torch.maximum(seen, -mean)) > limit
        of_sink = None if sink is None else (sink.expand_as(mean)[far], -mean[far])
        turned = _turned_rows(pattern.expand_as(x)[far], log_pattern.expand_as(x)[far], x[far], of_sink, kept)
    weighted = x.clamp_(max=limit).expm1_().mul_(pattern)
    total = weighted.sum(-1)
    if sink is not None:
        total += sink * torch.expm1(-mean)
    weighted.addcmul_(total[..., None], pattern, value=-1)
    squares = (torch.linalg.vector_norm(weighted, dim=-1) / (1 + total)).square()
    return squares if turned is None else squares.masked_scatter_(far, turned)


def _turned_rows(
    pattern: Float[Tensor, "row key"],
    log_pattern: Float[Tensor, "row key"],
    change: Float[Tensor, "row key"],
    sink: tuple[Float[Tensor, " row"], Float[Tensor, " row"]] | None,
    kept: torch.dtype,
) -> Float[Tensor, " row"]:
    """The same without regard to small differences, for any change; ``sink`` is its weight and its change."""
    unknown = log_pattern.isnan()
    scores = (log_pattern + change).masked_fill_(unknown, -torch.inf)
    if (unknown & (change + least_log(kept) > scores.amax(-1, keepdim=True) - negligible(kept))).any():
        raise ValueError(LOST)
    if sink is not None:
        weight, its_change = sink
        scores = torch.cat([scores, (weight.log() + its_change)[:, None]], -1)
    return (scores.softmax(-1)[:, : pattern.shape[-1]] - pattern).square().sum(-1)


def farthest(dtype: torch.dtype, kept: torch.dtype) -> float:
    """Rows where a score grows by more are taken from their new scores: squares could overflow, weights come back."""
    return min(0.45 * math.log(torch.finfo(dtype).max), -least_log(kept) - negligible(kept))


def negligible(kept: torch.dtype) -> float:
    """Below the largest new score by so much a weight does not count."""
    return 4 - math.log(torch.finfo(kept).eps)


def capped_change(
    cap: float, scores: Float[Tensor, "query key"], change: Float[Tensor, "unit query key"]
) -> Float[Tensor, "unit query key"]:
    """cap tanh((R + x) / cap) − cap tanh(R / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    after = torch.tanh((scores + change) / cap)
    return cap * torch.tanh(change / cap) * (1 - torch.tanh(scores / cap) * after)
