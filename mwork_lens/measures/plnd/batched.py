"""Scores of a whole batch at once by the Triton kernels: a handful of launches, and no synchronisation."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...model import TokenBatch
from ..measure import Activations
from . import kernels, kernels_rows
from .attention import READS, Geometry, least_log, wide_pattern
from .normed import Normed
from .qk_dense import PatternSite, farthest, negligible
from .sides import Side


@dataclass(frozen=True)
class Turned:
    """Queries or keys of a batch."""

    tables: Float[Tensor, "table batch head pos d_head"]
    """x̃, direct, and where they are not zero paired, shrink, centre; the level."""
    heads: int

    @property
    def rotated(self) -> Float[Tensor, "batch head pos d_head"]:
        """x̃."""
        return self.tables[0]

    @property
    def level(self) -> Float[Tensor, "batch head pos d_head"]:
        """What a mean of r takes off the side."""
        return self.tables[5]


def pattern_squares(
    geometry: Geometry, seen: Activations, batch: TokenBatch
) -> dict[PatternSite, Float[Tensor, "batch neuron"]]:
    """Squared pattern change of every query and key neuron, summed over rows and the query heads that it reaches."""
    q, k, pattern = (seen[name] for name in READS)
    with torch.cuda.device_of(q):
        pair = geometry.rotary.pair if geometry.rotary else torch.arange(q.shape[-1], device=q.device)
        queries, keys = (
            turned(side, x, rotated_neurons=geometry.rotated_neurons)
            for side, x in ((geometry.query, q), (geometry.key, k))
        )
        wide = wide_pattern(pattern, sinks=geometry.sinks).contiguous()
        scores = _products(queries.rotated, keys.rotated, 1 / geometry.scale)
        common = _Common(geometry, wide, scores, batch.content, batch.ends, pair, pattern.dtype)
        by_query = _squares(common, geometry.query, queries, keys, of_queries=True)
        return {"q": by_query, "k": _squares(common, geometry.key, keys, queries, of_queries=False)}


@dataclass(frozen=True)
class _Common:
    """What both sides' neurons have in common."""

    geometry: Geometry
    pattern: Float[Tensor, "batch head query key"]
    scores: Float[Tensor, "batch head query key"]
    content: Bool[Tensor, "batch pos"]
    ends: Int[Tensor, " batch"]
    pair: Int[Tensor, " d_head"]
    kept: torch.dtype
    """What the model keeps the pattern in."""


def turned(side: Side, x: Float[Tensor, "batch pos head d_head"], *, rotated_neurons: bool = False) -> Turned:
    """``sides.Side.turned`` at all positions."""
    documents, length, heads, width = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    norm, rotary = side.norm, side.rotary
    number = 2 if rotated_neurons else 6 if norm and norm.centred else 4 if norm else 3
    tables = torch.empty(number, documents, heads, length, width, dtype=torch.float32, device=x.device)
    totals = gain = cosine = sine = pair = tables
    if norm:
        gain = norm.gain_before_rotation.contiguous()
        if norm.across_heads:
            totals = x.float().square().sum((2, 3)).contiguous()
    if rotary:
        cosine, sine = (each.contiguous() for each in side.of_text(length, tables))
        pair = rotary.pair
    kernels.turn[(triton.cdiv(length, kernels.TURNED["POSITIONS"]), heads, documents)](
        tables,
        x,
        totals,
        gain,
        cosine,
        sine,
        pair,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        0 if gain.ndim < 2 or len(gain) == 1 else width,
        tables.stride(0),
        length,
        heads,
        width,
        side.scale,
        norm.eps if norm else 0.0,
        side.clip or 0.0,
        **options_of_turn(side, width, rotated_neurons=rotated_neurons),
    )
    return Turned(tables, heads)


def options_of_turn(side: Side, width: int, *, rotated_neurons: bool) -> dict[str, Any]:
    """What ``kernels.turn`` is compiled for."""
    return {
        **kernels.TURNED,
        "D": triton.next_power_of_2(width),
        "NORM": side.norm is not None,
        "ACROSS": bool(side.norm and side.norm.across_heads),
        "CENTRED": bool(side.norm and side.norm.centred),
        "ROTARY": side.rotary is not None,
        "CLIP": side.clip is not None,
        "ROTATED": rotated_neurons,
    }


