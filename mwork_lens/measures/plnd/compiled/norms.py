"""What neurons' contributions become in the residual stream, after a post-norm."""

from typing import no_type_check

import numba
import numpy as np

from .tools import compiled, inlined

NEURONS_AT_ONCE = 512
VALUES_AT_ONCE = 64

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@compiled(parallel=True)
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


@compiled(parallel=True)
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


@inlined
@no_type_check
def _after_norm(square, square_gained, dot, dot_gained, r, size, per_d_model):
    """``norms.change_after_norm`` of one contribution."""
    difference = (square - _TWO * r * dot) * per_d_model
    new = np.sqrt(max(r * r + difference, _ZERO))
    inverse = _ONE / new
    e_r = difference * inverse / (r + new)
    return e_r * e_r * size + (_TWO * e_r * dot_gained + square_gained * inverse) * inverse
