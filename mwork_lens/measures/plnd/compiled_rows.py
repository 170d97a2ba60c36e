"""How far the rows of the pattern move, for some query or key neurons of a head at a time.

With x_j = Δ_ij* − Δ_ij, a shift that leaves the row's most attended key j* where it is, m = e^x − 1 and E = Σ_j P m,

    Σ_j (softmax(R')_j − P_j)² = (Σ P² m² − 2 E Σ P² m + E² Σ P²) / (1 + E)².

Little cancels unless E comes near −1, i.e. a broad row gathers on j*; such rows, and those whose e^x is too large for
its square, are taken from their new scores instead. A vector register holds neurons, so that the three sums stay with
each of them, and blocks of rows and keys stay in the fastest cache.
"""

import math
from typing import no_type_check

import numba
import numpy as np
from numpy.polynomial import chebyshev

from .compiled import compiled, from_cache_line, inlined, widest_vectors

NEURONS_AT_ONCE = 32
ROWS_AT_ONCE = 16
KEYS_IN_CACHE = 64
KEYS_AT_ONCE = 4
"""The keys that a row sees are rounded up to as many; P is zero beyond."""
FAR = np.float32(40)
"""Beyond this |x| squares of e^x could overflow. Keys that a row does not see count too, which costs some precision."""
LEAST_LOG = np.float32(math.log(np.finfo(np.float32).tiny))
NEGLIGIBLE = np.float32(20)
"""Below the largest new score by so much a weight that the softmax lost does not count."""
GATHERED = np.float32(-0.5)
"""Below this E, 1 + E loses digits."""

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)

GROWTH, FIRST, SECOND, SHIFT, LEFT, BOUND = 0, 1, 2, 3, 4, 7
"""What a row keeps of each neuron: E, Σ P² m, Σ P² m², Δ_ij*, what belongs to the query (three), and a bound on |x|
(in the end: whether it was too large)."""


@compiled(parallel=True)
@no_type_check
def weights_of_rows(pattern, scores, seen):
    """By head and row: the most attended key, Σ P² and the largest |R|."""
    star = np.zeros(pattern.shape[:2], np.int64)
    squares, largest = np.zeros(pattern.shape[:2], np.float32), np.zeros(pattern.shape[:2], np.float32)
    for task in numba.prange(pattern.shape[0] * pattern.shape[1]):
        head, i = task // pattern.shape[1], task % pattern.shape[1]
        p, r, most, total, size = pattern[head, i], scores[head, i], _ZERO, _ZERO, _ZERO
        for j in range(seen[i]):
            total += p[j] * p[j]
            size = max(size, abs(r[j]))
            if p[j] > most:
                most = p[j]
                star[head, i] = j
        squares[head, i], largest[head, i] = total, size
    return star, squares, largest