def _products(
    queries: Float[Tensor, "batch head pos d_head"], keys: Float[Tensor, "batch group pos d_head"], factor: float
) -> Float[Tensor, "batch head query key"]:
    documents, heads, length, width = queries.shape
    groups = keys.shape[1]
    rows = queries.reshape(documents * groups, heads // groups * length, width)
    columns = keys.reshape(documents * groups, length, width).mT
    products = torch.baddbmm(rows.new_empty(()), rows, columns, beta=0, alpha=factor)
    return products.view(documents, heads, length, length)


def _squares(
    common: _Common, side: Side, own: Turned, met: Turned, *, of_queries: bool
) -> Float[Tensor, "batch neuron"]:
    geometry, pattern, kept = common.geometry, common.pattern, common.kept
    documents, heads, length, _ = pattern.shape
    groups, width = min(own.heads, met.heads), own.tables.shape[-1]
    forms = [options_of_rows(geometry, side, own.heads, of_queries=of_queries, far_rows=far) for far in (False, True)]
    options = forms[0]
    owners, parts = options["OWNERS"], triton.cdiv(width, options["NEURONS"])
    blocks, units = triton.cdiv(length, options["ROWS"]), documents * heads * owners
    partial = pattern.new_empty(documents, heads, owners, blocks, width)
    levels = _levels(common, side, own, met, of_queries=of_queries)
    marks = torch.empty(units * blocks * parts, dtype=torch.int8, device=pattern.device)
    for form in forms:
        kernels_rows.squares_of_rows[(units, blocks, parts)](
            partial,
            marks,
            pattern,
            common.scores,
            levels,
            own.tables[1:],
            met.tables,
            common.content,
            common.ends,
            common.pair,
            own.tables.stride(0),
            length,
            heads,
            groups,
            width,
            geometry.cap or 1.0,
            farthest(torch.float32, kept),
            torch.finfo(kept).tiny,
            math.log(torch.finfo(kept).tiny),
            least_log(kept),
            negligible(kept),
            **form,
            num_warps=kernels_rows.WARPS,  # pyright: ignore[reportCallIssue]  # Triton's own option
        )
    if owners > 1:
        return partial.sum((1, 3)).flatten(1)
    by_head = partial.view(documents, own.heads, -1, width)
    return by_head.sum(2).flatten(1)


def options_of_rows(geometry: Geometry, side: Side, heads: int, *, of_queries: bool, far_rows: bool) -> dict[str, Any]:
    """What ``kernels_rows.squares_of_rows`` is compiled for, where a side has so many heads."""
    plain, norm = geometry.rotated_neurons, side.norm
    return {
        **kernels_rows.tiles(few_rows=geometry.cap is not None or norm is not None, far_rows=far_rows),
        "OF_QUERIES": of_queries,
        "OWNERS": heads if geometry.across_heads and not plain else 1,
        "PAIRED": geometry.rotary is not None and not plain,
        "SHRINK": norm is not None and not plain,
        "CENTRED": bool(norm and norm.centred) and not plain,
        "CAP": geometry.cap is not None,
        "SINKS": geometry.sinks,
        "CAUSAL": geometry.causal,
        "FAR_ROWS": far_rows,
    }


def _levels(
    common: _Common, side: Side, own: Turned, met: Turned, *, of_queries: bool
) -> Float[Tensor, "batch head query key"]:
    """M, where a norm takes off the mean."""
    if not (side.norm and side.norm.centred) or common.geometry.rotated_neurons:
        return common.scores
    return _products(*((own.level, met.rotated) if of_queries else (met.rotated, own.level)), 1.0)


def sums_after_norm(
    squares: Float[Tensor, "which *position neuron"],
    along: Float[Tensor, "which batch pos neuron"],
    output: Normed,
    batch: TokenBatch,
    hidden: Float[Tensor, "batch pos neuron"] | None,
) -> Float[Tensor, "batch neuron"]:
    """``after_norm.sums_of_changes``."""
    _, documents, length, width = along.shape
    squares, along = squares.contiguous(), along.contiguous()
    blocks, one = triton.cdiv(length, kernels.SUMMED["POSITIONS"]), along if hidden is None else hidden
    one = one if one.stride(-1) == 1 else one.contiguous()
    partial = torch.empty(documents, blocks, width, dtype=torch.float32, device=along.device)
    with torch.cuda.device_of(along):
        kernels.sums_after_norm[(blocks, triton.cdiv(width, kernels.SUMMED["NEURONS"]), documents)](
            partial,
            one,
            along,
            squares,
            output.scale.contiguous(),
            output.size.contiguous(),
            batch.content,
            one.stride(-3),
            one.stride(-2),
            along.stride(0),
            squares.stride(0),
            length,
            blocks,
            width,
            1 / len(output.norm.gain),
            **kernels.SUMMED,
            OF_ONE=hidden is not None,
        )
    return partial.sum(1)
