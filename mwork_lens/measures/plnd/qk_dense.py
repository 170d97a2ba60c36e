"""The exact change of the attention pattern that query and key neurons make, by tensor operations.

A *unit* is a neuron in one query head that it reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention
from .softmax_change import capped_change, changed_rows

ELEMENTS_AT_ONCE = 2**18
"""Entries of [unit, query, key] held at a time: few enough to stay in a processor's cache."""
ROWS_AT_ONCE = 128

PatternSite = Literal["q", "k"]


@dataclass(frozen=True)
class _Units:
    """Some neurons in one query head that they reach: Δ = Σ_part query_part_i key_part_j + shrink R."""

    by_query: Float[Tensor, "unit query part"]
    by_key: Float[Tensor, "unit part key"]
    shrink: Tensor
    """``[unit, query, 1]`` for query neurons, ``[unit, 1, key]`` for key neurons."""

    def change(
        self, attention: Attention, rows: slice, keys: slice, scores: Float[Tensor, "*#unit query key"]
    ) -> Float[Tensor, "unit query key"]:
        """−Δ for some rows and the keys that they see; through the soft cap where there is one."""
        change = einsum(-self.by_query[:, rows], self.by_key[..., keys], "u query part, u part key -> u query key")
        if attention.normalises:
            per_query = self.shrink.shape[-1] == 1
            change.addcmul_(self.shrink[:, rows] if per_query else self.shrink[..., keys], scores, value=-1)
        return capped_change(attention.cap, scores, change) if attention.cap else change


def _query_units(attention: Attention, neurons: Int[Tensor, " unit"], head: int) -> _Units:
    own, d_head = attention.query_neurons, attention.queries.shape[1]
    index, mine, group = neurons % d_head, (neurons // d_head == head)[:, None], head // attention.heads_per_group
    left = [part.flatten(0, 1)[neurons] * mine for part in attention.parts(own)]
    right = [attention.keys[group, d] for d in (index, attention.pair[index])[: len(left)]]
    return _Units(torch.stack(left, -1), torch.stack(right, -2), own.shrink.flatten(0, 1)[neurons][..., None])


def _key_units(attention: Attention, neurons: Int[Tensor, " unit"], head: int) -> _Units:
    own, d_head = attention.key_neurons, attention.queries.shape[1]
    index, mine = neurons % d_head, (neurons // d_head == head // attention.heads_per_group)[:, None]
    right = [part.flatten(0, 1)[neurons] * mine for part in attention.parts(own)]
    left = [attention.queries[head, d] for d in (index, attention.pair[index])[: len(right)]]
    return _Units(torch.stack(left, -1), torch.stack(right, -2), own.shrink.flatten(0, 1)[neurons][:, None])


_UNITS: dict[str, Callable[[Attention, Tensor, int], _Units]] = {"q": _query_units, "k": _key_units}


def exact_squares(
    attention: Attention, site: PatternSite, neurons: Int[Tensor, " neuron"] | None = None
) -> Float[Tensor, " neuron"]:
    """Squared pattern change of neurons (head * d_head + index) of ``q`` or ``k``, of all of them by default.

    Every neuron's change is added up over the query heads that it reaches; by blocks of units, and of rows with the
    keys that they see, so that a block stays in a processor's cache.
    """
    heads, d_head, device = *attention.queries.shape[:2], attention.pattern.device
    owners = heads if site == "q" else len(attention.keys)
    neurons = torch.arange(owners * d_head, device=device) if neurons is None else neurons
    squares = attention.pattern.new_zeros(len(neurons))
    at_once = max(1, ELEMENTS_AT_ONCE // (min(ROWS_AT_ONCE, attention.rows) * attention.keys.shape[-1]))
    for head in range(heads):
        reached = (neurons // d_head == head * owners // heads) | attention.across_heads
        for some in reached.nonzero().flatten().split(at_once):
            units = _UNITS[site](attention, neurons[some], head)
            for rows in attention.row_blocks(ROWS_AT_ONCE):
                keys = attention.seen_keys(rows)
                pattern, scores = (part[head, rows, keys] for part in (attention.pattern, attention.scores))
                change = units.change(attention, rows, keys, scores)
                squares[some] += changed_rows(pattern, change, sinks=attention.sinks).sum(-1)
    return squares
