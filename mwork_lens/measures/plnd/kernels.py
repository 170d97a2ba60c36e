"""Triton kernels beside those of the pattern's rows: queries and keys of a whole batch, and what a post-norm changes.

``turn`` is what ``sides.Side`` makes of queries or keys, ``sums_after_norm`` is ``after_norm.change_after_norm``. All
documents of a batch and all heads go in one launch. Sums are in float32 whatever the inputs are, in an order that does
not depend on what else is in the batch, and no two programs add to one number.
"""

import os
from typing import no_type_check

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs its programs on a CPU: there every operation costs the same, however large its tiles are."""
TURNED = {"POSITIONS": 32} if INTERPRETED else {"POSITIONS": 4}
"""Of one head, for a program."""
SUMMED = {"POSITIONS": 16, "NEURONS": 64}
"""Behind a norm, for a program."""


@triton.jit(do_not_specialize=["length"])  # which has no other code, and would be compiled for lengths of three kinds
@no_type_check
def turn(
    out,  # [table, batch, head, pos, d]: x̃, direct, paired, then shrink (with a norm), centre and level (if centred)
    x,
    totals,
    gain,
    cosine,
    sine,
    pair,
    x_batch,
    x_pos,
    x_head,
    gain_head,
    table,
    length,
    heads,
    width,
    scale,
    eps,
    clip,
    POSITIONS: tl.constexpr,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    CENTRED: tl.constexpr,
    ROTARY: tl.constexpr,
    CLIP: tl.constexpr,
    ROTATED: tl.constexpr,
):
    """Some positions of one head: normalised and rotated, and how each coordinate enters the scores."""
    block, head, document = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pos, d = block * POSITIONS + tl.arange(0, POSITIONS)[:, None], tl.arange(0, D)[None, :]
    inside, there = pos < length, d < width
    mask = inside & there
    partner = tl.load(pair + d, mask=there, other=0) if ROTARY else d
    row = x + document * x_batch + pos.to(tl.int64) * x_pos + head * x_head
    own = tl.load(row + d, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(row + partner, mask=mask, other=0.0).to(tl.float32)
    if CLIP:
        own, other = tl.clamp(own, -clip, clip), tl.clamp(other, -clip, clip)
    shrink, centre, grown = own * 0.0, own * 0.0, own
    own_gain, other_gain, size = own * 0.0 + 1.0, own * 0.0 + 1.0, 1.0
    if NORM:
        own_gain = tl.load(gain + head * gain_head + d, mask=there, other=0.0)
        other_gain = tl.load(gain + head * gain_head + partner, mask=there, other=0.0)
        if CENTRED:
            mean = tl.sum(own, 1)[:, None] / width
            apart = tl.where(there, own - mean, 0.0)
            square = tl.sum(apart * apart, 1)[:, None] / width + eps
            lost = own * (own * (1.0 - 1.0 / width) - 2.0 * apart) / (width * square)
            size = 1.0 / tl.sqrt(square)
        else:
            numbers = width * heads if ACROSS else width
            if ACROSS:
                total = tl.load(totals + document * length + pos, mask=inside, other=0.0)
            else:
                total = tl.sum(own * own, 1)[:, None]
            total = tl.where(inside, total + numbers * eps, 1.0)
            lost = -own * own / total
            size = tl.sqrt(numbers / total)
        root = tl.sqrt(tl.maximum(1.0 + lost, 0.0))
        shrink = lost / (root + root * root)  # 1 − 1 / root, without cancellation
        grown = (1.0 - shrink) * own * size
        centre = grown / width
        grown = grown * own_gain
        if CENTRED:
            own, other = apart, other - mean
    hat, other_hat = own * size * own_gain, other * size * other_gain
    c, s, other_s = own * 0.0 + 1.0, own * 0.0, own * 0.0
    if ROTARY:
        at = pos * width
        c = tl.load(cosine + at + d, mask=mask, other=0.0)
        s = tl.load(sine + at + d, mask=mask, other=0.0)
        other_s = tl.load(sine + at + partner, mask=mask, other=0.0)
    turned = hat * c + other_hat * other_s
    to = out + ((document * heads + head) * length + pos) * width + d
    tl.store(to, turned, mask=mask)
    to += table  # step by step, as several tables need not fit 32 bits where one does
    if ROTATED:
        tl.store(to, turned / scale, mask=mask)
    else:
        tl.store(to, grown * c / scale, mask=mask)
        to += table
        tl.store(to, grown * s / scale, mask=mask)
        if NORM:
            to += table
            tl.store(to, shrink, mask=mask)
        if CENTRED:
            to += table
            tl.store(to, centre, mask=mask)
            to += table
            tl.store(to, (own_gain * c + other_gain * other_s) / scale, mask=mask)


@triton.jit(do_not_specialize=["length", "blocks"])
@no_type_check
def sums_after_norm(
    out,  # [batch, block, neuron]
    hidden,
    along,
    squares,
    scale,
    size,
    content,
    hidden_batch,
    hidden_pos,
    along_which,
    squares_which,
    length,
    blocks,
    width,
    per_d_model,
    POSITIONS: tl.constexpr,
    NEURONS: tl.constexpr,
    OF_ONE: tl.constexpr,
):
    """Σ over some positions of ``after_norm.change_after_norm``, by neuron.

    ``along`` is [which, batch, pos, neuron], ``scale`` r and ``size`` ‖g∘y‖² / r² [batch, pos]. ``OF_ONE``: ``squares``
    [which, neuron] and ``along`` are those of h = 1, else of every position.
    """
    block, some, document = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, k = block * POSITIONS + tl.arange(0, POSITIONS)[:, None], some * NEURONS + tl.arange(0, NEURONS)[None, :]
    inside, real = i < length, k < width
    mask, row = inside & real, document * length + i
    counts = tl.load(content + row, mask=inside, other=0) != 0
    at = along + row * width + k
    dot, dot_gained = tl.load(at, mask=mask, other=0.0), tl.load(at + along_which, mask=mask, other=0.0)
    if OF_ONE:
        h = tl.load(hidden + document * hidden_batch + i * hidden_pos + k, mask=mask, other=0.0).to(tl.float32)
        square = tl.load(squares + k, mask=real, other=0.0) * h * h
        square_gained = tl.load(squares + squares_which + k, mask=real, other=0.0) * h * h
        dot, dot_gained = dot * h, dot_gained * h
    else:
        at = squares + row * width + k
        square = tl.load(at, mask=mask, other=0.0)
        square_gained = tl.load(at + squares_which, mask=mask, other=0.0)
    r, of_output = tl.load(scale + row, mask=inside, other=1.0), tl.load(size + row, mask=inside, other=0.0)
    difference = (square - 2.0 * r * dot) * per_d_model
    new = tl.sqrt(tl.maximum(r * r + difference, 0.0))
    e_r = difference / (new * (r + new))
    change = e_r * e_r * of_output + (2.0 * e_r * dot_gained + square_gained / new) / new
    total = tl.sum(tl.where(counts, change, 0.0), 0)[None, :]
    tl.store(out + (document * blocks + block) * width + k, total, mask=real)
