"""The exact change of the pattern on a CPU, by compiled loops (``compiled.py``) instead of passes over memory."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attention import Attention
from .compiled import KEYS_AT_ONCE, ROWS_AT_ONCE, applies, sums_of_rows, threads, weights_of_rows


def covers(attention: Attention) -> bool:
    """Whether this form applies: single precision on a CPU, a plain softmax, norms within each head."""
    plain = not (attention.cap or attention.sinks or attention.across_heads)
    return plain and applies(attention.pattern)


class Fused:
    """One document's attention in one layer, laid out for the compiled loops."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        keys, positions = attention.keys.shape[-1], attention.positions
        seen = torch.full((attention.rows,), keys) if positions is None else positions + 1
        self.seen = (-(-seen // KEYS_AT_ONCE) * KEYS_AT_ONCE).numpy()
        self.pattern, self.scores = _by_key(attention.pattern, zeros=True), _by_key(attention.scores)
        with threads():
            self.of_rows = weights_of_rows(self.pattern, self.scores, self.seen)

    def squares(self, site: Literal["q", "k"], neurons: Int[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
        """Squared pattern change of neurons (head * d_head + index), summed over the query heads that each reaches."""
        attention, d_head = self.attention, self.attention.queries.shape[1]
        own = attention.query_neurons if site == "q" else attention.key_neurons
        direct, paired, shrink = (part.flatten(0, 1) for part in (own.direct, own.paired, own.shrink))
        # a unit is a neuron in one of the heads that it reaches; by head
        reached = 1 if site == "q" else attention.heads_per_group
        heads, order = (neurons // d_head * reached)[:, None].add(torch.arange(reached)).flatten().sort(stable=True)
        neuron = order // reached
        rows = neurons[neuron]
        index = rows % d_head
        if site == "q":
            start, keys = heads // attention.heads_per_group * d_head, attention.keys.flatten(0, 1)
            left, left_rows = (direct, paired), (rows, rows)
            right, right_rows = (keys, keys), (start + index, start + attention.pair[index])
        else:
            start, queries = heads * d_head, attention.queries.flatten(0, 1)
            left, left_rows = (queries, queries), (start + index, start + attention.pair[index])
            right, right_rows = (direct, paired), (rows, rows)
        left0, left1 = (part.contiguous().numpy() for part in left)
        right0, right1 = (_by_key(part) for part in right)
        spread0, spread1 = ((part.amax(-1) - part.amin(-1)).numpy() for part in right)
        sums = np.zeros((-(-attention.rows // ROWS_AT_ONCE), len(heads)), np.float32)
        with threads():
            sums_of_rows(
                self.pattern,
                self.scores,
                self.seen,
                self.of_rows,
                torch.searchsorted(heads, torch.arange(len(attention.queries) + 1)).numpy(),
                (left_rows[0].numpy(), left_rows[1].numpy(), left0, left1),
                (right_rows[0].numpy(), right_rows[1].numpy(), right0, right1, spread0, spread1),
                shrink.contiguous().numpy() if site == "q" else _by_key(shrink),
                rows.numpy(),
                shrink[: len(shrink) * (site == "k")].abs().amax(-1).numpy(),
                sums,
            )
        found = torch.from_numpy(sums.sum(0))
        return found.new_zeros(len(neurons)).index_add_(0, neuron, found)


def _by_key(x: Float[Tensor, "*shape key"], *, zeros: bool = False) -> np.ndarray:
    """With whole registers of keys: zeros or the last key again, so that no bound on what belongs to keys changes."""
    rest = -x.shape[-1] % KEYS_AT_ONCE
    last = x[..., -1:].expand(*x.shape[:-1], rest)
    return (torch.cat([x, last * (not zeros)], -1) if rest else x).contiguous().numpy()
