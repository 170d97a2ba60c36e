"""The exact change of the pattern on a CPU, by compiled loops instead of passes over memory."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from .attention import Attention, Coefficients
from .compiled import KEYS_AT_ONCE, applies, partners, sums_of_rows, threads, weights_of_rows


def covers(attention: Attention) -> bool:
    """Whether this form applies: a CPU, not double precision, a plain softmax, norms within each head."""
    plain = not (attention.cap or attention.sinks or attention.across_heads)
    return plain and applies(attention.pattern)


def fused_squares(attention: Attention) -> dict[Literal["q", "k"], Float[Tensor, " neuron"]]:
    """Squared pattern change of every query and key neuron, summed over the query heads that it reaches."""
    length, positions, pair = attention.keys.shape[-1], attention.positions, attention.pair.numpy()
    seen = np.full(attention.rows, length) if positions is None else positions.numpy() + 1
    seen = -(-seen // KEYS_AT_ONCE) * KEYS_AT_ONCE
    rest = -length % KEYS_AT_ONCE
    pattern, scores = (_array(pad(x, (0, rest)) if rest else x) for x in (attention.pattern, attention.scores))
    with threads():
        rows = pattern, scores, seen, weights_of_rows(pattern, scores, seen)
        by_query = sums_of_rows(*rows, _tables(attention.query_neurons), _met(attention.keys, pair))
        by_key = sums_of_rows(*rows, _met(attention.queries, pair), _tables(attention.key_neurons))
    by_group = by_key.reshape(len(attention.keys), -1, len(pair)).sum(1)
    return {"q": torch.from_numpy(by_query.ravel()), "k": torch.from_numpy(by_group.ravel())}


def _array(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy()


def _tables(neurons: Coefficients) -> tuple[np.ndarray, ...]:
    return tuple(map(_by_position, (neurons.direct, neurons.paired, neurons.shrink)))


def _met(other_side: Float[Tensor, "head d_head pos"], pair: np.ndarray) -> tuple[np.ndarray, ...]:
    """What neurons meet there: their coordinate, its partner, and 1 at every position."""
    own = _by_position(other_side)
    return own, partners(own, pair), np.ones((len(own), 1, len(pair)), np.float32)


def _by_position(x: Float[Tensor, "head d_head pos"]) -> np.ndarray:
    return _array(x.mT)
