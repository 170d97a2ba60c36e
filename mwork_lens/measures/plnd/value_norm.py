"""The change that value neurons make where a norm of each head's values comes before they are mixed (Gemma 4)."""

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, key_value_heads, weight
from ...model.heads import HeadNorm
from ...model.post_norms import post_norm
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .after_norm import Normed, change_after_norm

VALUES, PATTERN = "attn.hook_v", "attn.hook_pattern"
NUMBERS_AT_ONCE = 2**23
"""Of the changes of some neurons' outputs."""


def values_normed_change(model: HookedModel, layer: int, norm: HeadNorm, where: str) -> LayerMeasure:
    """With v̂ = g ∘ v / r and ρ_jk = (1 − v_jk² / (D r_j²))^(−1/2), r² = mean(v²) + eps at every position j.

    Without neuron k the others of its head grow, v̂'_j = ρ_jk (v̂_j − v̂_jk e_k), and so does what they add to the
    output of every query head a of the group, Σ_j P_aij v̂'_j W_O[a]. Each neuron takes a product with all of P.
    """
    after, groups = post_norm(model, layer, "attention") if where == "stream" else None, key_value_heads(model.cfg)
    by_head = at_least_float32(weight(model, layer, "attn.W_O").detach())
    w_o = rearrange(by_head, "(group head) k d_model -> group head k d_model", group=groups)
    if after and after.centred:
        w_o = w_o - w_o.mean(-1, keepdim=True)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        output, squares = Normed.of(after, seen) if after else None, []
        for i, length in enumerate(batch.lengths):
            changes = _changes(
                at_least_float32(seen[VALUES][i, :length]),
                at_least_float32(seen[PATTERN][i, :, :length, :length]),
                w_o,
                norm,
            )
            content = batch.content[i, :length, None, None]
            by_part = (_squares(part * content, output and output.of_document(i, length)) for part in changes)
            squares.append(torch.cat([*by_part]))
        return {"v": root_mean(torch.stack(squares), batch)}

    return LayerMeasure((VALUES, PATTERN, *(after.reads if after else ())), score)


def _changes(
    v: Float[Tensor, "pos group k"],
    pattern: Float[Tensor, "head pos pos"],
    w_o: Float[Tensor, "group of_group k d_model"],
    norm: HeadNorm,
) -> Iterator[Float[Tensor, "pos some d_model"]]:
    """What neurons add to the output, some neurons of a group at a time, in order."""
    root_square = v.square().mean(-1, keepdim=True) + norm.eps
    normed = v * root_square.rsqrt() * norm.gain
    share = v.square() / (v.shape[-1] * root_square)
    root = (1 - share).clamp(min=0).sqrt()
    grown = share / (root * (1 + root))  # ρ − 1, without cancellation for small shares
    by_group = rearrange(pattern, "(group head) query key -> group head query key", group=len(w_o))
    size = max(1, NUMBERS_AT_ONCE // (len(v) * max(w_o.shape[-1], w_o.shape[1] * w_o.shape[2])))
    for group, (of_heads, weights) in enumerate(zip(by_group, w_o, strict=True)):
        for neurons in torch.arange(v.shape[-1], device=v.device).split(size):
            more = grown[:, group, neurons, None] * normed[:, group, None]  # of the head's values
            lost = (1 + grown[:, group, neurons]) * normed[:, group, neurons]
            more[:, torch.arange(len(neurons)), neurons] -= lost
            mixed = rearrange(
                of_heads @ more.flatten(1), "head query (some k) -> query some (head k)", some=len(neurons)
            )
            yield -(mixed @ weights.flatten(0, 1))


def _squares(added: Float[Tensor, "pos some d_model"], output: Normed | None) -> Float[Tensor, " some"]:
    """Of the change of the stream, over all positions."""
    if output is None:
        return added.square().sum((0, 2))
    squares = added.square().sum(-1)[None], (added * output.gain).square().sum(-1)[None]
    along = einsum(added, output.directions, "pos some d, which batch pos d -> which batch pos some")
    return change_after_norm(squares, along, output)[0]
