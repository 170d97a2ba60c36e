"""The change that deactivating a query or key neuron makes: the attention pattern moves.

For a query neuron d the scores become R'_ijd = ρ_id (R_ij − u_ijd), with
u_ijd = q̂_id (c_id k̃_jd + s_id k̃_j,pair(d)) / m, and score² = Σ_ij (softmax_j(f(R'_ijd)) − P_ij)², where f is the
soft cap, biases, masks and sinks (P already holds them). For a key neuron the roles of q and k swap, and the squares
add up over the query heads of its group.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel
from .attention import KEYS, PATTERN, QUERIES, Attention, Geometry
from .measure import Activations, LayerMeasure, SiteMasks, SiteScores, root_mean
from .screening import screen_keys, screen_queries
from .selection import Selection, refine

ELEMENTS_AT_ONCE = 2**19
"""Entries of [neuron, query, key] held at a time: few enough to stay in a processor's cache."""
ROWS_AT_ONCE = 128


def pattern_change(model: HookedModel, layer: int) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer.

    Its screen gives the same active neurons from a second-order estimate (``screening.py``) of all of them and the
    exact score of those near the cut.
    """
    geometry = Geometry.of(model, layer)

    def documents(seen: Activations, batch: TokenBatch) -> Iterator[Attention]:
        for i, length in enumerate(batch.lengths):
            yield geometry.attention(
                seen[QUERIES][i, :length],
                seen[KEYS][i, :length],
                seen[PATTERN][i, :, :length, :length],
                batch.content[i, :length],
            )

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        found = [{site: squares(a) for site, squares in _SQUARES.items()} for a in documents(seen, batch)]
        return {site: root_mean(torch.stack([f[site] for f in found]), batch) for site in _SQUARES}

    def screen(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        found = [_screened(attention, selection) for attention in documents(seen, batch)]
        scores = {site: torch.stack([f[site][0] for f in found]) for site in _SQUARES}
        return scores, {site: torch.stack([f[site][1] for f in found]) for site in _SQUARES}

    return LayerMeasure(geometry.reads, score, None if geometry.across_heads else screen)


def _screened(attention: Attention, selection: Selection) -> dict[str, tuple[Tensor, Tensor]]:
    rows = attention.rows
    result = {}
    for site, squares in _SQUARES.items():
        screened = screen_queries(attention) if site == "q" else screen_keys(attention)

        def exact(neurons: Tensor, squares: Squares = squares) -> Tensor:
            return (squares(attention, neurons) / rows).sqrt()

        result[site] = refine((screened.squares / rows).sqrt(), screened.uncertainty, exact, selection, rows)
    return result


@dataclass(frozen=True)
class _InHead:
    """Some neurons in one query head, where Δ = Σ_part query_part_i key_part_j + shrink R."""

    head: int
    by_query: Float[Tensor, "neuron query part"]
    by_key: Float[Tensor, "neuron part key"]
    shrink: Tensor
    """``[neuron, query, 1]`` for query neurons, ``[neuron, 1, key]`` for key neurons."""


def _queries_in_head(attention: Attention, neurons: Int[Tensor, " neuron"], head: int) -> _InHead:
    own, d_head = attention.query_neurons, attention.queries.shape[1]
    index, mine = neurons % d_head, (neurons // d_head == head)[:, None]
    keys = attention.keys[head // attention.heads_per_group]
    left = [part.flatten(0, 1)[neurons] * mine for part in (own.direct, own.paired)]
    right = [keys[d] for d in (index, attention.pair[index])]
    shrink = own.shrink.flatten(0, 1)[neurons][..., None]
    return _InHead(head, torch.stack(left, -1), torch.stack(right, -2), shrink)


def _keys_in_head(attention: Attention, neurons: Int[Tensor, " neuron"], head: int) -> _InHead:
    own, d_head = attention.key_neurons, attention.queries.shape[1]
    index, mine = neurons % d_head, (neurons // d_head == head // attention.heads_per_group)[:, None]
    left = [attention.queries[head, d] for d in (index, attention.pair[index])]
    right = [part.flatten(0, 1)[neurons] * mine for part in (own.direct, own.paired)]
    shrink = own.shrink.flatten(0, 1)[neurons][:, None]
    return _InHead(head, torch.stack(left, -1), torch.stack(right, -2), shrink)


def _mean_delta(attention: Attention, units: _InHead) -> Float[Tensor, "neuron query"]:
    """Σ_j P_ij Δ_ij of every neuron and row, from matrix products with P alone."""
    pattern, scores = attention.pattern[units.head], attention.scores[units.head]
    seen = einsum(pattern, units.by_key, "query key, neuron part key -> neuron query part")
    mean = (units.by_query * seen).sum(-1)
    if not attention.normalises:
        return mean
    weighted = pattern * scores
    if units.shrink.shape[-1] == 1:
        return torch.addcmul(mean, units.shrink[..., 0], weighted.sum(-1))
    return mean + units.shrink[:, 0] @ weighted.T


def _centred_change(
    attention: Attention, units: _InHead, mean: Float[Tensor, "neurons queries"], block: slice, rows: slice, keys: slice
) -> Float[Tensor, "neuron query key"]:
    """Σ_j P_ij Δ_ij − Δ for some neurons, some rows and the keys that they see."""
    shift = mean[block, rows, None]
    by_query = torch.cat([-units.by_query[block, rows], shift], -1)
    by_key = units.by_key[block, :, keys]
    by_key = torch.cat([by_key, torch.ones_like(by_key[:, :1])], 1)
    change = einsum(by_query, by_key, "neuron query part, neuron part key -> neuron query key")
    if not attention.normalises:
        return change
    per_query = units.shrink.shape[-1] == 1
    shrink = units.shrink[block, rows] if per_query else units.shrink[block, :, keys]
    return change.addcmul_(shrink, attention.scores[units.head, rows, keys], value=-1)


def _pattern_difference(
    pattern: Float[Tensor, "query key"],
    change: Float[Tensor, "neuron query key"],
    mean: Float[Tensor, "neuron query"],
) -> Float[Tensor, " neuron"]:
    """‖softmax(S + x) − P‖² for x = ``change`` − ``mean``, with small differences kept; uses ``change`` up.

    softmax(S + x) − P = P ∘ (expm1(x) − E) / (1 + E) with E = Σ_j P expm1(x). The softmax does not see a shift of x,
    so its mean under P is taken out first, which leaves E small.
    """
    sink = (1 - pattern.sum(-1)).clamp(min=0)  # what an attention sink takes; its score does not change
    limit = 0.9 * math.log(torch.finfo(change.dtype).max)
    weighted = change.clamp_(max=limit).expm1_().mul_(pattern)
    total = weighted.sum(-1) + sink * torch.expm1(mean)
    weighted.addcmul_(total[..., None], pattern, value=-1)
    return (torch.linalg.vector_norm(weighted, dim=-1) / (1 + total)).square().sum(-1)


def _capped_change(
    cap: float, scores: Float[Tensor, "query key"], change: Float[Tensor, "neuron query key"]
) -> Float[Tensor, "neuron query key"]:
    """cap tanh((R + x) / cap) − cap tanh(R / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    after = torch.tanh((scores + change) / cap)
    return cap * torch.tanh(change / cap) * (1 - torch.tanh(scores / cap) * after)


def query_squares(attention: Attention, neurons: Int[Tensor, " neuron"] | None = None) -> Float[Tensor, " neuron"]:
    """Squared pattern change of query neurons (neuron = head * d_head + index), of all of them by default."""
    heads, d_head = attention.queries.shape[:2]
    return _squares(attention, _all_or(neurons, heads * d_head, attention), heads, _queries_in_head)


def key_squares(attention: Attention, neurons: Int[Tensor, " neuron"] | None = None) -> Float[Tensor, " neuron"]:
    """Squared pattern change of key neurons (neuron = group * d_head + index), of all of them by default."""
    groups, d_head = attention.keys.shape[:2]
    return _squares(attention, _all_or(neurons, groups * d_head, attention), groups, _keys_in_head)


Squares = Callable[..., Tensor]
_SQUARES: dict[str, Squares] = {"q": query_squares, "k": key_squares}


def _all_or(neurons: Tensor | None, width: int, attention: Attention) -> Int[Tensor, " neuron"]:
    return torch.arange(width, device=attention.pattern.device) if neurons is None else neurons


def _squares(
    attention: Attention, neurons: Int[Tensor, " neuron"], owners: int, in_head: Callable[..., _InHead]
) -> Float[Tensor, " neuron"]:
    """Add up every neuron's change over the query heads that it reaches; ``owners`` heads hold the neurons."""
    heads, d_head = attention.queries.shape[:2]
    squares = attention.pattern.new_zeros(len(neurons))
    for head in range(heads):
        reached = neurons // d_head == head * owners // heads
        which = (reached | attention.across_heads).nonzero().flatten()
        if len(which):
            squares[which] += _squares_in_head(attention, in_head(attention, neurons[which], head), len(which))
    return squares


def _squares_in_head(attention: Attention, units: _InHead, number: int) -> Float[Tensor, " neuron"]:
    """By blocks of rows, with the keys that they see, and of neurons, so that a block stays in cache."""
    squares = attention.pattern.new_zeros(number)
    mean = torch.zeros_like(units.by_query[..., 0]) if attention.cap else _mean_delta(attention, units)
    for start in range(0, attention.rows, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        keys = attention.seen_keys(rows)
        pattern = attention.pattern[units.head, rows, keys]
        at_once = max(1, ELEMENTS_AT_ONCE // pattern.numel())
        for first in range(0, number, at_once):
            block = slice(first, first + at_once)
            change, shift = _centred_change(attention, units, mean, block, rows, keys), mean[block, rows]
            if attention.cap:
                change = _capped_change(attention.cap, attention.scores[units.head, rows, keys], change)
                shift = -(change * pattern).sum(-1)
                change += shift[..., None]
            squares[block] += _pattern_difference(pattern, change, shift)
    return squares
