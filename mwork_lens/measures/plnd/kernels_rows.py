"""Triton kernels for the attention pattern: how far its rows move, for all documents of a batch and all heads at once.

A program owns some rows of one head and some neurons, keeps its sums of [row, neuron] in registers and walks over the
keys, so there is no tensor of [neuron, query, key]. Rows that turn around are few: they are marked, and left to a
second kernel, which needs more registers and returns at once where nothing is marked.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .kernels import INTERPRETED
from .kernels_far import turned_rows
from .kernels_tiles import change_tile, expm1, pattern_tile, rows_tile, shift_of_rows

WARPS = 1

_GATHERED = tl.constexpr(-0.5)
"""Below this E, 1 + E loses digits."""


def tiles(*, few_rows: bool, far_rows: bool) -> dict[str, int]:
    """Of a program: as large as its sums fit registers; the last is what the threads of a program divide among them."""
    if INTERPRETED:
        return {"ROWS": 32, "KEYS": 32, "NEURONS": 64}
    return {"ROWS": 4 if few_rows else 8, "KEYS": 8 if few_rows and far_rows else 4, "NEURONS": 32}


@triton.jit(do_not_specialize=["length"])
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
    if FAR_ROWS:  # nothing is read where nothing is marked
        until = tl.where(tl.load(mark) != 0, until, 0)
        end = tl.minimum(end, until)
    i, d = block * ROWS + tl.arange(0, ROWS), some * NEURONS + tl.arange(0, NEURONS)
    rows, real = i < until, d < width
    scored = rows & (tl.load(content + document * length + i, mask=rows, other=0) != 0)
    partner = tl.load(pair + d, mask=real, other=0)
    row = ((document * heads + head) * length + i.to(tl.int64)) * length
    mine = neurons + (document * owners + owner) * length * width
    other = others + (document * met_owners + met) * length * width
    itself = tl.where(owner == own, 1.0, 0.0) if OWNERS > 1 else 1.0
    left = rows_tile(mine, other, itself, i, d, partner, rows, real, table, width, OF_QUERIES, PAIRED, SHRINK, CENTRED)
    right = (mine, other, d, partner, real, table, width, until, cap)
    at_rows = (pattern + row, scores + row, levels + row, i, rows)

    shift, total, squares = shift_of_rows(
        left, right, at_rows, end, ROWS, KEYS, NEURONS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP, CAUSAL
    )
    growth, first = tl.zeros([ROWS, NEURONS], tl.float32), tl.zeros([ROWS, NEURONS], tl.float32)
    second, largest = growth, growth
    sink = tl.maximum(1.0 - total, 0.0) if SINKS else total * 0.0
    if SINKS:
        largest = -shift
        growth = sink[:, None] * expm1(tl.minimum(-shift, far, propagate_nan=tl.PropagateNan.ALL))
    for start in range(0, end, KEYS):
        p, r, m, _ = pattern_tile(at_rows, start, until, KEYS, SHRINK or CAP, CENTRED, CAUSAL)
        x = change_tile(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        largest = tl.maximum(largest, tl.max(x, 1))  # of keys too that the row does not see
        w = p[:, :, None] * expm1(tl.minimum(x, far, propagate_nan=tl.PropagateNan.ALL))
        growth += tl.sum(w, 1)
        first += tl.sum(w * p[:, :, None], 1)
        second += tl.sum(w * w, 1)
    changed = second - 2.0 * growth * first + growth * growth * squares[:, None]
    # rounding may leave a little less than nothing
    changed = tl.where(changed < 0, 0.0, changed) / ((1.0 + growth) * (1.0 + growth))
    turns = ((largest > far) | (growth < _GATHERED)) & scored[:, None] & real[None, :]
    if FAR_ROWS:
        turned, reach = turned_rows(
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
