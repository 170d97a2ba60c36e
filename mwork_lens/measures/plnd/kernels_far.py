"""Rows of the attention pattern that turn around, in Triton: from their new scores, for any change."""

from typing import no_type_check

import triton
import triton.language as tl

from .kernels_tiles import capped, change_tile, pattern_tile

_EXPLAINED = tl.constexpr(0.05)


@triton.jit
@no_type_check
def turned_rows(
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
        p, r, m, seen = pattern_tile(at_rows, start, until, KEYS, True, False, CAUSAL)
        highest = tl.max(p, 1)
        its = tl.max(tl.where(p == highest[:, None], r, -float("inf")), 1)
        at_most, most = tl.where(highest > most, its, at_most), tl.maximum(highest, most)
    level = tl.log(tl.where(most > 0, most, 1.0)) - capped(at_most, cap, CAP)
    apart = tl.zeros([ROWS], tl.float32)
    for start in range(0, end, KEYS):
        p, r, m, seen = pattern_tile(at_rows, start, until, KEYS, True, False, CAUSAL)
        told = capped(r, cap, CAP) + level[:, None]
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
        p, r, m, seen = pattern_tile(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = log_weights(p, r, seen, level, explained, least, cap, CAP)
        x = change_tile(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        best = tl.maximum(best, tl.max(known[:, :, None] + x, 1))
        unknown = tl.maximum(unknown, tl.max(tl.where(open_[:, :, None], x + least[1], -float("inf")), 1))
        weighs = (known > -float("inf")) | open_
        reach = tl.maximum(reach, tl.max(tl.where(weighs[:, :, None], x, -float("inf")), 1))
    best = tl.where(best > -float("inf"), best, 0.0)
    total = tl.exp(of_sink - best)
    for start in range(0, end, KEYS):
        p, r, m, seen = pattern_tile(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = log_weights(p, r, seen, level, explained, least, cap, CAP)
        x = change_tile(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        total += tl.sum(tl.exp(known[:, :, None] + x - best[:, None, :]), 1)
    total = tl.where(total > 0, total, 1.0)
    squares = tl.zeros([ROWS, NEURONS], tl.float32)
    for start in range(0, end, KEYS):
        p, r, m, seen = pattern_tile(at_rows, start, until, KEYS, True, CENTRED, CAUSAL)
        known, open_ = log_weights(p, r, seen, level, explained, least, cap, CAP)
        x = change_tile(start, left, right, r, m, shift, KEYS, OF_QUERIES, PAIRED, SHRINK, CENTRED, CAP)
        changed = tl.exp(known[:, :, None] + x - best[:, None, :]) / total[:, None, :] - p[:, :, None]
        squares += tl.sum(changed * changed, 1)
    return tl.where(unknown > best - least[2], float("nan"), squares), reach


@triton.jit
@no_type_check
def log_weights(p, r, seen, level, explained, least, cap, CAP: tl.constexpr):
    """The logarithm of P by [row, key], and whether that may be a weight which was lost."""
    told = capped(r, cap, CAP) + level[:, None]
    lost = seen & (told < least[0]) & (p < least[3])
    known = tl.where(p > 0, tl.log(tl.where(p > 0, p, 1.0)), -float("inf"))
    return tl.where(lost & explained[:, None], told, known), lost & (p == 0) & (explained[:, None] == 0)
