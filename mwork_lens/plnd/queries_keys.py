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
from .selection import Estimate, Selection, refine
from .third_order import third_order_squares

ELEMENTS_AT_ONCE = 2**18
"""Entries of [neuron, query, key] held at a time: few enough to stay in a processor's cache."""
ROWS_AT_ONCE = 128
WORTH_AN_ESTIMATE = 2**21
"""From so many entries of [neuron, query, key] on, a third-order estimate costs less than the exact form."""


def pattern_change(model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer.

    Its screen gives the same active neurons from a second-order estimate (``screening.py``) of all of them, a
    third-order one (``third_order.py``) of those near the cut, and the exact score of those that are still nearer.

    Args:
        model: a hooked model.
        layer: which layer.
        rotated_neurons: take the coordinates of q and k after normalisation and rotation as neurons, as the paper
            does; deactivating a column of W_Q or W_K acts before these.
    """
    geometry = Geometry.of(model, layer, rotated_neurons=rotated_neurons)

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

    return LayerMeasure(geometry.reads, score, None if geometry.across_heads and not rotated_neurons else screen)


def _screened(attention: Attention, selection: Selection) -> dict[str, tuple[Tensor, Tensor]]:
    return {site: _refined(attention, selection, site) for site in _SQUARES}


def _refined(attention: Attention, selection: Selection, site: str) -> tuple[Tensor, Tensor]:
    """One site's scores, exact where they decide the selection.

    In a single row the second-order screen is off by up to its bound u on |Δ|; over many rows errors average out, so
    its β starts at 1/8 + 8 / rows (at most 1). The third-order estimate is off by about u², but u bounds the largest
    of a row where its typical Δ would do, so it takes u^1.5; β starts at an eighth of the screen's. Both are then
    measured on the neurons that are refined.
    """
    rows = attention.rows
    screened = screen_queries(attention) if site == "q" else screen_keys(attention)
    beta = min(1.0, 0.125 + 8 / rows)

    def better(neurons: Tensor) -> Estimate:
        if attention.cap or len(neurons) * attention.pattern[0].numel() < WORTH_AN_ESTIMATE:
            return Estimate(screened.squares[neurons].div(rows).sqrt(), screened.uncertainty[neurons], beta)
        squares = third_order_squares(attention, screened, neurons, site)
        return Estimate((squares / rows).sqrt(), screened.uncertainty[neurons].pow(1.5), beta / 8)

    def exact(neurons: Tensor) -> Estimate:
        squares = _SQUARES[site](attention, neurons)
        return Estimate((squares / rows).sqrt(), torch.zeros_like(squares))

    return refine(Estimate((screened.squares / rows).sqrt(), screened.uncertainty, beta), (better, exact), selection)


@dataclass(frozen=True)
class _Units:
    """Some neurons in one query head that they reach: Δ = Σ_part query_part_i key_part_j + shrink R."""

    head: int
    by_query: Float[Tensor, "unit query part"]
    by_key: Float[Tensor, "unit part key"]
    shrink: Tensor
    """``[unit, query, 1]`` for query neurons, ``[unit, 1, key]`` for key neurons."""


def _query_units(attention: Attention, neurons: Int[Tensor, " unit"], head: int) -> _Units:
    own, d_head = attention.query_neurons, attention.queries.shape[1]
    index, mine, group = neurons % d_head, (neurons // d_head == head)[:, None], head // attention.heads_per_group
    left = [part.flatten(0, 1)[neurons] * mine for part in attention.parts(own)]
    right = [attention.keys[group, d] for d in (index, attention.pair[index])[: len(left)]]
    return _Units(head, torch.stack(left, -1), torch.stack(right, -2), own.shrink.flatten(0, 1)[neurons][..., None])


def _key_units(attention: Attention, neurons: Int[Tensor, " unit"], head: int) -> _Units:
    own, d_head = attention.key_neurons, attention.queries.shape[1]
    index, mine = neurons % d_head, (neurons // d_head == head // attention.heads_per_group)[:, None]
    right = [part.flatten(0, 1)[neurons] * mine for part in attention.parts(own)]
    left = [attention.queries[head, d] for d in (index, attention.pair[index])[: len(right)]]
    return _Units(head, torch.stack(left, -1), torch.stack(right, -2), own.shrink.flatten(0, 1)[neurons][:, None])


def _change(attention: Attention, units: _Units, rows: slice, keys: slice) -> Float[Tensor, "unit query key"]:
    """−Δ for some rows and the keys that they see; through the soft cap where there is one."""
    scores = attention.scores[units.head, rows, keys]
    change = einsum(-units.by_query[:, rows], units.by_key[..., keys], "u query part, u part key -> u query key")
    if attention.normalises:
        per_query = units.shrink.shape[-1] == 1
        change.addcmul_(units.shrink[:, rows] if per_query else units.shrink[..., keys], scores, value=-1)
    if attention.cap:
        return _capped_change(attention.cap, scores, change)
    return change


def _pattern_difference(
    pattern: Float[Tensor, "query key"], change: Float[Tensor, "unit query key"]
) -> Float[Tensor, " unit"]:
    """‖softmax(S + x) − P‖² for x = ``change``, with small differences kept; uses ``change`` up.

    softmax(S + x) − P = P ∘ (expm1(x) − E) / (1 + E) with E = Σ_j P expm1(x). The softmax does not see a shift of x,
    so its mean under P is taken out first, which leaves E small.
    """
    mean = (change * pattern).sum(-1)
    sink = (1 - pattern.sum(-1)).clamp(min=0)  # what an attention sink takes; its score does not change
    limit = 0.9 * math.log(torch.finfo(change.dtype).max)
    weighted = change.sub_(mean[..., None]).clamp_(max=limit).expm1_().mul_(pattern)
    total = weighted.sum(-1) + sink * torch.expm1(-mean)
    weighted.addcmul_(total[..., None], pattern, value=-1)
    return (torch.linalg.vector_norm(weighted, dim=-1) / (1 + total)).square().sum(-1)


def _capped_change(
    cap: float, scores: Float[Tensor, "query key"], change: Float[Tensor, "unit query key"]
) -> Float[Tensor, "unit query key"]:
    """cap tanh((R + x) / cap) − cap tanh(R / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    after = torch.tanh((scores + change) / cap)
    return cap * torch.tanh(change / cap) * (1 - torch.tanh(scores / cap) * after)


def query_squares(attention: Attention, neurons: Int[Tensor, " neuron"] | None = None) -> Float[Tensor, " neuron"]:
    """Squared pattern change of query neurons (neuron = head * d_head + index), of all of them by default."""
    return _squares(attention, neurons, len(attention.queries), _query_units)


def key_squares(attention: Attention, neurons: Int[Tensor, " neuron"] | None = None) -> Float[Tensor, " neuron"]:
    """Squared pattern change of key neurons (neuron = group * d_head + index), of all of them by default."""
    return _squares(attention, neurons, len(attention.keys), _key_units)


Squares = Callable[..., Tensor]
_SQUARES: dict[str, Squares] = {"q": query_squares, "k": key_squares}


def _squares(
    attention: Attention, neurons: Int[Tensor, " neuron"] | None, owners: int, units_of: Callable[..., _Units]
) -> Float[Tensor, " neuron"]:
    """Add up every neuron's change over the query heads that it reaches; ``owners`` heads hold the neurons.

    By blocks of units, and of rows with the keys that they see, so that a block stays in a processor's cache.
    """
    heads, d_head, device = *attention.queries.shape[:2], attention.pattern.device
    neurons = torch.arange(owners * d_head, device=device) if neurons is None else neurons
    squares = attention.pattern.new_zeros(len(neurons))
    at_once = max(1, ELEMENTS_AT_ONCE // (min(ROWS_AT_ONCE, attention.rows) * attention.keys.shape[-1]))
    for head in range(heads):
        reached = (neurons // d_head == head * owners // heads) | attention.across_heads
        for some in reached.nonzero().flatten().split(at_once):
            squares[some] += _unit_squares(attention, units_of(attention, neurons[some], head))
    return squares


def _unit_squares(attention: Attention, units: _Units) -> Float[Tensor, " unit"]:
    squares = attention.pattern.new_zeros(len(units.by_query))
    for rows in attention.row_blocks(ROWS_AT_ONCE):
        keys = attention.seen_keys(rows)
        change = _change(attention, units, rows, keys)
        squares += _pattern_difference(attention.pattern[units.head, rows, keys], change)
    return squares
