"""What Triton kernels of the attention pattern read, and how much they make of it: tiles of rows, keys and neurons."""

from typing import no_type_check

import triton
import triton.language as tl

_SMALL = tl.constexpr(0.25)
"""Below this |x| a polynomial gives e^x − 1, as the difference would lose digits."""


@triton.jit
@no_type_check
def rows_tile(
    mine,
    other,
    itself,
    i,
    d,
    partner,
    rows,
    real,
    table,
    width,
    OF_QUERIES: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """What the rows bring to −Δ, four times [row, neuron]: tables of their neurons, or what key neurons meet."""
    mask, here = rows[:, None] & real[None, :], i[:, None] * width + d[None, :]
    source = mine if OF_QUERIES else other
    left0 = -itself * tl.load(source + here, mask=mask, other=0.0)
    left1, left2, left3 = left0 * 0.0, left0 * 0.0 - 1.0, left0 * 0.0 + 1.0
    if PAIRED:
        if OF_QUERIES:
            left1 = -itself * tl.load(mine + table + here, mask=mask, other=0.0)
        else:
            left1 = -itself * tl.load(other + i[:, None] * width + partner[None, :], mask=mask, other=0.0)
    if OF_QUERIES:
        if SHRINK:
            left2 = -tl.load(mine + table + table + here, mask=mask, other=0.0)
        if CENTRED:
            left3 = tl.load(mine + table + table + table + here, mask=mask, other=0.0)
    return left0, left1, left2, left3


@triton.jit
@no_type_check
def pattern_tile(
    at_rows, start, until, KEYS: tl.constexpr, SCORES: tl.constexpr, LEVELS: tl.constexpr, CAUSAL: tl.constexpr
):
    """P, R and M of some keys by [row, key], zero where they are not needed, and which keys the rows may see."""
    p_at, r_at, m_at, i, rows = at_rows
    j = start + tl.arange(0, KEYS)
    seen = rows[:, None] & (j < until)[None, :]
    if CAUSAL:
        seen = seen & (j[None, :] <= i[:, None])
    p = tl.load(p_at[:, None] + j[None, :], mask=seen, other=0.0)
    r, m = p, p
    if SCORES:
        r = tl.load(r_at[:, None] + j[None, :], mask=seen, other=0.0)
    if LEVELS:
        m = tl.load(m_at[:, None] + j[None, :], mask=seen, other=0.0)
    return p, r, m, seen


@triton.jit
@no_type_check
def keys_tile(
    start,
    right,
    KEYS: tl.constexpr,
    OF_QUERIES: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """What the keys bring to Δ, four times [key, neuron]; the last two are 1 for query neurons."""
    mine, other, d, partner, real, table, width, until, _ = right
    j = start + tl.arange(0, KEYS)
    mask, here = (j < until)[:, None] & real[None, :], j[:, None] * width + d[None, :]
    source = other if OF_QUERIES else mine
    right0 = tl.load(source + here, mask=mask, other=0.0)
    right1, right2, right3 = right0, right0, right0
    if PAIRED:
        if OF_QUERIES:
            right1 = tl.load(other + j[:, None] * width + partner[None, :], mask=mask, other=0.0)
        else:
            right1 = tl.load(mine + table + here, mask=mask, other=0.0)
    if not OF_QUERIES:
        if SHRINK:
            right2 = tl.load(mine + table + table + here, mask=mask, other=0.0)
        if CENTRED:
            right3 = tl.load(mine + table + table + table + here, mask=mask, other=0.0)
    return right0, right1, right2, right3


@triton.jit
@no_type_check
def shift_of_rows(
    left,
    right,
    at_rows,
    end,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NEURONS: tl.constexpr,
    OF_QUERIES: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
    CAP: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """−Σ_j P Δ [row, neuron], after a soft cap to first order in Δ, with Σ P and Σ P² by row."""
    until, cap = right[7], right[8]
    total, squares = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    of_scores, of_levels = total, total
    shift = tl.zeros([ROWS, NEURONS], tl.float32)
    mean0, mean1, mean2, mean3 = shift, shift, shift, shift
    for start in range(0, end, KEYS):
        p, r, m, _ = pattern_tile(at_rows, start, until, KEYS, SHRINK or CAP, CENTRED, CAUSAL)
        total += tl.sum(p, 1)
        squares += tl.sum(p * p, 1)
        if CAP:
            after = tanh(r / cap)
            p = p * (1.0 - after * after)
        right0, right1, right2, right3 = keys_tile(start, right, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED)
        mean0 += tl.sum(p[:, :, None] * right0[None, :, :], 1)
        if PAIRED:
            mean1 += tl.sum(p[:, :, None] * right1[None, :, :], 1)
        if SHRINK:
            if OF_QUERIES:
                of_scores += tl.sum(p * r, 1)
            else:
                mean2 += tl.sum((p * r)[:, :, None] * right2[None, :, :], 1)
        if CENTRED:
            if OF_QUERIES:
                of_levels += tl.sum(p * m, 1)
            else:
                mean3 += tl.sum((p * m)[:, :, None] * right3[None, :, :], 1)
    if OF_QUERIES:
        mean2, mean3 = mean2 + of_scores[:, None], mean3 + of_levels[:, None]
    shift = left[0] * mean0
    if PAIRED:
        shift += left[1] * mean1
    if SHRINK:
        shift += left[2] * mean2
    if CENTRED:
        shift += left[3] * mean3
    return shift, total, squares


@triton.jit
@no_type_check
def change_tile(
    start,
    left,
    right,
    r,
    m,
    shift,
    KEYS: tl.constexpr,
    OF_QUERIES: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
    CAP: tl.constexpr,
):
    """x = −Δ − shift at some keys, where a soft cap comes before the shift: [row, key, neuron]."""
    cap = right[8]
    right0, right1, right2, right3 = keys_tile(start, right, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED)
    x = left[0][:, None, :] * right0[None, :, :]
    if not CAP:
        x -= shift[:, None, :]
    if PAIRED:
        x += left[1][:, None, :] * right1[None, :, :]
    if SHRINK:
        if OF_QUERIES:
            x += left[2][:, None, :] * r[:, :, None]
        else:
            x -= r[:, :, None] * right2[None, :, :]
    if CENTRED:
        if OF_QUERIES:
            x += left[3][:, None, :] * m[:, :, None]
        else:
            x += m[:, :, None] * right3[None, :, :]
    if CAP:
        # tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)
        after = tanh((r[:, :, None] + x) / cap)
        x = cap * tanh(x / cap) * (1.0 - tanh(r / cap)[:, :, None] * after) - shift[:, None, :]
    return x


@triton.jit
@no_type_check
def capped(scores, cap, CAP: tl.constexpr):
    """Scores after a soft cap, if there is one."""
    return cap * tanh(scores / cap) if CAP else scores


@triton.jit
@no_type_check
def expm1(x):
    """Without cancellation near zero."""
    near = x * (1.0 / 720) + 1.0 / 120
    near = near * x + 1.0 / 24
    near = near * x + 1.0 / 6
    near = near * x + 0.5
    return tl.where(tl.abs(x) < _SMALL, (near * x) * x + x, tl.exp(x) - 1.0)


@triton.jit
@no_type_check
def tanh(x):
    """Without cancellation near zero."""
    m = expm1(-2.0 * tl.abs(x))
    size = -m / (m + 2.0)
    return tl.where(x < 0, -size, size)
