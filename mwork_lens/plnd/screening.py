"""The second-order screen of query and key neurons: all of them from a few matrix products with the pattern.

To second order in Δ = R − R' the score is Σ_ij P_ij² (Δ_ij − Σ_j' P_ij' Δ_ij')², and Δ is linear in R_ij, k̃_jd and
k̃_j,pair(d) with coefficients that depend on the query and the neuron only (for a key neuron: on the key). So it takes
the moments of P and P² against these and their products, and no [neuron, query, key] array. A soft cap multiplies Δ
by its slope t = 1 − tanh²(R / cap).

Its relative error is third order, i.e. grows in proportion to the largest |Δ| of the rows that make up the score;
a bound on that, which is as cheap, comes with each score as its uncertainty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class _Moments:
    """Σ P Δ, Σ P² Δ and Σ P² Δ² of each neuron and row, and a bound on |Δ| there."""

    mean: Float[Tensor, "*neuron query"]
    cross: Float[Tensor, "*neuron query"]
    square: Float[Tensor, "*neuron query"]
    bound: Float[Tensor, "*neuron query"]

    def by_row(self, total: Float[Tensor, "*group 1 query"]) -> Float[Tensor, "*neuron query"]:
        """Σ_j P² (Δ − Σ P Δ)²."""
        return torch.addcmul(self.square, self.mean, self.mean * total - 2 * self.cross).clamp_(min=0)


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


@dataclass(frozen=True)
class _Rows:
    """Weights of the moments for some rows and the keys they see, transposed; leading axes: key head, query head."""

    rows: slice
    keys: slice
    mean: Float[Tensor, "group head key query"]
    """Of Σ_j P Δ."""
    cross: Float[Tensor, "group head key query"]
    """Of Σ_j P² Δ."""
    square: Float[Tensor, "group head key query"]
    """Of Σ_j P² Δ²."""
    total: Float[Tensor, "group head 1 query"]
    """Σ_j P²."""
    scores: Float[Tensor, "group head key query"]
    largest: Float[Tensor, "group head 1 query"]
    """max_j |R| over the keys that the row sees."""


def _blocks(attention: Attention) -> Iterator[_Rows]:
    for rows in attention.row_blocks(ROWS_AT_ONCE):
        keys = attention.seen_keys(rows)
        layout = "(group head) query key -> group head key query"
        pattern, scores = (
            rearrange(part[:, rows, keys], layout, group=len(attention.keys)).contiguous()
            for part in (attention.pattern, attention.scores)
        )
        squared = pattern.square()
        mean, cross, square = pattern, squared, squared
        if attention.cap:
            slope = 1 - torch.tanh(scores / attention.cap).square()
            mean, cross = pattern * slope, squared * slope
            square = cross * slope
        largest = torch.where(pattern > 0, scores, 0).abs().amax(-2, keepdim=True)
        yield _Rows(rows, keys, mean, cross, square, squared.sum(-2, keepdim=True), scores, largest)


def _joined(parts: Sequence[tuple[_Moments, Tensor]], layout: str) -> Screened:
    """From the moments and Σ_j P² of each block of rows."""
    by_row = [moments.by_row(total) for moments, total in parts]
    doubt = [rows * moments.bound for rows, (moments, _) in zip(by_row, parts, strict=True)]
    return Screened(*(rearrange(torch.cat(part, -1), layout) for part in (by_row, doubt)))


def screen_queries(attention: Attention) -> Screened:
    """Every query neuron of one document to second order (neuron = head * d_head + index)."""
    own, keys, pair = attention.query_neurons, attention.keys, attention.pair
    layout = "(group head) d query -> group head d query"
    by_group = [rearrange(x, layout, group=len(keys)) for x in (own.shrink, own.direct, own.paired)]
    products = torch.cat([keys.square(), keys * keys[:, pair]], 1) if attention.rotates else keys.square()
    reach = (keys.square() + keys[:, pair].square()).sqrt().amax(-1)[:, None, :, None]
    parts = []
    for block in _blocks(attention):
        moments = _query_moments(attention, block, by_group, products, reach)
        parts.append((moments, block.total))
    return _joined(parts, "group head d query -> (group head d) query")


def _query_moments(
    attention: Attention, block: _Rows, own: Sequence[Tensor], products: Tensor, reach: Tensor
) -> _Moments:
    shrink, direct, paired = (part[..., block.rows] for part in own)
    keys, pair = attention.keys[:, None, :, block.keys], attention.pair
    mean_k, cross_k = keys @ block.mean, keys @ block.cross
    second = products[:, None, :, block.keys] @ block.square
    square_k = second[..., : keys.shape[-2], :]
    mean, cross, square = direct * mean_k, direct * cross_k, direct.square() * square_k
    bound = direct.abs()
    if attention.rotates:
        mean.addcmul_(paired, mean_k[..., pair, :])
        cross.addcmul_(paired, cross_k[..., pair, :])
        square.addcmul_(paired.square(), square_k[..., pair, :])
        square.addcmul_(direct * paired, second[..., keys.shape[-2] :, :], value=2)
        bound = torch.addcmul(direct.square(), paired, paired).sqrt_()
    bound = bound * reach
    if attention.normalises:
        weighted = block.square * block.scores
        mean.addcmul_(shrink, (block.mean * block.scores).sum(-2, keepdim=True))
        cross.addcmul_(shrink, (block.cross * block.scores).sum(-2, keepdim=True))
        with_scores = keys @ weighted
        along = direct * with_scores
        if attention.rotates:
            along.addcmul_(paired, with_scores[..., pair, :])
        along.mul_(2).addcmul_(shrink, (weighted * block.scores).sum(-2, keepdim=True))
        square.addcmul_(shrink, along)
        bound.addcmul_(shrink.abs(), block.largest)
    return _Moments(mean, cross, square, bound.expand_as(mean))


def screen_keys(attention: Attention) -> Screened:
    """Every key neuron of one document to second order (neuron = group * d_head + index)."""
    own = attention.key_neurons
    queries = rearrange(attention.queries, "(group head) d query -> group head d query", group=len(attention.keys))
    linear, quadratic = [own.direct], [own.direct.square()]
    if attention.rotates:
        linear.append(own.paired)
        quadratic += [own.paired.square(), own.direct * own.paired]
    features = torch.cat(linear, 1), torch.cat(quadratic, 1)
    reach = (own.direct.square() + own.paired.square()).sqrt().amax(-1)[:, None, :, None]
    parts = []
    for block in _blocks(attention):
        moments = _key_moments(attention, block, queries[..., block.rows], *features, reach)
        parts.append((moments, block.total))
    return _joined(parts, "group head d query -> (group d) (head query)")


def _key_moments(
    attention: Attention, block: _Rows, queries: Tensor, linear: Tensor, quadratic: Tensor, reach: Tensor
) -> _Moments:
    width, rotates = queries.shape[-2], attention.rotates
    first = linear[:, None, :, block.keys]
    partners = queries[..., attention.pair, :]

    def with_queries(products: Tensor) -> Tensor:
        own = queries * products[..., :width, :]
        return own.addcmul_(partners, products[..., width:, :]) if rotates else own

    mean, cross = with_queries(first @ block.mean), with_queries(first @ block.cross)
    second = quadratic[:, None, :, block.keys] @ block.square
    square = queries.square() * second[..., :width, :]
    bound = queries.abs()
    if rotates:
        square.addcmul_(partners.square(), second[..., width : 2 * width, :])
        square.addcmul_(queries * partners, second[..., 2 * width :, :], value=2)
        bound = torch.addcmul(queries.square(), partners, partners).sqrt_()
    bound = bound * reach
    if attention.normalises:
        shrink = attention.key_neurons.shrink[:, None, :, block.keys]
        weighted = block.square * block.scores
        mean += shrink @ (block.mean * block.scores)
        cross += shrink @ (block.cross * block.scores)
        shrunk = first * (torch.cat([shrink, shrink], -2) if rotates else shrink)
        square.add_(with_queries(shrunk @ weighted), alpha=2)
        square += shrink.square() @ (weighted * block.scores)
        bound.addcmul_(shrink.abs().amax(-1, keepdim=True), block.largest)
    return _Moments(mean, cross, square, bound.expand_as(mean))
