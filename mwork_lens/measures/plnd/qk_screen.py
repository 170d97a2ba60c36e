"""The second-order screen of query and key neurons: all of them from a few matrix products with the pattern.

To second order in Δ = R − R' the score is Σ_ij P_ij² (Δ_ij − Δ̄_i)² with Δ̄_i = Σ_j P_ij Δ_ij, that is

    Σ_i ( Σ_j P² Δ² + Δ̄ Σ_j (T P − 2 P²) Δ )    with T_i = Σ_j P_ij²,

and Δ is linear in R_ij, k̃_jd and k̃_j,pair(d) with coefficients that depend on the query and the neuron only (for a
key neuron: on the key). So it takes the products of three weights, P, T P − 2 P² and P², with the keys (for key
neurons: with their coefficients) and with their squares and products, and no [neuron, query, key] array. A soft cap
multiplies Δ by its slope t = 1 − tanh²(R / cap).

Its relative error is third order, i.e. grows in proportion to the largest |Δ| of the rows that make up the score;
a bound on that, which is as cheap, comes with each score as its uncertainty.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .attention import Attention

ROWS_AT_ONCE = 128
"""Few enough that little is computed for keys which a row does not see."""


def screen(attention: Attention) -> Iterator[tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]]:
    """Squared scores and their uncertainty, of all query neurons and then of all key neurons of one document.

    The uncertainty is the mean over rows, weighted by their share of the score, of the bound on the row's |Δ|.
    """
    sides, sums = (_queries(attention), _keys(attention)), ([], [])
    for block in _blocks(attention):
        for side, blocks in zip(sides, sums, strict=True):
            squares, bound = side(block)
            doubt = bound.mul_(squares.clamp_(min=0))
            blocks.append(torch.stack([squares.sum(-1), doubt.sum(-1)]))
    of_queries, of_keys = (torch.stack(blocks).sum(0) for blocks in sums)
    # a query neuron has one head, a key neuron all of its group
    of_queries = rearrange(of_queries, "part group d head -> part (group head d)")
    for squares, doubt in (of_queries, reduce(of_keys, "part group d head -> part (group d)", "sum")):
        yield squares, doubt / squares.clamp(min=torch.finfo(squares.dtype).tiny)


@dataclass(frozen=True)
class _Block:
    """Weights of some rows of all heads of a group, for the keys that they see."""

    rows: slice
    keys: slice
    heads: int
    mean: Float[Tensor, "group key head_row"]
    """P, which makes Δ̄."""
    cross: Float[Tensor, "group key head_row"]
    """T P − 2 P²."""
    square: Float[Tensor, "group key head_row"]
    """P²."""
    scores: Float[Tensor, "group key head_row"]
    """R."""

    def of(self, by_query: Float[Tensor, "all_heads d query"]) -> Float[Tensor, "group d head row"]:
        """What belongs to these rows."""
        layout = "(group head) d row -> group d head row"
        return rearrange(by_query[..., self.rows], layout, head=self.heads).contiguous()

    def sums(
        self, by_key: Float[Tensor, "group d all"], weights: Float[Tensor, "group key head_row"]
    ) -> Float[Tensor, "group d head row"]:
        """Σ_j of some weights times what belongs to each key."""
        return (by_key[..., self.keys] @ weights).unflatten(-1, (self.heads, -1))

    def total(self, weights: Float[Tensor, "group key head_row"]) -> Float[Tensor, "group 1 head row"]:
        """Σ_j of some weights."""
        return weights.sum(-2, keepdim=True).unflatten(-1, (self.heads, -1))

    @cached_property
    def with_scores(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """P R, (T P − 2 P²) R, P² R and P² R²."""
        square = self.square * self.scores
        return self.mean * self.scores, self.cross * self.scores, square, square * self.scores

    @cached_property
    def largest(self) -> Float[Tensor, "group 1 head row"]:
        """max_j |R|."""
        return self.scores.abs().amax(-2, keepdim=True).unflatten(-1, (self.heads, -1))


def _blocks(attention: Attention) -> Iterator[_Block]:
    # what rounding swallows is left out: its squares would be denormal numbers, and slow
    seen = torch.threshold(attention.pattern, torch.finfo(attention.pattern.dtype).eps ** 2, 0)
    for rows in attention.row_blocks(ROWS_AT_ONCE):
        keys = attention.seen_keys(rows)
        pattern, scores = seen[:, rows, keys], attention.scores[:, rows, keys]
        square = pattern.square()
        cross = torch.addcmul(-2 * square, pattern, square.sum(-1, keepdim=True))
        if attention.geometry.cap:
            slope = 1 - torch.tanh(scores / attention.geometry.cap).square()
            pattern, cross, square = pattern * slope, cross * slope, square * slope.square()
        layout = "(group head) row key -> group key (head row)"
        parts = (rearrange(x, layout, group=len(attention.keys)) for x in (pattern, cross, square, scores))
        yield _Block(rows, keys, attention.heads_per_group, *parts)


ByRow = Callable[[_Block], tuple[Float[Tensor, "group d head row"], Float[Tensor, "group d head row"]]]
"""Squared changes, and a bound on |Δ|."""


def _queries(attention: Attention) -> ByRow:
    neurons, keys, swap, width = attention.query_neurons, attention.keys, attention.pair, attention.keys.shape[1]
    partners, key_squares = keys[:, swap], keys.square()
    products = torch.cat([key_squares, keys * partners], 1) if attention.geometry.rotary else key_squares
    reach = (key_squares + partners.square()).sqrt().amax(-1)[..., None, None]

    def by_row(block: _Block) -> tuple[Tensor, Tensor]:
        direct, paired, shrink = (block.of(part) for part in (neurons.direct, neurons.paired, neurons.shrink))

        def rotated(weights: Tensor) -> Tensor:
            sums = block.sums(keys, weights)
            products = direct * sums
            return products.addcmul_(paired, sums.index_select(1, swap)) if attention.geometry.rotary else products

        mean, cross = rotated(block.mean), rotated(block.cross)
        second, size = block.sums(products, block.square), direct.square()
        squares, bound = size * second[:, :width], size
        if attention.geometry.rotary:
            paired_squared = paired.square()
            squares.addcmul_(direct * paired, second[:, width:], value=2)
            squares.addcmul_(paired_squared, second[:, :width].index_select(1, swap))
            bound += paired_squared
        bound.sqrt_().mul_(reach)
        if attention.geometry.normalises:
            in_mean, in_cross, in_square, twice = block.with_scores
            mean.addcmul_(shrink, block.total(in_mean))
            cross.addcmul_(shrink, block.total(in_cross))
            squares.addcmul_(shrink, rotated(in_square).mul_(2).addcmul_(shrink, block.total(twice)))
            bound.addcmul_(shrink.abs(), block.largest)
        return squares.addcmul_(mean, cross), bound

    return by_row


def _keys(attention: Attention) -> ByRow:
    neurons, width = attention.key_neurons, attention.queries.shape[1]
    squares = [neurons.direct.square(), neurons.paired.square()]
    reach = (squares[0] + squares[1]).sqrt().amax(-1)[..., None, None]
    linear, quadratic, shrink = neurons.direct, squares[0], neurons.shrink
    if attention.geometry.rotary:
        linear, shrink = torch.cat([neurons.direct, neurons.paired], 1), torch.cat([shrink, shrink], 1)
        quadratic = torch.cat([*squares, neurons.direct * neurons.paired], 1)
    shrunk = linear * shrink

    def by_row(block: _Block) -> tuple[Tensor, Tensor]:
        queries = block.of(attention.queries)
        partners = queries.index_select(1, attention.pair)

        def rotated(by_key: Tensor, weights: Tensor) -> Tensor:
            sums = block.sums(by_key, weights)
            products = queries * sums[:, :width]
            return products.addcmul_(partners, sums[:, width:]) if attention.geometry.rotary else products

        mean, cross = rotated(linear, block.mean), rotated(linear, block.cross)
        second, size = block.sums(quadratic, block.square), queries.square()
        squares, bound = size * second[:, :width], size
        if attention.geometry.rotary:
            partners_squared = partners.square()
            squares.addcmul_(queries * partners, second[:, 2 * width :], value=2)
            squares.addcmul_(partners_squared, second[:, width : 2 * width])
            bound += partners_squared
        bound.sqrt_().mul_(reach)
        if attention.geometry.normalises:
            lost, (in_mean, in_cross, in_square, twice) = neurons.shrink, block.with_scores
            mean += block.sums(lost, in_mean)
            cross += block.sums(lost, in_cross)
            squares.add_(rotated(shrunk, in_square), alpha=2).add_(block.sums(lost.square(), twice))
            bound += lost.abs().amax(-1)[..., None, None] * block.largest
        return squares.addcmul_(mean, cross), bound

    return by_row
