"""Compiled loops for a CPU, in float32 and C order: what would otherwise be a dozen passes over memory, in one.

``normalise_and_rotate`` is what ``attention.Geometry`` makes of queries or keys; ``sums_after_norm`` and
``sums_of_values`` are ``after_norm.change_after_norm``. The loops of the attention pattern are in ``compiled_rows``.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from ...model import jit

NEURONS_AT_ONCE = 512
VALUES_AT_ONCE = 64

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_calls = threading.Lock()
_launched = False
"""Whether this process has begun numba's threads, which its forks do not have."""
_forked = False
"""Whether this is a fork of such a process: there numba's OpenMP would end it, and PyTorch's with threads hang."""
# numba keeps what it compiled by the file of each loop: after a change here, delete the folders __pycache__
# no "reassoc": the process that compiles a parallel loop optimises it twice, and the order of sums must not show that
_OPTIONS: Any = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """By ``jit.compiled``, with the options of all these loops."""
    return jit.compiled(**_OPTIONS, **options)


inlined = compiled(inline="always")


@intrinsic
@no_type_check
def widest_vectors(_):
    """The loop that says this uses the widest vectors of the processor; LLVM stops at half of AVX-512 otherwise."""

    def generate(context, builder, *_):
        attributes = builder.function.attributes
        if isinstance(attributes, set):
            set.add(attributes, '"prefer-vector-width"="512"')  # llvmlite has no name for it
        return context.get_dummy_value()

    return numba.types.none(), generate


@intrinsic
@no_type_check
def from_cache_line(_, array):
    """The same memory from its first cache line on, as vectors in two lines cost more.

    It still has its length, so 64 bytes at its end must be cut off: they belong to others.
    """

    def generate(context, builder, _, arguments):
        view = context.make_array(array)(context, builder, arguments[0])
        size = context.get_value_type(numba.types.intp)
        skipped = builder.and_(builder.neg(builder.ptrtoint(view.data, size)), ir.Constant(size, 63))
        by_byte = builder.bitcast(view.data, ir.IntType(8).as_pointer())
        view.data = builder.bitcast(builder.gep(by_byte, [skipped]), view.data.type)
        return impl_ret_borrowed(context, builder, array, view._getvalue())

    return array(array), generate


def is_cpu_float32(tensor: torch.Tensor) -> bool:
    """Whether these loops can read it: single precision on a CPU, in a process that can run them."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not _forked


def _after_fork() -> None:
    global _calls, _forked
    _calls = threading.Lock()
    if _launched and not _forked:
        _forked = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def threads() -> Iterator[None]:
    """As many as PyTorch uses; one call at a time: some threading layers of numba are not re-entrant."""
    global _launched
    with _calls:
        _launched, count = True, torch.get_num_threads()
        before = numba.get_num_threads()
        if torch.get_num_threads() != count:  # numba's OpenMP layer, which has just begun, gave PyTorch all cores
            torch.set_num_threads(count)
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
        try:
            yield
        finally:
            numba.set_num_threads(before)


@compiled(parallel=True)
@no_type_check
def normalise_and_rotate(x, gain, eps, rotation, scale):
    """x̃, 1 − ρ, ρ x̂ c / m and ρ x̂ s / m, each [head, pos, d_head], of x by [pos, head, d_head].

    ``rotation``: c and s, both [pos, d_head], and each coordinate's partner. Without normalisation ``gain`` is empty.
    """
    cosine, sine, pair = rotation
    length, heads, width = x.shape
    out = np.empty((4, heads, length, width), np.float32)
    for i in numba.prange(length):
        widest_vectors()
        hat, turned = np.empty(width, np.float32), np.empty(width, np.float32)
        for head in range(heads):
            row, total = x[i, head], np.float32(width) * eps
            rotated, shrink, direct, paired = out[0, head, i], out[1, head, i], out[2, head, i], out[3, head, i]
            hat[:], shrink[:] = row, np.float32(0)
            if len(gain):
                for d in range(width):
                    total += row[d] * row[d]
                inverse, size = _ONE / total, np.sqrt(np.float32(width) / total)
                for d in range(width):
                    share = row[d] * row[d] * inverse
                    root = np.sqrt(_ONE - share)
                    hat[d] = row[d] * size * gain[d]
                    shrink[d] = -share / (root + root * root)  # 1 − 1 / root, without cancellation
            for d in range(width):
                grown = (hat[d] - hat[d] * shrink[d]) / scale
                direct[d], paired[d], turned[d] = grown * cosine[i, d], grown * sine[i, d], hat[d] * sine[i, d]
            for d in range(width):
                rotated[d] = hat[d] * cosine[i, d] + turned[pair[d]]
    return out


@compiled(parallel=True)
@no_type_check
def sums_after_norm(hidden, content, along, squares, output):
    """Σ over content of ``after_norm.change_after_norm`` for contributions h W[k].

    ``hidden`` and both ``along`` (which leave out h) are [position, neuron], ``squares`` ‖W[k]‖² and ‖g∘W[k]‖² by
    neuron, ``output`` r and ‖g∘y‖² / r² by position, and 1 / D.
    """
    sums = np.zeros(hidden.shape[1], np.float32)
    for chunk in numba.prange(-(-hidden.shape[1] // NEURONS_AT_ONCE)):
        some = slice(chunk * NEURONS_AT_ONCE, (chunk + 1) * NEURONS_AT_ONCE)
        total, square, square_gained = sums[some], squares[0][some], squares[1][some]
        for i in range(len(hidden)):
            if content[i]:
                row, dot, dot_gained = hidden[i, some], along[0][i, some], along[1][i, some]
                of_output = output[0][i], output[1][i], output[2]
                for k in range(len(total)):
                    h = row[k]
                    both = h * h * square[k], h * h * square_gained[k]
                    total[k] += _after_norm(both[0], both[1], h * dot[k], h * dot_gained[k], of_output)
    return sums


@compiled(parallel=True)
@no_type_check
def sums_of_values(mixed, content, along, grams, output):
    """Σ over content of ``after_norm.change_after_norm`` for contributions Σ_a z[a, k] W_O[a, k] of a group's heads a.

    ``mixed`` and both ``along`` are [position, group, head, neuron], ``grams`` (without and with gain) [group, pair,
    neuron], pairs of heads in the order of an upper triangle; ``output`` as above.
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
                    z = mixed[i, group, a, some]
                    one, one_gained = along[0][i, group, a, some], along[1][i, group, a, some]
                    for k in range(len(total)):
                        dot[k] += z[k] * one[k]
                        dot_gained[k] += z[k] * one_gained[k]
                    for b in range(a, heads):
                        other = mixed[i, group, b, some]
                        form, form_gained = grams[0][group, pair, some], grams[1][group, pair, some]
                        for k in range(len(total)):
                            square[k] += z[k] * other[k] * form[k]
                            square_gained[k] += z[k] * other[k] * form_gained[k]
                        pair += 1
                of_output = output[0][i], output[1][i], output[2]
                for k in range(len(total)):
                    total[k] += _after_norm(square[k], square_gained[k], dot[k], dot_gained[k], of_output)
    return sums


@inlined
@no_type_check
def _after_norm(square, square_gained, dot, dot_gained, output):
    """``after_norm.change_after_norm`` of one contribution."""
    r, size, per_d_model = output
    difference = (square - _TWO * r * dot) * per_d_model
    new = np.sqrt(max(r * r + difference, _ZERO))
    inverse = _ONE / new
    e_r = difference * inverse / (r + new)
    return e_r * e_r * size + (_TWO * e_r * dot_gained + square_gained * inverse) * inverse
