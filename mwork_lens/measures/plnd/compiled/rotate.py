"""Queries or keys normalised and rotated, and how each neuron enters the scores, in one pass (``attention.py``)."""

from typing import no_type_check

import numba
import numpy as np

from .tools import compiled, widest_vectors

_ONE = np.float32(1)


@compiled(parallel=True)
@no_type_check
def sides(x, gain, eps, cosine, sine, pair, scale):
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
