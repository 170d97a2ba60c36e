"""The second-order screen of query and key neurons: all of them from a few matrix products with the pattern.

To second order in Δ = R − R' the score is Σ_ij P_ij² (Δ_ij − Σ_j' P_ij' Δ_ij')², and Δ is linear in R_ij, k̃_jd and
k̃_j,pair(d) with coefficients that depend on the query and the neuron only (for a key neuron: on the key). So it takes
the moments of P and P² against these and their products, and no [neuron, query, key] array. A soft cap multiplies Δ
by its slope t = 1 − tanh²(R / cap).

Its relative error is third order, i.e. grows in proportion to the largest |Δ| of the rows that make up the score;
a bound on that, which is as cheap, comes with each score as its uncertainty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention

ROWS_AT_ONCE = 64
"""Few enough that little is computed for keys which a row does not see."""


@dataclass(frozen=True)
class Undecided:
    """What of some neurons' squared scores still rests on the screen, and the rows to compute exactly first."""

    rows: Int[Tensor, "neuron row"]
    """As head * rows + query, with heads counted from the first that the neuron reaches."""
    squares: Float[Tensor, " neuron"]
    """Of all other rows, to second order."""
    doubt: Float[Tensor, " neuron"]
    """Of all other rows: their squares times their bounds on |Δ|."""


