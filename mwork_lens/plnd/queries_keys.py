"""The change that deactivating a query or key neuron makes: the attention pattern moves.

For a query neuron d the scores become R'_ijd = ρ_id (R_ij − u_ijd) with u_ijd = q̂_id (c_id k̃_jd + s_id k̃_j,pair(d)) / m,
and score² = Σ_ij (softmax_j(f(R'_ijd)) − P_ij)², where f is the soft cap, biases, masks and sinks (P already holds them).
For a key neuron the roles of q and k swap and the squares add up over the query heads of its group.
"""

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel
from .attention import KEYS, PATTERN, QUERIES, Attention, Geometry
from .measure import Activations, LayerMeasure, SiteScores, root_mean

ELEMENTS_AT_ONCE = 2**21
"""Entries of [neuron, query, key] held at a time, a few copies of which are the memory that scoring takes."""


def pattern_change(model: HookedModel, layer: int) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer."""
    geometry = Geometry.of(model, layer)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        squares: dict[str, list[Tensor]] = {"q": [], "k": []}
        for i, length in enumerate(batch.lengths):
            attention = geometry.attention(
                seen[QUERIES][i, :length],
                seen[KEYS][i, :length],
                seen[PATTERN][i, :, :length, :length],
                batch.content[i, :length],
            )
            squares["q"].append(query_squares(attention))
            squares["k"].append(key_squares(attention))
        return {site: root_mean(torch.stack(values), batch) for site, values in squares.items()}

    return LayerMeasure(geometry.reads, score)


def query_delta(
    attention: Attention, head: int, neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "neuron query key"]:
    """Δ = R − R' in one head for query neurons of that head (indices within it)."""
    own, group = attention.query_neurons, head // attention.heads_per_group
    keys = attention.keys[:, group]
    left = torch.stack([own.direct[:, head, neurons], own.paired[:, head, neurons]])
    right = torch.stack([keys[:, neurons], keys[:, attention.pair[neurons]]])
    shrink = rearrange(own.shrink[:, head, neurons], "query neuron -> neuron query 1")
    return einsum(left, right, "part query neuron, part key neuron -> neuron query key").addcmul_(
        shrink, attention.scores[head]
    )


def key_delta(
    attention: Attention, head: int, neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "neuron query key"]:
    """Δ = R − R' in one query head for key neurons of the group that it reads (indices within the group)."""
    own, group = attention.key_neurons, head // attention.heads_per_group
    queries = attention.queries[:, head]
    left = torch.stack([queries[:, neurons], queries[:, attention.pair[neurons]]])
    right = torch.stack([own.direct[:, group, neurons], own.paired[:, group, neurons]])
    shrink = rearrange(own.shrink[:, group, neurons], "key neuron -> neuron 1 key")
    return einsum(left, right, "part query neuron, part key neuron -> neuron query key").addcmul_(
        shrink, attention.scores[head]
    )


def pattern_difference(
    attention: Attention, head: int, delta: Float[Tensor, "neuron query key"]
) -> Float[Tensor, " neuron"]:
    """‖softmax(f(R − Δ)) − P‖² in one head, with small differences kept.

    softmax(S + x) − P = P ∘ (expm1(x) − E) / (1 + E) with E = Σ_j P expm1(x). The softmax does not see a shift of x,
    so its mean under P is taken out first, which leaves E small.
    """
    pattern = attention.pattern[head]
    change = (_capped(attention, head, delta) if attention.cap else delta).neg_()
    mean = einsum(change, pattern, "neuron query key, query key -> neuron query")
    sink = (1 - pattern.sum(-1)).clamp(min=0)  # what an attention sink takes; its score does not change
    limit = 0.9 * torch.log(torch.tensor(torch.finfo(change.dtype).max)).item()
    growth = change.sub_(mean[..., None]).clamp_(max=limit).expm1_()
    total = einsum(growth, pattern, "neuron query key, query key -> neuron query")
    total = total + sink * torch.expm1(-mean)
    weighted = growth.sub_(total[..., None]).mul_(pattern)
    by_query = einsum(weighted, weighted, "neuron query key, neuron query key -> neuron query")
    return (by_query / (1 + total).square()).sum(-1)


def _capped(
    attention: Attention, head: int, delta: Float[Tensor, "neuron query key"]
) -> Float[Tensor, "neuron query key"]:
    """cap tanh(R / cap) − cap tanh((R − Δ) / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    cap = attention.cap
    before, after = attention.scores[head] / cap, (attention.scores[head] - delta) / cap
    return cap * torch.tanh(delta / cap) * (1 - torch.tanh(before) * torch.tanh(after))


def query_squares(attention: Attention) -> Float[Tensor, " neuron"]:
    """Squared pattern change of every query neuron (neuron = head * d_head + index)."""
    heads, d_head = attention.queries.shape[1:]
    squares = torch.zeros(heads, d_head, dtype=attention.pattern.dtype, device=attention.pattern.device)
    for head in range(heads):
        squares[head] += _in_chunks(attention, head, d_head, query_delta)
        if attention.query_across:
            shrink = attention.query_neurons.shrink
            for other in set(range(heads)) - {head}:
                squares[other] += _rescaled(
                    attention, head, shrink[:, other], "query neuron -> neuron query 1"
                )
    return squares.flatten()


def key_squares(attention: Attention) -> Float[Tensor, " neuron"]:
    """Squared pattern change of every key neuron (neuron = group * d_head + index)."""
    groups, d_head = attention.keys.shape[1:]
    squares = torch.zeros(groups, d_head, dtype=attention.pattern.dtype, device=attention.pattern.device)
    for head in range(attention.queries.shape[1]):
        group = head // attention.heads_per_group
        squares[group] += _in_chunks(attention, head, d_head, key_delta)
        if attention.query_across:
            shrink = attention.key_neurons.shrink
            for other in set(range(groups)) - {group}:
                squares[other] += _rescaled(attention, head, shrink[:, other], "key neuron -> neuron 1 key")
    return squares.flatten()


def _in_chunks(
    attention: Attention,
    head: int,
    width: int,
    delta: Callable[[Attention, int, Tensor], Tensor],
) -> Float[Tensor, " neuron"]:
    at_once = max(1, ELEMENTS_AT_ONCE // attention.pattern[head].numel())
    neurons = torch.arange(width, device=attention.pattern.device)
    return torch.cat(
        [
            pattern_difference(attention, head, delta(attention, head, chunk))
            for chunk in neurons.split(at_once)
        ]
    )


def _rescaled(attention: Attention, head: int, shrink: Tensor, layout: str) -> Float[Tensor, " neuron"]:
    """Change in a head that a neuron of another head rescales through a norm over all heads: Δ = (1 − ρ) R."""

    def delta(attention: Attention, head: int, neurons: Tensor) -> Tensor:
        return rearrange(shrink[:, neurons], layout) * attention.scores[head]

    return _in_chunks(attention, head, shrink.shape[-1], delta)
