"""The exact change of the pattern on a CPU, by compiled loops instead of passes over memory."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from .attention import Attention
from .compiled import KEYS_AT_ONCE, applies, sums_of_rows, threads, weights_of_rows


def covers(attention: Attention) -> bool:
    """Whether this form applies: single precision on a CPU, a plain softmax, norms within each head."""
    plain = not (attention.cap or attention.sinks or attention.across_heads)
    return plain and applies(attention.pattern)


def fused_squares(attention: Attention) -> dict[Literal["q", "k"], Float[Tensor, " neuron"]]:
    """Squared pattern change of every query and key neuron, summed over the query heads that it reaches."""
    length, positions, pair = attention.keys.shape[-1], attention.positions, attention.pair
    seen = np.full(attention.rows, length) if positions is None else positions.numpy() + 1
    seen = -(-seen // KEYS_AT_ONCE) * KEYS_AT_ONCE
    pattern, scores = (_array(pad(x, (0, -length % KEYS_AT_ONCE))) for x in (attention.pattern, attention.scores))
    queries, keys, q, k = attention.queries, attention.keys, attention.query_neurons, attention.key_neurons
    of_query, met_keys = (q.direct, q.paired, q.shrink), (keys, keys[:, pair], torch.ones_like(keys))
    of_key, met_queries = (k.direct, k.paired, k.shrink), (queries, queries[:, pair], torch.ones_like(queries))
    with threads():
        rows = pattern, scores, seen, weights_of_rows(pattern, scores, seen)
        by_query = sums_of_rows(*rows, _arrays(of_query), _arrays(met_keys))
        by_key = sums_of_rows(*rows, _arrays(met_queries), _arrays(of_key))
    by_group = by_key.reshape(len(keys), -1, len(pair)).sum(1)
    return {"q": torch.from_numpy(by_query.ravel()), "k": torch.from_numpy(by_group.ravel())}


def _array(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy()


def _arrays(tables: Iterable[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(map(_array, tables))
