"""The change that value neurons make where a norm of each head's values comes before they are mixed (Gemma 4)."""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, key_value_heads, weight
from ...model.heads import HeadNorm
from ...model.post_norms import post_norm
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .after_norm import sums_of_changes
from .backend import backend_of
from .normed import Normed

VALUES, PATTERN = "attn.hook_v", "attn.hook_pattern"
NUMBERS_AT_ONCE = 2**23
"""Of the changes of some neurons' outputs."""


def values_normed_change(model: HookedModel, layer: int, norm: HeadNorm, where: str) -> LayerMeasure:
    """With v̂ = g ∘ v / r and ρ_jk = (1 − v_jk² / (D r_j²))^(−1/2), r² = mean(v²) + eps at every position j.

    Without neuron k the others of its head grow, v̂'_j = ρ_jk (v̂_j − v̂_jk e_k), and so does what they add to the
    output of every query head a of the group, Σ_j P_aij v̂'_j W_O[a]. Each neuron takes a product with all of P.
    """
    after, groups = post_norm(model, layer, "attention") if where == "stream" else None, key_value_heads(model.cfg)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        # not kept: of all layers, in float32
        stored = weight(model, layer, "attn.W_O").detach()
        w_o = rearrange(stored, "(group head) k d_model -> group head k d_model", group=groups)
        if after and after.centred:
            w_o = at_least_float32(w_o)
            w_o = w_o - w_o.mean(-1, keepdim=True)
        arguments = seen[VALUES], seen[PATTERN], w_o, norm, Normed.of(after, seen) if after else None, batch
        if backend_of(w_o) == "triton":
            from .batched_values import squares_of_normed  # which needs Triton

            return {"v": root_mean(squares_of_normed(*arguments), batch)}
        return {"v": root_mean(squares_by_parts(*arguments), batch)}

    return LayerMeasure((VALUES, PATTERN, *(after.reads if after else ())), score)


def squares_by_parts(
    v: Float[Tensor, "batch pos group k"],
    pattern: Float[Tensor, "batch head pos pos"],
    w_o: Float[Tensor, "group of_group k d_model"],
    norm: HeadNorm,
    output: Normed | None,
    batch: TokenBatch,
) -> Float[Tensor, "batch neuron"]:
    """Of what neurons change, summed over positions; some neurons at a time."""
    v, pattern, w_o = at_least_float32(v), at_least_float32(pattern), at_least_float32(w_o)
    inside, squares = torch.arange(v.shape[1], device=v.device) < batch.ends[:, None], []
    for added in _changes(v * inside[..., None, None], pattern, w_o, norm):
        squares.append(_squares(added * batch.content[..., None, None, None], output, batch))
    return torch.cat(squares, -1).flatten(1)


def _changes(
    v: Float[Tensor, "batch pos group k"],
    pattern: Float[Tensor, "batch head pos pos"],
    w_o: Float[Tensor, "group of_group k d_model"],
    norm: HeadNorm,
) -> Iterator[Float[Tensor, "batch pos group some d_model"]]:
    """What neurons add to the output, some neurons of every group at a time, in order."""
    root_square = v.square().mean(-1, keepdim=True) + norm.eps
    normed = v * root_square.rsqrt() * norm.gain
    share = v.square() / (v.shape[-1] * root_square)
    root = (1 - share).clamp(min=0).sqrt()
    grown = share / (root * (1 + root))  # ρ − 1, without cancellation for small shares
    by_group = rearrange(pattern, "batch (group head) query key -> batch group (head query) key", group=len(w_o))
    itself, weights = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device), w_o.flatten(1, 2)
    size = max(1, NUMBERS_AT_ONCE // (v[..., 0].numel() * max(w_o.shape[-1], w_o.shape[1] * w_o.shape[2])))
    for start in range(0, v.shape[-1], size):
        some = slice(start, start + size)
        # of the head's values: [batch, pos, group, some, k]
        more = grown[..., some, None] * normed[..., None, :]
        more = more - ((1 + grown[..., some]) * normed[..., some])[..., None] * itself[some]
        columns = rearrange(more, "batch key group some k -> batch group key (some k)")
        mixed = rearrange(
            by_group @ columns,
            "batch group (head query) (some k) -> batch query group some (head k)",
            query=v.shape[1],
            k=v.shape[-1],
        )
        yield -torch.einsum("bqgsx,gxd->bqgsd", mixed, weights)


def _squares(
    added: Float[Tensor, "batch pos group some d_model"], output: Normed | None, batch: TokenBatch
) -> Float[Tensor, "batch group some"]:
    """Of the change of the stream, over all positions."""
    if output is None:
        return added.square().sum((1, -1))
    by_neuron = added.flatten(2, 3)
    squares = torch.stack([by_neuron.square().sum(-1), (by_neuron * output.norm.gain).square().sum(-1)])
    along = torch.einsum("bpnd,wbpd->wbpn", by_neuron, output.directions)
    return sums_of_changes(squares, along, output, batch).unflatten(-1, added.shape[2:4])
