"""A third-order estimate for some query and key neurons, between the screen of all and the exact form of a few.

With x = Σ_j P Δ − Δ the change of the pattern is P ∘ (expm1(x) − E) / (1 + E), E = Σ_j P expm1(x). To third order the
squares of row i add up to s_i + t_i, with s_i = Σ_j P² x² and t_i = Σ_j P² x³ − (Σ_j P x²) (Σ_j P² x). The estimate is
Σ_i s_i exp(t_i / s_i), which agrees to third order and cannot be negative. Beyond the moments that the screen has, it
takes Σ_j P Δ² and Σ_j P² Δ³.

Δ_ij = a_i f_j + b_i g_j + R_ij c_i h_j is a sum of three products, so Σ_j W Δⁿ is a sum, over monomials of degree n, of
a monomial in the row's factors (a, b, c) times (W ∘ R^γ) @ the same monomial in the keys' (f, g, h).
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from math import factorial, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention, Coefficients
from .screening import Moments, Screened

ROWS_AT_ONCE = 128
LARGEST_CORRECTION = 5.0
"""Where the third-order term is so many times the second-order one, neither means anything."""

Factors = Sequence[Tensor | None]
"""Of Δ: ``[head, neuron, query]`` or ``[neuron, key]``; None stands for ones."""


def third_order_squares(
    attention: Attention, screened: Screened, neurons: Int[Tensor, " neuron"], site: str
) -> Float[Tensor, " neuron"]:
    """Squared pattern changes of some neurons of ``q`` or ``k`` to third order; ``attention`` has no soft cap."""
    d_head, squares = attention.queries.shape[1], attention.pattern.new_zeros(len(neurons))
    for owner in (neurons // d_head).unique().tolist():
        some = (neurons // d_head == owner).nonzero().flatten()
        index = neurons[some] % d_head
        group, head = (
            (owner // attention.heads_per_group, owner % attention.heads_per_group) if site == "q" else (owner, None)
        )
        mine = slice(None) if head is None else slice(head, head + 1)
        moments = screened.moments.of(group, mine, index)
        heads = range(attention.heads_per_group * group, attention.heads_per_group * (group + 1))[mine]
        by_query, by_key = (_query_factors if site == "q" else _key_factors)(attention, owner, heads, index)
        for rows in attention.row_blocks(ROWS_AT_ONCE):
            here = [None if part is None else part[..., rows] for part in by_query]
            by_row = _row_squares(attention, moments.rows(rows), here, by_key, heads, rows)
            squares[some] += by_row.sum((0, 2))
    return squares


def _query_factors(attention: Attention, owner: int, heads: range, index: Tensor) -> tuple[Factors, Factors]:
    """(a, b, c) and (f, g, 1), without what the model does not have."""
    keys, own = attention.keys[owner // attention.heads_per_group], attention.query_neurons
    by_query = [part[owner, index][None] for part in _coefficients(attention, own)]
    by_key: list[Tensor | None] = [keys[d] for d in (index, attention.pair[index])[: len(by_query)]]
    return by_query, by_key + [None] * (len(by_query) - len(by_key))


def _key_factors(attention: Attention, owner: int, heads: range, index: Tensor) -> tuple[Factors, Factors]:
    """(a, b, 1) and (f, g, h), without what the model does not have."""
    queries = attention.queries[heads.start : heads.stop]
    by_key = [part[owner, index] for part in _coefficients(attention, attention.key_neurons)]
    by_query: list[Tensor | None] = [queries[:, d] for d in (index, attention.pair[index])[: len(by_key)]]
    return by_query + [None] * (len(by_key) - len(by_query)), by_key


def _coefficients(attention: Attention, own: Coefficients) -> list[Tensor]:
    """What of a, b, c the model has."""
    if attention.normalises:
        return [own.direct, own.paired, own.shrink]
    return list(attention.parts(own))


def _row_squares(
    attention: Attention, moments: Moments, by_query: Factors, by_key: Factors, heads: range, rows: slice
) -> Float[Tensor, "head neuron query"]:
    keys = attention.seen_keys(rows)
    by_key = [None if part is None else part[..., keys] for part in by_key]
    pattern, scores = (x[heads.start : heads.stop, rows, keys].mT for x in (attention.pattern, attention.scores))
    squared, mean = pattern.square(), moments.mean
    variance = _moment(pattern, scores, by_query, by_key, 2) - mean.square()
    third = _moment(squared, scores, by_query, by_key, 3)
    # the moments of x = mean − Δ under P²
    x1 = mean * squared.sum(1, keepdim=True) - moments.cross
    x2 = (moments.square + mean * (x1 - moments.cross)).clamp(min=0)
    x3 = mean * (x2 + 2 * moments.square - mean * moments.cross) - third
    correction = (x3 - variance * x1) / x2.clamp(min=torch.finfo(x2.dtype).tiny)
    return x2 * correction.clamp_(-LARGEST_CORRECTION, LARGEST_CORRECTION).exp_()


@cache
def _monomials(factors: int, degree: int) -> list[list[tuple[int, ...]]]:
    """The monomials of a degree as the factors that are multiplied, by how often the third, R's, is among them."""
    chosen = list(combinations_with_replacement(range(factors), degree))
    powers = range(degree + 1 if factors == 3 else 1)
    return [[c for c in chosen if c.count(2) == gamma] for gamma in powers]


def _moment(
    weights: Float[Tensor, "head key query"],
    scores: Float[Tensor, "head key query"],
    by_query: Factors,
    by_key: Factors,
    degree: int,
) -> Float[Tensor, "head neuron query"]:
    """Σ_j W Δ^degree."""
    total: Tensor | float = 0.0
    for gamma, chosen in enumerate(_monomials(len(by_key), degree)):
        weights = weights * scores if gamma else weights
        features = [_product(by_key, members) for members in chosen]
        present = [feature for feature in features if feature is not None]
        seen = iter((torch.cat(present) @ weights).split(len(present[0]), 1)) if present else iter(())
        for members, feature in zip(chosen, features, strict=True):
            coefficient = factorial(degree) // prod(factorial(members.count(f)) for f in range(3))
            term = weights.sum(1, keepdim=True) if feature is None else next(seen)
            by_row = _product(by_query, members)
            total = total + coefficient * (term if by_row is None else term * by_row)
    return total  # pyright: ignore[reportReturnType]


def _product(factors: Factors, members: Sequence[int]) -> Tensor | None:
    parts = [part for member in members if (part := factors[member]) is not None]
    return prod(parts[1:], start=parts[0]) if parts else None
