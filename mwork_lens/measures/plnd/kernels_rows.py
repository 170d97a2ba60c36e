"""Triton kernels for the attention pattern: how far its rows move, for all documents of a batch and all heads at once.

A program owns some rows of one head and some neurons, keeps its sums of [row, neuron] in registers and walks over the
keys, so there is no tensor of [neuron, query, key]. Rows that turn around are few: they are marked, and left to a
second kernel, which needs more registers and returns at once where nothing is marked.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .kernels import INTERPRETED

TILES = {"ROWS": 32, "KEYS": 32, "NEURONS": 64} if INTERPRETED else {"ROWS": 8, "KEYS": 8, "NEURONS": 32}
"""For a program; the last is what the threads of a program divide among them."""
WARPS = 1

_GATHERED = tl.constexpr(-0.5)
"""Below this E, 1 + E loses digits."""
_SMALL = tl.constexpr(0.25)
"""Below this |x| a polynomial gives e^x − 1, as the difference would lose digits."""
_EXPLAINED = tl.constexpr(0.05)


@triton.jit
@no_type_check
def squares_of_rows(
    out,  # [batch, head, owner, row block, d]
    marks,  # [batch, head, owner, row block, neuron block]
    pattern,  # float32, contiguous
    scores,  # R, and M where a norm takes off the mean: [batch, head, query, key]
    levels,
    neurons,  # direct, paired, shrink, centre: [table, batch, owner, pos, d]
    others,  # [batch, other owner, pos, d]
    content,
    lengths,
    pair,
    table,
    length,
    heads,
    groups,
    width,
    cap,
    far,
    smallest,
    least_log,
    least_log_of_zero,
    negligible,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NEURONS: tl.constexpr,
    OF_QUERIES: tl.constexpr,
    OWNERS: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    FAR_ROWS: tl.constexpr,
):
    """Σ_i Σ_j (softmax_j(f(R − Δ)) − P)² over some rows i of one head, by neuron.

    Δ_ij = direct · x_j + paired · x_j,pair + shrink R_ij − centre M_ij, where x is the other side. The softmax does not
    see a shift: with m = expm1(Σ P Δ − Δ), E = Σ P m, F = Σ P² m and G = Σ P² m² a row has changed by
    (G − 2 E F + E² Σ P²) / (1 + E)², and E is not below zero (Jensen). With norms across heads a neuron also moves
    heads that are not its own (``OWNERS`` above one), by ``shrink`` alone. With ``FAR_ROWS`` only what the other form
    has marked is computed, and there rows with an x above ``far`` are taken from their new scores.
    """
    # the rows that see most keys come first
    unit, block, some = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    slot, head, document = unit % OWNERS, unit // OWNERS % heads, (unit // OWNERS // heads).to(tl.int64)
    at = unit.to(tl.int64) * tl.num_programs(1) + block
    mark = marks + at * tl.num_programs(2) + some
    group = head // (heads // groups)
    own, met = (head, group) if OF_QUERIES else (group, head)
    owners, met_owners = (heads, groups) if OF_QUERIES else (groups, heads)
    owner = own if OWNERS == 1 else slot
    until = tl.load(lengths + document)
    end = tl.where(block * ROWS < until, tl.minimum(until, (block + 1) * ROWS) if CAUSAL else until, 0)
    if FAR_ROWS:
        end = tl.where(tl.load(mark) != 0, end, 0)
    i, d = block * ROWS + tl.arange(0, ROWS), some * NEURONS + tl.arange(0, NEURONS)
    rows, real = i < until, d < width
    scored = rows & (tl.load(content + document * length + i, mask=rows, other=0) != 0)
    partner = tl.load(pair + d, mask=real, other=0)
    row = ((document * heads + head) * length + i.to(tl.int64)) * length
    mine = neurons + (document * owners + owner) * length * width
    other = others + (document * met_owners + met) * length * width
    itself = tl.where(owner == own, 1.0, 0.0) if OWNERS > 1 else 1.0
    left = _of_rows(mine, other, itself, i, d, partner, rows, real, table, width, OF_QUERIES, PAIRED, SHRINK, CENTRED)
    right = (mine, other, d, partner, real, table, width, until, cap)
    at_rows = (pattern + row, scores + row, levels + row, i, rows)

    shift, total, squares = _shift(
        left, right, at_rows, end, ROWS, KEYS, NEURONS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP, CAUSAL
    )
    growth, first = tl.zeros([ROWS, NEURONS], tl.float32), tl.zeros([ROWS, NEURONS], tl.float32)
    second, largest = growth, growth
    sink = tl.maximum(1.0 - total, 0.0) if SINKS else total * 0.0
    if SINKS:
        largest = -shift
        growth = sink[:, None] * _expm1(tl.minimum(-shift, far))
    for start in range(0, end, KEYS):
        p, r, m, _ = _keys(at_rows, start, until, KEYS, SHRINK or CAP, CENTRED, CAUSAL)
        x = _change(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        largest = tl.maximum(largest, tl.max(x, 1))  # of keys too that the row does not see
        w = p[:, :, None] * _expm1(tl.minimum(x, far))
        growth += tl.sum(w, 1)
        first += tl.sum(w * p[:, :, None], 1)
        second += tl.sum(w * w, 1)
    changed = second - 2.0 * growth * first + growth * growth * squares[:, None]
    # rounding may leave a little less than nothing
    changed = tl.maximum(changed, 0.0) / ((1.0 + growth) * (1.0 + growth))
    turns = ((largest > far) | (growth < _GATHERED)) & scored[:, None] & real[None, :]
    if FAR_ROWS:
        turned, reach = _turned(
            left,
            right,
            at_rows,
            shift,
            sink,
            end,
            (least_log, least_log_of_zero, negligible, smallest),
            ROWS,
            KEYS,
            NEURONS,
            OF_QUERIES,
            PAIRED,
            SHRINK,
            CENTRED,
            CAP,
            SINKS,
            CAUSAL,
        )
        changed = tl.where(turns & ((reach > far) | (growth < _GATHERED)), turned, changed)
    summed = tl.sum(tl.where(scored[:, None], changed, 0.0), 0)
    here = real
    if FAR_ROWS:
        here = real & (d * 0 + end > 0)
    else:
        tl.store(mark, tl.max(tl.max(turns.to(tl.int32), 1), 0).to(tl.int8))
    tl.store(out + at * width + d, summed, mask=here)


@triton.jit
@no_type_check
def _of_rows(
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
            left2 = -tl.load(mine + 2 * table + here, mask=mask, other=0.0)
        if CENTRED:
            left3 = tl.load(mine + 3 * table + here, mask=mask, other=0.0)
    return left0, left1, left2, left3


@triton.jit
@no_type_check
def _keys(at_rows, start, until, KEYS: tl.constexpr, SCORES: tl.constexpr, LEVELS: tl.constexpr, CAUSAL: tl.constexpr):
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
def _of_keys(
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
            right2 = tl.load(mine + 2 * table + here, mask=mask, other=0.0)
        if CENTRED:
            right3 = tl.load(mine + 3 * table + here, mask=mask, other=0.0)
    return right0, right1, right2, right3


@triton.jit
@no_type_check
def _shift(
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
        p, r, m, _ = _keys(at_rows, start, until, KEYS, SHRINK or CAP, CENTRED, CAUSAL)
        total += tl.sum(p, 1)
        squares += tl.sum(p * p, 1)
        if CAP:
            after = _tanh(r / cap)
            p = p * (1.0 - after * after)
        right0, right1, right2, right3 = _of_keys(start, right, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED)
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
def _change(
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
    right0, right1, right2, right3 = _of_keys(start, right, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED)
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
        after = _tanh((r[:, :, None] + x) / cap)
        x = cap * _tanh(x / cap) * (1.0 - _tanh(r / cap)[:, :, None] * after) - shift[:, None, :]
    return x


@triton.jit
@no_type_check
def _turned(
    left,
    right,
    at_rows,
    shift,
    sink,
    end,
    least,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NEURONS: tl.constexpr,
    OF_QUERIES: tl.constexpr,
    PAIRED: tl.constexpr,
    SHRINK: tl.constexpr,
    CENTRED: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """The same from the new scores, for any change, and the largest x of a key that may have a weight: [row, neuron].

    Weights that the softmax lost are taken from the scores, where these explain the others of their row (as in
    ``attention.Attention.log_pattern``); NaN where one that counts may have been lost and they do not.
    """
    until, cap = right[7], right[8]
    most, at_most = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, end, KEYS):
        p, r, m, seen = _keys(at_rows, start, until, KEYS, True, False, CAUSAL)
        highest = tl.max(p, 1)
        its = tl.max(tl.where(p == highest[:, None], r, -float("inf")), 1)
        at_most, most = tl.where(highest > most, its, at_most), tl.maximum(highest, most)
    level = tl.log(tl.where(most > 0, most, 1.0)) - _capped(at_most, cap, CAP)
    apart = tl.zeros([ROWS], tl.float32)
    for start in range(0, end, KEYS):
        p, r, m, seen = _keys(at_rows, start, until, KEYS, True, False, CAUSAL)
        told = _capped(r, cap, CAP) + level[:, None]
        away = tl.where(p > 0, tl.abs(tl.log(tl.where(p > 0, p, 1.0)) - told), float("inf"))
        kept = seen & ((told >= least[0]) | (p >= least[3]))
        apart = tl.maximum(apart, tl.max(tl.where(kept, away, 0.0), 1))
    explained = apart < _EXPLAINED
    none = tl.zeros([ROWS, NEURONS], tl.float32) - float("inf")
    best, unknown, reach = none, none, none
    of_sink = none
    if SINKS:
        of_sink = tl.where((sink > 0)[:, None], tl.log(tl.where(sink > 0, sink, 1.0))[:, None] - shift, -float("inf"))
        best, reach = of_sink, -shift
    for start in range(0, end, KEYS):
        p, r, m, seen = _keys(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = _log(p, r, seen, level, explained, least, cap, CAP)
        x = _change(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        best = tl.maximum(best, tl.max(known[:, :, None] + x, 1))
        unknown = tl.maximum(unknown, tl.max(tl.where(open_[:, :, None], x + least[1], -float("inf")), 1))
        weighs = (known > -float("inf")) | open_
        reach = tl.maximum(reach, tl.max(tl.where(weighs[:, :, None], x, -float("inf")), 1))
    best = tl.where(best > -float("inf"), best, 0.0)
    total = tl.exp(of_sink - best)
    for start in range(0, end, KEYS):
        p, r, m, seen = _keys(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = _log(p, r, seen, level, explained, least, cap, CAP)
        x = _change(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        total += tl.sum(tl.exp(known[:, :, None] + x - best[:, None, :]), 1)
    total = tl.where(total > 0, total, 1.0)
    squares = tl.zeros([ROWS, NEURONS], tl.float32)
    for start in range(0, end, KEYS):
        p, r, m, seen = _keys(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = _log(p, r, seen, level, explained, least, cap, CAP)
        x = _change(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        changed = tl.exp(known[:, :, None] + x - best[:, None, :]) / total[:, None, :] - p[:, :, None]
        squares += tl.sum(changed * changed, 1)
    return tl.where(unknown > best - least[2], float("nan"), squares), reach


@triton.jit
@no_type_check
def _log(p, r, seen, level, explained, least, cap, CAP: tl.constexpr):
    """The logarithm of P by [row, key], and whether that may be a weight which was lost."""
    told = _capped(r, cap, CAP) + level[:, None]
    lost = seen & (told < least[0]) & (p < least[3])
    known = tl.where(p > 0, tl.log(tl.where(p > 0, p, 1.0)), -float("inf"))
    return tl.where(lost & explained[:, None], told, known), lost & (p == 0) & (explained[:, None] == 0)


@triton.jit
@no_type_check
def _capped(scores, cap, CAP: tl.constexpr):
    return cap * _tanh(scores / cap) if CAP else scores


@triton.jit
@no_type_check
def _expm1(x):
    near = x * (1.0 / 720) + 1.0 / 120
    near = near * x + 1.0 / 24
    near = near * x + 1.0 / 6
    near = near * x + 0.5
    return tl.where(tl.abs(x) < _SMALL, (near * x) * x + x, tl.exp(x) - 1.0)


@triton.jit
@no_type_check
def _tanh(x):
    """Without cancellation near zero."""
    m = _expm1(-2.0 * tl.abs(x))
    size = -m / (m + 2.0)
    return tl.where(x < 0, -size, size)