@dataclass(frozen=True)
class Screened:
    """Squared scores to second order by row, and how far off they may be; rows of several heads end to end."""

    by_row: Float[Tensor, "neuron head_row"]
    doubt: Float[Tensor, "neuron head_row"]
    """The squares times a bound on the row's |Δ|."""

    @cached_property
    def squares(self) -> Float[Tensor, " neuron"]:
        """Squared scores."""
        return self.by_row.sum(-1)

    @property
    def uncertainty(self) -> Float[Tensor, " neuron"]:
        """The mean over rows, weighted by their share of the score, of the bound on the row's |Δ|."""
        return relative(self.doubt.sum(-1), self.squares)

    def undecided(self, neurons: Int[Tensor, " chosen"], share: int) -> Undecided:
        """One row in ``share``, those with the largest doubt, against the others."""
        by_row, doubt = self.by_row[neurons], self.doubt[neurons]
        most = doubt.topk(-(-doubt.shape[-1] // share), sorted=False)
        squares = by_row.sum(-1) - by_row.gather(-1, most.indices).sum(-1)
        return Undecided(most.indices, squares.clamp(min=0), (doubt.sum(-1) - most.values.sum(-1)).clamp(min=0))


def relative(doubt: Float[Tensor, " neuron"], squares: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """Doubt in units of the squared score."""
    return doubt / squares.clamp(min=torch.finfo(squares.dtype).tiny)


def screen(attention: Attention) -> tuple[Screened, Screened]:
    """Every query neuron (head * d_head + index) and key neuron (group * d_head + index) of one document."""
    queries, keys = _Queries.of(attention), _Keys.of(attention)
    parts = [(queries.moments(block), keys.moments(block)) for block in _blocks(attention)]
    of_queries, of_keys = (
        [torch.cat(part, -1) for part in zip(*side, strict=True)] for side in zip(*parts, strict=True)
    )
    return (
        Screened(*(rearrange(part, "group d head query -> (group head d) query") for part in of_queries)),
        Screened(*(rearrange(part, "group d head query -> (group d) (head query)") for part in of_keys)),
    )


@dataclass(frozen=True)
class _Block:
    """Weights for some rows of all heads of a group and the keys that they see."""

    rows: slice
    keys: slice
    heads: int
    mean: Float[Tensor, "group key head_query"]
    """Of Σ_j P Δ."""
    cross: Float[Tensor, "group key head_query"]
    """Of Σ_j P² Δ."""
    square: Float[Tensor, "group key head_query"]
    """Of Σ_j P² Δ²."""
    total: Float[Tensor, "group 1 head query"]
    """Σ_j P²."""
    scores: Float[Tensor, "group key head_query"]
    """R."""
    largest: Float[Tensor, "group 1 head query"]
    """max_j |R|."""

    def sums(self, by_key: Float[Tensor, "group d all"], weights: Float[Tensor, "group key head_query"]) -> Tensor:
        """Σ_j of some weights times what belongs to each key: ``[group, d, head, query]``."""
        return (by_key[..., self.keys] @ weights).unflatten(-1, (self.heads, -1))

    def total_of(self, weights: Float[Tensor, "group key head_query"]) -> Float[Tensor, "group 1 head query"]:
        """Σ_j of some weights."""
        return weights.sum(-2, keepdim=True).unflatten(-1, (self.heads, -1))

    def squares(self, mean: Tensor, cross: Tensor, square: Tensor) -> Float[Tensor, "group d head query"]:
        """Σ_j P² (Δ − Σ P Δ)² from Σ P Δ, Σ P² Δ and Σ P² Δ²; overwrites ``cross``."""
        return torch.addcmul(square, mean, (mean * self.total).sub_(cross, alpha=2)).clamp_(min=0)

    @cached_property
    def mean_scores(self) -> Tensor:
        return self.mean * self.scores

    @cached_property
    def cross_scores(self) -> Tensor:
        return self.cross * self.scores

    @cached_property
    def square_scores(self) -> Tensor:
        return self.square * self.scores

    @cached_property
    def square_scores_squared(self) -> Tensor:
        return self.square_scores * self.scores


def _blocks(attention: Attention) -> Iterator[_Block]:
    heads = attention.heads_per_group
    for rows in attention.row_blocks(ROWS_AT_ONCE):
        keys = attention.seen_keys(rows)
        layout = "(group head) query key -> group key (head query)"
        pattern, scores = (
            rearrange(part[:, rows, keys], layout, head=heads).contiguous()
            for part in (attention.pattern, attention.scores)
        )
        squared = pattern.square()
        mean, cross, square = pattern, squared, squared
        if attention.cap:
            slope = 1 - torch.tanh(scores / attention.cap).square()
            mean, cross = pattern * slope, squared * slope
            square = cross * slope
        total, largest = (
            part.unflatten(-1, (heads, -1))
            for part in (squared.sum(-2, keepdim=True), scores.abs().amax(-2, keepdim=True))
        )
        yield _Block(rows, keys, heads, mean, cross, square, total, scores, largest)


@dataclass(frozen=True)
class _Queries:
    """What enters the moments of query neurons."""

    attention: Attention
    shrink: Float[Tensor, "group d_head head query"]
    direct: Float[Tensor, "group d_head head query"]
    paired: Float[Tensor, "group d_head head query"]
    keys: Float[Tensor, "group d_head key"]
    products: Float[Tensor, "group products key"]
    """k̃² and, with rotation, k̃ k̃_pair."""
    reach: Float[Tensor, "group d_head 1 1"]
    """The largest |(k̃, k̃_pair)|."""

    @classmethod
    def of(cls, attention: Attention) -> "_Queries":
        own, keys, pair = attention.query_neurons, attention.keys, attention.pair
        layout = "(group head) d query -> group d head query"
        shrink, direct, paired = (rearrange(x, layout, group=len(keys)) for x in (own.shrink, own.direct, own.paired))
        squared, partners = keys.square(), keys[:, pair]
        products = torch.cat([squared, keys * partners], 1) if attention.rotates else squared
        reach = (squared + partners.square()).sqrt().amax(-1)[..., None, None]
        return cls(attention, shrink, direct, paired, keys, products, reach)

    def moments(self, block: _Block) -> tuple[Tensor, Tensor]:
        """Squares by row, and these times a bound on |Δ|."""
        width, pair = self.keys.shape[1], self.attention.pair
        shrink, direct, paired = (part[..., block.rows] for part in (self.shrink, self.direct, self.paired))
        sums_k, cross_k = block.sums(self.keys, block.mean), block.sums(self.keys, block.cross)
        second = block.sums(self.products, block.square)
        direct_squared = direct.square()
        mean, cross, square = direct * sums_k, direct * cross_k, direct_squared * second[:, :width]
        bound = direct.abs()
        if self.attention.rotates:
            paired_squared = paired.square()
            mean.addcmul_(paired, sums_k.index_select(1, pair))
            cross.addcmul_(paired, cross_k.index_select(1, pair))
            square.addcmul_(paired_squared, second[:, :width].index_select(1, pair))
            square.addcmul_(direct * paired, second[:, width:], value=2)
            bound = (direct_squared.add_(paired_squared)).sqrt_()
        bound *= self.reach
        if self.attention.normalises:
            mean.addcmul_(shrink, block.total_of(block.mean_scores))
            cross.addcmul_(shrink, block.total_of(block.cross_scores))
            with_scores = block.sums(self.keys, block.square_scores)
            along = direct * with_scores
            if self.attention.rotates:
                along.addcmul_(paired, with_scores.index_select(1, pair))
            along.mul_(2).addcmul_(shrink, block.total_of(block.square_scores_squared))
            square.addcmul_(shrink, along)
            bound.addcmul_(shrink.abs(), block.largest)
        squares = block.squares(mean, cross, square)
        return squares, bound.mul_(squares)


@dataclass(frozen=True)
class _Keys:
    """What enters the moments of key neurons."""

    attention: Attention
    queries: Float[Tensor, "group d_head head query"]
    partners: Float[Tensor, "group d_head head query"]
    linear: Float[Tensor, "group linear key"]
    """The coefficients of q̃ and, with rotation, of q̃_pair."""
    quadratic: Float[Tensor, "group quadratic key"]
    """Their squares and product."""
    reach: Float[Tensor, "group d_head 1 1"]
    """The largest size of the coefficients."""

    @classmethod
    def of(cls, attention: Attention) -> "_Keys":
        own, layout = attention.key_neurons, "(group head) d query -> group d head query"
        queries = rearrange(attention.queries, layout, group=len(attention.keys))
        squares = [own.direct.square(), own.paired.square()]
        linear, quadratic = own.direct, squares[0]
        if attention.rotates:
            linear = torch.cat([own.direct, own.paired], 1)
            quadratic = torch.cat([*squares, own.direct * own.paired], 1)
        reach = (squares[0] + squares[1]).sqrt().amax(-1)[..., None, None]
        return cls(attention, queries, queries[:, attention.pair], linear, quadratic, reach)

    @cached_property
    def largest_shrink(self) -> Float[Tensor, "group d_head 1 1"]:
        return self.attention.key_neurons.shrink.abs().amax(-1)[..., None, None]

    @cached_property
    def shrink_squared(self) -> Float[Tensor, "group d_head key"]:
        return self.attention.key_neurons.shrink.square()

    @cached_property
    def shrunk(self) -> Float[Tensor, "group linear key"]:
        shrink = self.attention.key_neurons.shrink
        return self.linear * (torch.cat([shrink, shrink], 1) if self.attention.rotates else shrink)

    def moments(self, block: _Block) -> tuple[Tensor, Tensor]:
        """Squares by row, and these times a bound on |Δ|."""
        width, rotates = self.queries.shape[1], self.attention.rotates
        queries, partners = self.queries[..., block.rows], self.partners[..., block.rows]

        def with_queries(sums: Tensor) -> Tensor:
            own = queries * sums[:, :width]
            return own.addcmul_(partners, sums[:, width:]) if rotates else own

        mean, cross = (with_queries(block.sums(self.linear, weights)) for weights in (block.mean, block.cross))
        second = block.sums(self.quadratic, block.square)
        queries_squared = queries.square()
        square = queries_squared * second[:, :width]
        bound = queries.abs()
        if rotates:
            partners_squared = partners.square()
            square.addcmul_(partners_squared, second[:, width : 2 * width])
            square.addcmul_(queries * partners, second[:, 2 * width :], value=2)
            bound = queries_squared.add_(partners_squared).sqrt_()
        bound *= self.reach
        if self.attention.normalises:
            shrink = self.attention.key_neurons.shrink
            mean += block.sums(shrink, block.mean_scores)
            cross += block.sums(shrink, block.cross_scores)
            square.add_(with_queries(block.sums(self.shrunk, block.square_scores)), alpha=2)
            square += block.sums(self.shrink_squared, block.square_scores_squared)
            bound += self.largest_shrink * block.largest
        squares = block.squares(mean, cross, square)
        return squares, bound.mul_(squares)