@compiled(parallel=True)
@no_type_check
def sums_of_rows(weights, scores, seen, of_rows, by_query, by_key):
    """By head and neuron: the squared changes of all rows.

    Three tables by [head, query, d] and three by [group, key, d], of the neurons and of what they meet on the other
    side: their coordinate, its partner, and 1. Δ_ij is the sum of the three products, the third times R. A table that
    ends early goes on as it ends. ``weights`` are P and ``Attention.log_pattern``, empty where no weight was lost; a
    score is NaN where one that counts may have been.
    """
    pattern = weights[0]
    star, squares, largest = of_rows
    per_group, width = len(pattern) // len(by_key[0]), by_key[0].shape[-1]
    chunks = -(-width // NEURONS_AT_ONCE)
    sums = np.zeros((len(pattern), width), np.float32)
    for task in numba.prange(len(pattern) * chunks):
        widest_vectors()
        head, first_neuron = task // chunks, task % chunks * NEURONS_AT_ONCE
        some = slice(first_neuron, first_neuron + NEURONS_AT_ONCE)
        keys = from_cache_line(np.zeros((pattern.shape[2] + 1, 3, NEURONS_AT_ONCE), np.float32))[:-1]
        _read(keys, by_key, head // per_group, 0, some)
        reach = _reach(keys)
        block = from_cache_line(np.zeros((ROWS_AT_ONCE + 1, 8, NEURONS_AT_ONCE), np.float32))[:-1]
        total = np.zeros(NEURONS_AT_ONCE, np.float32)
        for first in range(0, len(seen), ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, len(seen))
            _read(block[: last - first, LEFT:], by_query, head, first, some)
            for i in range(first, last):
                _begin(block[i - first], keys, reach, scores[head, i], star[head, i], largest[head, i])
            for start in range(0, seen[last - 1], KEYS_IN_CACHE):
                for i in range(first, last):
                    row, stop = block[i - first], min(start + KEYS_IN_CACHE, seen[i])
                    _add(row, keys, pattern[head, i], scores[head, i], start, stop)
            for i in range(first, last):
                row = block[i - first]
                if _finish(row, squares[head, i], total):
                    for n in range(min(NEURONS_AT_ONCE, width - first_neuron)):
                        if row[BOUND, n] >= FAR:
                            total[n] += _far(row, keys, (head, i, n), weights, scores, seen[i])
        sums[head, some] = total[: width - first_neuron]
    return sums


@inlined
@no_type_check
def _read(to, tables, owner, first, some):
    """Three tables of some neurons by [position, table, neuron]."""
    for table in range(3):
        values = tables[table][owner]
        for i in range(len(to)):
            row = values[min(first + i, len(values) - 1), some]
            for n in range(len(row)):
                to[i, table, n] = row[n]


@inlined
@no_type_check
def _reach(keys):
    """How much each table may move x, for each neuron."""
    low, high = keys[0].copy(), keys[0].copy()
    for j in range(len(keys)):
        for table in range(3):
            for n in range(NEURONS_AT_ONCE):
                low[table, n] = min(low[table, n], keys[j, table, n])
                high[table, n] = max(high[table, n], keys[j, table, n])
    for n in range(NEURONS_AT_ONCE):
        low[0, n], low[1, n] = high[0, n] - low[0, n], high[1, n] - low[1, n]
        low[2, n] = _TWO * max(high[2, n], -low[2, n])
    return low


@inlined
@no_type_check
def _begin(row, keys, reach, scores, star, largest):
    """Nothing summed yet, the shift, and a bound on |x|."""
    for n in range(NEURONS_AT_ONCE):
        row[GROWTH, n] = row[FIRST, n] = row[SECOND, n] = row[SHIFT, n] = _ZERO
        of_score = abs(row[LEFT + 2, n]) * reach[2, n] * largest
        row[BOUND, n] = abs(row[LEFT, n]) * reach[0, n] + abs(row[LEFT + 1, n]) * reach[1, n] + of_score
        row[SHIFT, n] = -_x(row, keys, star, n, scores[star])


@inlined
@no_type_check
def _x(row, keys, j, n, score):
    with_score = row[LEFT + 2, n] * keys[j, 2, n] * score
    return row[SHIFT, n] - row[LEFT, n] * keys[j, 0, n] - row[LEFT + 1, n] * keys[j, 1, n] - with_score


@inlined
@no_type_check
def _add(row, keys, p, r, start, stop):
    """Some keys of one row, ``KEYS_AT_ONCE`` at a time."""
    for at in range(start, stop, KEYS_AT_ONCE):
        # unsigned, as a signed index could count from the end
        j0, j1, j2, j3 = np.uint64(at), np.uint64(at + 1), np.uint64(at + 2), np.uint64(at + 3)
        p0, p1, p2, p3, r0, r1, r2, r3 = p[j0], p[j1], p[j2], p[j3], r[j0], r[j1], r[j2], r[j3]
        for n in range(NEURONS_AT_ONCE):
            w0 = p0 * _expm1(_x(row, keys, j0, n, r0))
            w1 = p1 * _expm1(_x(row, keys, j1, n, r1))
            w2 = p2 * _expm1(_x(row, keys, j2, n, r2))
            w3 = p3 * _expm1(_x(row, keys, j3, n, r3))
            row[GROWTH, n] += w0 + w1 + w2 + w3
            row[FIRST, n] += w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
            row[SECOND, n] += w0 * w0 + w1 * w1 + w2 * w2 + w3 * w3


@inlined
@no_type_check
def _finish(row, squares, total):
    """Add a row to ``total``; whether neurons are left out, which are far or gather: their bound becomes ``FAR``."""
    left_out = _ZERO
    for n in range(NEURONS_AT_ONCE):
        growth = row[GROWTH, n]
        far = row[BOUND, n] >= FAR or growth < GATHERED
        row[BOUND, n] = FAR if far else _ZERO
        changed = row[SECOND, n] - _TWO * growth * row[FIRST, n] + growth * growth * squares
        # rounding may leave a little less than nothing
        total[n] += _ZERO if far else max(changed, _ZERO) / ((_ONE + growth) * (_ONE + growth))
        left_out += row[BOUND, n]  # a sum, as the largest would not be taken in registers
    return left_out > _ZERO


@inlined
@no_type_check
def _far(row, keys, at, weights, scores, seen):
    """The same of one neuron for any Δ, from its new scores."""
    head, i, n = at
    p, logs, r = weights[0][head, i], weights[1], scores[head, i]
    most = unknown = -np.float32(np.inf)
    total, changed = _ZERO, _ZERO
    x = np.empty(seen, np.float32)
    for j in range(seen):
        known = logs[head, i, j] if len(logs) else np.log(p[j])
        x[j] = _x(row, keys, j, n, r[j]) + known
        if np.isnan(known):
            unknown = max(unknown, _x(row, keys, j, n, r[j]) + LEAST_LOG)
            x[j] = -np.float32(np.inf)
        most = max(most, x[j])
    if unknown > most - NEGLIGIBLE:
        return np.float32(np.nan)
    for j in range(seen):
        x[j] = _exp(max(x[j] - most, -_TWO * FAR))
        total += x[j]
    for j in range(seen):
        change = x[j] / total - p[j]
        changed += change * change
    return changed


def _fitted() -> list[np.float32]:
    """(e^y − 1 − y) / y² for |y| ≤ log 2 / 2 as a polynomial, lowest power first."""
    half = math.log(2) / 2

    def wanted(t: np.ndarray) -> np.ndarray:
        return sum(((half * t) ** k / math.factorial(k + 2) for k in range(20)), np.zeros_like(t))

    powers = chebyshev.cheb2poly(chebyshev.chebinterpolate(wanted, 3))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return [np.float32(power / half**at) for at, power in enumerate(powers)]


_C0, _C1, _C2, _C3 = _fitted()
_LOG2, _PER_LOG2 = np.float32(math.log(2)), np.float32(1 / math.log(2))
_ROUNDING = np.float32(1.5 * 2**23 + 127)
"""Adding this leaves the nearest whole number in the lowest bits, with the bias of an exponent."""


# in these three the order counts: whoever changes it takes the rounding out
# inlined by force: a loop that still calls them is not vectorised
@numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
@no_type_check
def _split(x):
    """2^n and e^y − 1, where x = n log 2 + y and n is whole."""
    rounded = x * _PER_LOG2 + _ROUNDING
    power = np.int32(np.float32(rounded).view(np.int32) << np.int32(23)).view(np.float32)
    y = x - (rounded - _ROUNDING) * _LOG2
    return power, (((_C3 * y + _C2) * y + _C1) * y + _C0) * (y * y) + y


@numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
@no_type_check
def _exp(x):
    power, rest = _split(x)
    return power * rest + power


@numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
@no_type_check
def _expm1(x):
    """Without cancellation where n = 0."""
    power, rest = _split(x)
    return power * rest + (power - _ONE)
