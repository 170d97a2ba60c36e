"""Compiled loops for a CPU: what would otherwise be a dozen passes over memory, in one.

``sums_of_rows`` is ``softmax_change.changed_rows``, one pass over the keys for each neuron and row. With
x_j = Δ_ij* − Δ_ij, a shift that leaves the row's most attended key j* where it is, m = e^x − 1 and E = Σ_j P m,

    Σ_j (softmax(R')_j − P_j)² = (Σ P² m² − 2 E Σ P² m + E² Σ P²) / (1 + E)².

Little cancels: 1 + E is at least P_ij*, as rows add up to 1, and E² P_ij*² is part of the sum. ``sums_after_norm`` is
``norms.change_after_norm``. All arrays are float32 and in C order.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba.extending import overload
from numpy.polynomial import chebyshev

ROWS_AT_ONCE = 16
KEYS_AT_ONCE = 32
"""The keys that a row sees are rounded up to whole vector registers; P is zero beyond."""
NEURONS_AT_ONCE = 512
VALUES_AT_ONCE = 64
NEAR = 1.0
"""Up to this |x| a polynomial alone gives e^x − 1 in single precision."""
FAR = 40.0
"""Beyond this |x| squares of e^x could overflow: what the row becomes is computed instead of how it changes."""

_calls = threading.Lock()
_fast = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_NEAR, _FAR = np.float32(NEAR), np.float32(FAR)


def _compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiled at the first call and kept on disk, where there is a folder to write to."""

    def compiled(loop: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **_fast, **options)(loop)
        except RuntimeError:
            return numba.njit(**_fast, **options)(loop)

    return compiled


