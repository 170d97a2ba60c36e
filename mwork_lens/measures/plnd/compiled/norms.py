"""What norms make of neurons: of queries or keys, with rotation, and of contributions, after a post-norm."""

from typing import no_type_check

import numba
import numpy as np

from .tools import compiled, inlined, widest_vectors

NEURONS_AT_ONCE = 512
VALUES_AT_ONCE = 64

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@compiled(parallel=True)
@no_type_check
def normalise_and_rotate(x, gain, eps, cosine, sine, pair, scale):
    """x̃, 1 − ρ, ρ x̂ c / m and ρ x̂ s / m, each [head, pos, d_head], of x by [pos, head, d_head].

    ``cosine`` and ``sine`` are [pos, d_head]; without normalisation ``gain`` is empty.
    """
    length, heads, width = x.shape
    found = np.empty((4, heads, length, width), np.float32)
    for i in numba.prange(length):
        widest_vectors()
        hat, turned = np.empty(width, np.float32), np.empty(width, np.float32)
        for head in range(heads):
            own, total = x[i, head], np.float32(width) * eps
            rotated, shrink, direct, paired = found[0, head, i], found[1, head, i], found[2, head, i], found[3, head, i]
            hat[:], shrink[:] = own, np.float32(0)
            if len(gain):
                for d in range(width):
                    total += own[d] * own[d]
                inverse, size = _ONE / total, np.sqrt(np.float32(width) / total)
                for d in range(width):
                    share = own[d] * own[d] * inverse
                    root = np.sqrt(_ONE - share)
                    hat[d] = own[d] * size * gain[d]
                    shrink[d] = -share / (root + root * root)  # 1 − 1 / root, without cancellation
            for d in range(width):
                grown = (hat[d] - hat[d] * shrink[d]) / scale
                direct[d], paired[d], turned[d] = grown * cosine[i, d], grown * sine[i, d], hat[d] * sine[i, d]
            for d in range(width):
                rotated[d] = hat[d] * cosine[i, d] + turned[pair[d]]
    return found


@compiled(parallel=True)
@no_type_check
def sums_after_norm(hidden, content, along, along_gained, squares, output, per_d_model):
    """Σ over content of ``post_norm.change_after_norm`` for contributions h W[k].

    ``hidden`` and both ``along`` (which leave out h) are [position, neuron], ``squares`` ‖W[k]‖² and ‖g∘W[k]‖² by
    neuron, ``output`` r and ‖g∘y‖² / r² by position, ``per_d_model`` 1 / D.
    """
    sums = np.zeros(hidden.shape[1], np.float32)
    for chunk in numba.prange(-(-hidden.shape[1] // NEURONS_AT_ONCE)):
        some = slice(chunk * NEURONS_AT_ONCE, (chunk + 1) * NEURONS_AT_ONCE)
        total, square, square_gained = sums[some], squares[0][some], squares[1][some]
        for i in range(len(hidden)):
            if content[i]:
                own, dot, dot_gained, r, size = (
                    hidden[i, some],
                    along[i, some],
                    along_gained[i, some],
                    output[0][i],
                    output[1][i],
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
def sums_of_values(mixed, content, along, along_gained, grams, output, per_d_model):
    """Σ over content of ``post_norm.change_after_norm`` for contributions Σ_a z[a, k] W_O[a, k] of a group's heads a.

    ``mixed`` and both ``along`` are [position, group, head, neuron], ``grams`` (without and with gain) [group, pair,
    neuron], pairs of heads in the order of an upper triangle; ``output`` and ``per_d_model`` as above.
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
                            grams[0][group, pair, some],
                            grams[1][group, pair, some],
                        )
                        for k in range(len(total)):
                            square[k] += z[k] * other[k] * form[k]
                            square_gained[k] += z[k] * other[k] * form_gained[k]
                        pair += 1
                for k in range(len(total)):
                    total[k] += _after_norm(
                        square[k], square_gained[k], dot[k], dot_gained[k], output[0][i], output[1][i], per_d_model
                    )
    return sums


@inlined
@no_type_check
def _after_norm(square, square_gained, dot, dot_gained, r, size, per_d_model):
    """``post_norm.change_after_norm`` of one contribution."""
    difference = (square - _TWO * r * dot) * per_d_model
    new = np.sqrt(max(r * r + difference, _ZERO))
    inverse = _ONE / new
    e_r = difference * inverse / (r + new)
    return e_r * e_r * size + (_TWO * e_r * dot_gained + square_gained * inverse) * inverse
