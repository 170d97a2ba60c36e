"""A Triton kernel for value neurons whose head is normed: what each of them takes off each position's output.

Without neuron k of a group the output at position i loses w_ik = Σ_aj P_aij (β_jk e_k − c_jk v̂_j) W_O[a], with
c = ρ − 1 and β = ρ v̂. Its square needs no tensor of [position, neuron, d_model]: with G_ab = W_O[a] W_O[b]ᵀ,
Y_ab = V̂ G_ab, K_ab = Y_ab V̂ᵀ and B_a = P_a β it is
Σ_jj' c_jk c_j'k (Σ_ab P_aij P_bij' K_ab,jj') − 2 Σ_j c_jk Σ_ab P_aij Y_ab,jk B_b,ik + Σ_ab B_a,ik B_b,ik G_ab,kk,
where the brackets serve all neurons of the group. Its product with a direction x of the output is, with L_a = W_O[a] x,
Σ_a L_a,ik B_a,ik − Σ_j c_jk Σ_a P_aij v̂_j · L_ai. Where neuron k is nearly all of its head, terms cancel: a score has a
relative error of about ρ² · 1e-8.
"""

import math
from typing import no_type_check

import triton
import triton.language as tl

from .kernels import INTERPRETED

WARPS = 8


def tiles(heads: int, width: int) -> dict[str, int]:
    """Of a program, for groups of so many heads: the last is of how many it loads products at once."""
    padded = max(16, triton.next_power_of_2(width))
    together = math.gcd(heads, 4)
    if INTERPRETED:
        return {"ROWS": 32, "KEYS": 32, "OTHERS": 32, "NEURONS": padded, "PART": padded, "TOGETHER": together}
    return {"ROWS": 2, "KEYS": 16, "OTHERS": 32, "NEURONS": min(128, padded), "PART": 16, "TOGETHER": together}


