"""Value neurons whose head is normed, of a whole batch at once: a Triton kernel behind a few products of matrices."""

import torch
import triton
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...model import TokenBatch, at_least_float32
from ...model.heads import HeadNorm
from . import kernels_values
from .after_norm import sums_of_changes
from .batched import turned
from .normed import Normed
from .sides import Side


def squares_of_normed(
    v: Float[Tensor, "batch pos group d_head"],
    pattern: Float[Tensor, "batch head pos pos"],
    w_o: Float[Tensor, "group of_group d_head d_model"],
    norm: HeadNorm,
    output: Normed | None,
    batch: TokenBatch,
) -> Float[Tensor, "batch neuron"]:
    """``value_norm.squares_by_parts``; names are those of the kernel."""
    with torch.cuda.device_of(v):
        tables = turned(Side(scale=1.0, clip=None, norm=norm, rotary=None), v).tables
        wide = w_o[:, None] * output.norm.factors[:, None, None] if output else at_least_float32(w_o)[:, None]
        weights, heads = wide[:, 0].flatten(1, 2), w_o.shape[1]
        grams = wide.flatten(1, 3) @ weights.mT
        seen = grams
        if output:
            directions = output.directions.flatten(0, 2)
            seen = torch.bmm(directions.expand(len(weights), *directions.shape), weights.mT)
        by_row = at_least_float32(pattern).reshape(-1, heads * v.shape[1], v.shape[1])
        squares, *dots = _squares(
            tables, by_row, grams, seen, heads, batch, which=wide.shape[1], dots=output is not None
        )
        return sums_of_changes(squares, dots[0], output, batch) if output else squares[0].sum(1)


def _squares(
    tables: Float[Tensor, "table batch group pos d_head"],
    pattern: Float[Tensor, "batch_group of_group_query key"],
    grams: Float[Tensor, "group which_of_group_d of_group_d"],
    seen: Float[Tensor, "group _ of_group_d"],
    heads: int,
    batch: TokenBatch,
    *,
    which: int,
    dots: bool,
) -> list[Float[Tensor, "which batch pos neuron"]]:
    """What the kernel gives."""
    normed, grown, shrink = tables[0], tables[1], tables[3]
    documents, groups, length, width = normed.shape
    own = pattern @ grown.flatten(0, 1)
    by_key = normed.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    by_weight = rearrange(grams, "group (which a d) (b k) -> group d (which a b k)", a=heads, b=heads, d=width)
    along = by_key.flatten(1, 2) @ by_weight
    products = along.view(groups * documents, -1, width) @ by_key.flatten(0, 1).mT
    size = (which, documents, length, groups * width)
    results = [torch.empty(size, dtype=torch.float32, device=own.device) for _ in range(1 + dots)]
    tiles = kernels_values.tiles(heads, width)
    grid = (which * documents * groups, triton.cdiv(length, tiles["ROWS"]), triton.cdiv(width, tiles["NEURONS"]))
    kernels_values.squares_of_values[grid](
        results[0],
        results[-1],
        pattern,
        normed,
        shrink,
        own,
        grams,
        along,
        products,
        seen,
        batch.content,
        batch.ends,
        documents,
        length,
        groups,
        heads,
        width,
        WHICH=which,
        DOTS=dots,
        **tiles,
        num_warps=kernels_values.WARPS,  # pyright: ignore[reportCallIssue]  # Triton's own option
    )
    return results