def applies(tensor: torch.Tensor) -> bool:
    """Whether these loops can read it: single precision on a CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


@contextmanager
def threads() -> Iterator[None]:
    """As many as PyTorch uses; one call at a time, as not every threading layer of numba stands two."""
    with _calls:
        before = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
        try:
            yield
        finally:
            numba.set_num_threads(before)


@_compiled(parallel=True)
@no_type_check
def weights_of_rows(pattern, scores, seen):
    """By head and row: the most attended key, Σ P² and the largest |R|."""
    star = np.zeros(pattern.shape[:2], np.int64)
    squares, largest = np.zeros(pattern.shape[:2], np.float32), np.zeros(pattern.shape[:2], np.float32)
    for task in numba.prange(pattern.shape[0] * pattern.shape[1]):
        head, i = task // pattern.shape[1], task % pattern.shape[1]
        most, total, size = _ZERO, _ZERO, _ZERO
        for j in range(seen[i]):
            p = pattern[head, i, j]
            most = max(most, p)
            total += p * p
            size = max(size, abs(scores[head, i, j]))
        squares[head, i], largest[head, i] = total, size
        for j in range(seen[i]):
            if pattern[head, i, j] >= most:
                star[head, i] = j
                break
    return star, squares, largest


@_compiled(parallel=True)
@no_type_check
def sums_of_rows(pattern, scores, seen, of_rows, ends, left, right, shrink, own_rows, largest_shrink, sums):
    """By block of rows and unit: the squared changes of these rows.

    A unit has Δ_ij = left0_i right0_j + left1_i right1_j + shrink R_ij, with ``shrink`` by query, or by key if its
    largest values are given; units of a head lie between two ``ends``. ``left`` and ``right`` are which rows of two
    tables a unit takes, and the tables; ``right`` also has how far apart their entries are.
    """
    star, squares, largest = of_rows
    left0_rows, left1_rows, left0, left1 = left
    right0_rows, right1_rows, right0, right1, spread0, spread1 = right
    blocks, by_key = len(sums), len(largest_shrink) > 0
    for task in numba.prange(len(pattern) * blocks):
        # every share of the tasks gets all heads, and short rows with long ones
        head, turn = task % len(pattern), task // len(pattern)
        block = blocks - 1 - turn // 2 if turn % 2 else turn // 2
        rows = range(block * ROWS_AT_ONCE, min(len(seen), (block + 1) * ROWS_AT_ONCE))
        for u in range(ends[head], ends[head + 1]):
            key0, key1, own = right0[right0_rows[u]], right1[right1_rows[u]], shrink[own_rows[u]]
            far0, far1 = spread0[right0_rows[u]], spread1[right1_rows[u]]
            total = _ZERO
            for i in rows:
                p, r, n, top, power = pattern[head, i], scores[head, i], seen[i], star[head, i], squares[head, i]
                a, b = left0[left0_rows[u], i], left1[left1_rows[u], i]
                bound = abs(a) * far0 + abs(b) * far1
                if by_key:
                    bound += _TWO * largest_shrink[own_rows[u]] * largest[head, i]
                    total += _row(p, r, key0, key1, a, b, own, top, power, n, bound)
                else:
                    bound += _TWO * abs(own[i]) * largest[head, i]
                    total += _row(p, r, key0, key1, a, b, own[i], top, power, n, bound)
            sums[block, u] += total


@_compiled(inline="always")
@no_type_check
def _row(pattern, scores, key0, key1, a, b, shrink, star, squares, seen, bound):
    """Σ_j (softmax(R') − P)² of one row, with Δ_j = a key0_j + b key1_j + shrink R_j and |x| ≤ bound."""
    shift = a * key0[star] + b * key1[star] + _at(shrink, star) * scores[star]
    growth, first, second = _ZERO, _ZERO, _ZERO
    if bound < _NEAR:
        for j in range(seen):
            x = shift - a * key0[j] - b * key1[j] - _at(shrink, j) * scores[j]
            weighted = pattern[j] * _expm1_near(x)
            growth += weighted
            first += weighted * pattern[j]
            second += weighted * weighted
    elif bound < _FAR:
        for j in range(seen):
            x = shift - a * key0[j] - b * key1[j] - _at(shrink, j) * scores[j]
            weighted = pattern[j] * _expm1(x)
            growth += weighted
            first += weighted * pattern[j]
            second += weighted * weighted
    else:
        return _far_row(pattern, scores, key0, key1, a, b, shrink, seen)
    # rounding may leave a little less than nothing
    return max(second - _TWO * growth * first + growth * growth * squares, _ZERO) / ((_ONE + growth) * (_ONE + growth))


@_compiled(inline="always")
@no_type_check
def _far_row(pattern, scores, key0, key1, a, b, shrink, seen):
    """The same for any Δ: the largest new score first, then the new row."""
    most, total, changed = -np.float32(np.inf), _ZERO, _ZERO
    for j in range(seen):
        if pattern[j] > 0:
            most = max(most, -(a * key0[j] + b * key1[j] + _at(shrink, j) * scores[j]))
    for j in range(seen):
        x = -(a * key0[j] + b * key1[j] + _at(shrink, j) * scores[j]) - most
        total += pattern[j] * (_ONE + _expm1(min(max(x, -_TWO * _FAR), _ZERO)))
    for j in range(seen):
        x = -(a * key0[j] + b * key1[j] + _at(shrink, j) * scores[j]) - most
        change = pattern[j] * ((_ONE + _expm1(min(max(x, -_TWO * _FAR), _ZERO))) / total - _ONE)
        changed += change * change
    return changed


def _at(shrink, key):
    """A key's entry of what may be one number for all keys."""
    return shrink[key] if isinstance(shrink, np.ndarray) else shrink


@overload(_at, inline="always")
@no_type_check
def _typed_at(shrink, key):
    if isinstance(shrink, numba.types.Array):
        return lambda shrink, key: shrink[key]
    return lambda shrink, key: shrink


def _fitted() -> list[np.float32]:
    """(e^x − 1 − x) / x² for |x| ≤ NEAR as a polynomial, lowest power first."""

    def wanted(t: np.ndarray) -> np.ndarray:
        x = NEAR * t
        return (np.expm1(x) - x) / x**2

    powers = chebyshev.cheb2poly(chebyshev.chebinterpolate(wanted, 5))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return [np.float32(power / NEAR**at) for at, power in enumerate(powers)]


_C0, _C1, _C2, _C3, _C4, _C5 = _fitted()
_PER_LOG2 = np.float32(1 / math.log(2))
_LOG2_HIGH = np.float32(355 / 512)  # few enough bits that its multiples are exact
_LOG2_LOW = np.float32(math.log(2) - 355 / 512)


@_compiled(inline="always")
@no_type_check
def _expm1_near(x):
    return (((((_C5 * x + _C4) * x + _C3) * x + _C2) * x + _C1) * x + _C0) * (x * x) + x


@_compiled(inline="always")
@no_type_check
def _expm1(x):
    """2^n e^y − 1 with x = n log 2 + y, without cancellation where n = 0."""
    n = np.floor(x * _PER_LOG2 + np.float32(0.5))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return power * _expm1_near(x - n * _LOG2_HIGH - n * _LOG2_LOW) + (power - _ONE)


@_compiled(parallel=True)
@no_type_check
def sums_after_norm(hidden, content, along, along_gained, squares, squares_gained, scale, output, per_d_model):
    """Σ over content of ``norms.change_after_norm`` for contributions h W[k].

    ``hidden`` and both ``along`` (which leave out h) are [position, neuron], ``squares`` ‖W[k]‖² and ‖g∘W[k]‖²,
    ``scale`` r and ``output`` ‖g∘y‖² / r² by position, ``per_d_model`` 1 / D.
    """
    sums = np.zeros(hidden.shape[1], np.float32)
    for chunk in numba.prange(-(-hidden.shape[1] // NEURONS_AT_ONCE)):
        some = slice(chunk * NEURONS_AT_ONCE, (chunk + 1) * NEURONS_AT_ONCE)
        total, square, square_gained = sums[some], squares[some], squares_gained[some]
        for i in range(len(hidden)):
            if content[i]:
                own, dot, dot_gained, r, size = (
                    hidden[i, some],
                    along[i, some],
                    along_gained[i, some],
                    scale[i],
                    output[i],
                )
                for k in range(len(total)):
                    h = own[k]
                    gained = h * h * square_gained[k]
                    total[k] += _after_norm(
                        h * h * square[k], gained, h * dot[k], h * dot_gained[k], r, size, per_d_model
                    )
    return sums


@_compiled(parallel=True)
@no_type_check
def sums_of_values(mixed, content, along, along_gained, gram, gram_gained, scale, output, per_d_model):
    """Σ over content of ``norms.change_after_norm`` for contributions Σ_a z[a, k] W_O[a, k] of a group's heads a.

    ``mixed`` and both ``along`` are [position, group, head, neuron], both Gram matrices [group, pair, neuron], pairs of
    heads in the order of an upper triangle.
    """
    _, groups, heads, d_head = mixed.shape
    sums, chunks = np.zeros((groups, d_head), np.float32), -(-d_head // VALUES_AT_ONCE)
    for task in numba.prange(groups * chunks):
        group, start = task // chunks, task % chunks * VALUES_AT_ONCE
        some = slice(start, start + VALUES_AT_ONCE)
        total = sums[group, some]
        parts = np.empty((4, len(total)), np.float32)
        square, square_gained, dot, dot_gained = parts[0], parts[1], parts[2], parts[3]
        for i in range(len(mixed)):
            if content[i]:
                parts[:] = _ZERO
                pair = 0
                for a in range(heads):
                    z, one, one_gained = (
                        mixed[i, group, a, some],
                        along[i, group, a, some],
                        along_gained[i, group, a, some],
                    )
                    for k in range(len(total)):
                        dot[k] += z[k] * one[k]
                        dot_gained[k] += z[k] * one_gained[k]
                    for b in range(a, heads):
                        other, form, form_gained = (
                            mixed[i, group, b, some],
                            gram[group, pair, some],
                            gram_gained[group, pair, some],
                        )
                        for k in range(len(total)):
                            square[k] += z[k] * other[k] * form[k]
                            square_gained[k] += z[k] * other[k] * form_gained[k]
                        pair += 1
                for k in range(len(total)):
                    total[k] += _after_norm(
                        square[k], square_gained[k], dot[k], dot_gained[k], scale[i], output[i], per_d_model
                    )
    return sums


@_compiled(inline="always")
@no_type_check
def _after_norm(square, square_gained, dot, dot_gained, r, size, per_d_model):
    """``norms.change_after_norm`` of one contribution."""
    difference = (square - _TWO * r * dot) * per_d_model
    new = np.sqrt(max(r * r + difference, _ZERO))
    inverse = _ONE / new
    e_r = difference * inverse / (r + new)
    return e_r * e_r * size + (_TWO * e_r * dot_gained + square_gained * inverse) * inverse