@triton.jit(do_not_specialize=["length", "documents"])
@no_type_check
def squares_of_values(
    squares,  # [which, batch, query, group, d]
    dots,
    pattern,  # float32 [batch, group, head, query, key]
    normed,  # v̂ [batch, group, key, d]
    shrink,  # −c
    own,  # B [batch, group, head, query, d]
    grams,  # G [group, which, head, d, head, d]
    along,  # Y [group, batch, key, which, head, head, d]
    products,  # K [group, batch, key, which, head, head, key]
    seen,  # L [group, which, batch, query, head, d]
    content,
    lengths,
    documents,
    length,
    groups,
    heads,
    width,
    WHICH: tl.constexpr,
    DOTS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OTHERS: tl.constexpr,
    NEURONS: tl.constexpr,
    PART: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """‖w_ik‖² and, with ``DOTS``, ⟨w_ik, x_i⟩ at some rows i, of some neurons k of a group.

    Zero in rows without content; for each of so many weightings of the output's coordinates (``WHICH``).
    """
    # the rows that see most keys come first
    unit, block, some = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    which, group, document = unit % WHICH, unit // WHICH % groups, (unit // WHICH // groups).to(tl.int64)
    until = tl.load(lengths + document)
    # a line for each pair of a row and a key
    line, d = tl.arange(0, ROWS * KEYS), some * NEURONS + tl.arange(0, NEURONS)
    i, real = block * ROWS + line // KEYS, d < width
    rows = i < until
    rows = rows & (tl.load(content + document * length + i, mask=rows, other=0) != 0)
    at, by_key = document * groups + group, (group * documents + document) * length
    by_head = length.to(tl.int64) * length
    row = pattern + at * heads * by_head + i.to(tl.int64) * length
    met = seen + ((group * WHICH + which) * documents + document) * length * heads * width
    normed += at * length * width
    shrink += at * length * width
    along += by_key * WHICH * heads * heads * width
    products += by_key * WHICH * heads * heads * length
    own += at * heads * length * width
    total, begin = tl.zeros([ROWS, NEURONS], tl.float32), until
    dot = total
    for start in range(0, until, KEYS):
        j = start + line % KEYS
        sees, any_weight = rows & (j < until), line * 0
        for a in range(heads):
            p = tl.load(row + a * by_head + j, mask=sees, other=0.0)
            any_weight = any_weight | (p != 0).to(tl.int32)
        if tl.max(any_weight, 0) > 0:  # neither outside a window nor later than the rows
            begin = tl.minimum(begin, start)
            pair = (j.to(tl.int64) * WHICH + which) * heads * heads
            at_rows = (row, by_head, j, sees)
            z = tl.zeros([ROWS * KEYS, NEURONS], tl.float32)
            for other in range(begin, start + KEYS, OTHERS):
                j_other = other + tl.arange(0, OTHERS)
                weights = weights_tile(
                    at_rows, products, pair, j_other, until, length, heads, ROWS, KEYS, OTHERS, TOGETHER
                )
                # an earlier block of keys stands for both orders
                times = tl.where(j_other < start, 2.0, tl.where(j_other < start + KEYS, 1.0, 0.0))
                mask = (j_other < until)[:, None] & real[None, :]
                right = tl.load(shrink + (j_other[:, None] * width + d[None, :]), mask=mask, other=0.0)
                z = tl.dot(weights * times[None, :], right, z, input_precision="tf32x3")
            z = add_crossed(z, at_rows, along, own, pair, i, d, real, length, heads, width, ROWS, KEYS, NEURONS)
            c = tl.load(shrink + (j[:, None] * width + d[None, :]), mask=sees[:, None] & real[None, :], other=0.0)
            total += tl.sum(tl.reshape(z * c, [ROWS, KEYS, NEURONS]), 1)
            if DOTS:
                mixed = mixed_lines(at_rows, met, normed, i, width, heads, ROWS, KEYS, PART)
                dot += tl.sum(tl.reshape(c * mixed[:, None], [ROWS, KEYS, NEURONS]), 1)
    i = block * ROWS + tl.arange(0, ROWS)
    inside = i < length
    scored = inside & (tl.load(content + document * length + i, mask=inside, other=0) != 0)
    mask, to = scored[:, None] & real[None, :], i[:, None] * width + d[None, :]
    side = heads * width
    for a in range(heads):
        itself = tl.load(own + a * length * width + to, mask=mask, other=0.0)
        gram = grams + ((group * WHICH + which) * side + a * width + d).to(tl.int64) * side + d
        theirs = tl.zeros([ROWS, NEURONS], tl.float32)
        for b in range(heads):
            gain = tl.load(gram + b * width, mask=real, other=0.0)
            theirs += gain[None, :] * tl.load(own + b * length * width + to, mask=mask, other=0.0)
        total += itself * theirs
        if DOTS:
            dot += itself * tl.load(met + i[:, None] * side + a * width + d[None, :], mask=mask, other=0.0)
    mask = inside[:, None] & real[None, :]
    to = (((which * documents + document) * length + i) * groups + group)[:, None] * width + d[None, :]
    tl.store(squares + to, total, mask=mask)
    if DOTS:
        tl.store(dots + to, dot, mask=mask)


@triton.jit
@no_type_check
def weights_tile(
    at_rows,
    products,
    pair,
    other,
    until,
    length,
    heads,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OTHERS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Σ_ab P_aij P_bij' K_ab,jj' by [row and key j, key j']."""
    row, by_head, j, sees = at_rows
    mask, there = sees[:, None] & (other < until)[None, :], pair[:, None] * length + other[None, :]
    weights = tl.zeros([ROWS * KEYS, OTHERS], tl.float32)
    for b in range(heads):
        of_b = tl.zeros([ROWS * KEYS, OTHERS], tl.float32)
        for some in range(0, heads, TOGETHER):
            for a in tl.static_range(TOGETHER):
                p = tl.load(row + (some + a) * by_head + j, mask=sees, other=0.0)
                at = products + ((some + a) * heads + b) * length
                of_b += p[:, None] * tl.load(at + there, mask=mask, other=0.0)
        weights += of_b * tl.load(row[:, None] + b * by_head + other[None, :], mask=mask, other=0.0)
    return weights


@triton.jit
@no_type_check
def add_crossed(
    z,
    at_rows,
    along,
    own,
    pair,
    i,
    d,
    real,
    length,
    heads,
    width,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    """z + 2 Σ_ab P_aij Y_ab,jk B_b,ik by [row and key j, neuron]."""
    row, by_head, j, sees = at_rows
    mask = sees[:, None] & real[None, :]
    for b in range(heads):
        of_b = tl.zeros([ROWS * KEYS, NEURONS], tl.float32)
        for a in range(heads):
            p = tl.load(row + a * by_head + j, mask=sees, other=0.0)
            to = along + (a * heads + b) * width
            of_b += 2.0 * p[:, None] * tl.load(to + (pair[:, None] * width + d[None, :]), mask=mask, other=0.0)
        to = own + b * length * width
        z += of_b * tl.load(to + (i[:, None] * width + d[None, :]), mask=mask, other=0.0)
    return z


@triton.jit
@no_type_check
def mixed_lines(at_rows, met, normed, i, width, heads, ROWS: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr):
    """Σ_a P_aij v̂_j · L_ai by [row and key j]."""
    row, by_head, j, sees = at_rows
    mixed = tl.zeros([ROWS * KEYS], tl.float32)
    for start in range(0, width, PART):
        e = start + tl.arange(0, PART)[None, :]
        mask = sees[:, None] & (e < width)
        direction = tl.zeros([ROWS * KEYS, PART], tl.float32)
        for a in range(heads):
            p = tl.load(row + a * by_head + j, mask=sees, other=0.0)
            direction += p[:, None] * tl.load(met + (i * heads + a)[:, None] * width + e, mask=mask, other=0.0)
        mixed += tl.sum(direction * tl.load(normed + j[:, None] * width + e, mask=mask, other=0.0), 1)
    return mixed
