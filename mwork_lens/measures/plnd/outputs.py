"""The change that deactivating value and feed-forward neurons makes: what they add to their structure's output is gone.

It is scored there (``"structure"``), or in the residual stream, after the post-norm where the model has one.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from ...model import HookedModel, TokenBatch, at_least_float32, has_feed_forward, key_value_heads, weight
from ...model.architecture import inner_gain, output_factor
from ...model.heads import head_norm
from ...model.post_norms import PostNorm, post_norm
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .after_norm import compiled_sums, sums_of_changes
from .backend import backend_of
from .compiled import sums_after_norm, sums_of_values
from .inner_norm import normed_value_change
from .normed import Normed
from .value_norm import values_normed_change

MIXED, HIDDEN = "attn.hook_z", "mlp.hook_post"


def output_changes(model: HookedModel, layer: int, where: str) -> list[LayerMeasure]:
    """That of value neurons and, in a layer that has one, of the feed-forward's."""
    gain = inner_gain(model, layer)
    if (norm := head_norm(model, layer, "v")) is not None:
        parts = [values_normed_change(model, layer, norm, where)]
    elif gain is not None:
        parts = [normed_value_change(model, layer, gain)]
    else:
        parts = [value_change(model, layer, where)]
    if has_feed_forward(model.cfg):
        parts.append(hidden_change(model, layer, where))
    factor = output_factor(model, layer) if where == "stream" else 1.0
    return parts if factor == 1 else [_multiplied(part, factor) for part in parts]


def _multiplied(part: LayerMeasure, factor: float) -> LayerMeasure:
    """For a structure whose output is multiplied before it is added."""

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {site: scores * abs(factor) for site, scores in part.score(seen, batch).items()}

    return LayerMeasure(part.reads, score)


def value_change(model: HookedModel, layer: int, where: str) -> LayerMeasure:
    """Value neuron k adds Σ_a z[:, a, k] ⊗ W_O[a, k] over the query heads a of its group.

    norm² = Σ_t z_tᵀ G_k z_t with G_k[a, b] = W_O[a, k] · W_O[b, k]. A pair of two heads stands for both of its orders.
    """
    norm, groups = post_norm(model, layer, "attention") if where == "stream" else None, key_value_heads(model.cfg)
    by_head = _seen_by(norm, _stored(model, layer, "attn.W_O"))
    w_o = rearrange(by_head, "(group head) d_head d_model -> group head d_head d_model", group=groups)
    first, second = torch.triu_indices(w_o.shape[1], w_o.shape[1], device=w_o.device)

    def gram(weights: Float[Tensor, "group head d_head d_model"]) -> Float[Tensor, "group pair d_head"]:
        by_neuron = rearrange(weights, "group head k d -> group k head d").contiguous()
        products = (by_neuron @ by_neuron.mT)[..., first, second] * torch.where(first == second, 1, 2)
        return rearrange(products, "group k pair -> group pair k").contiguous()

    def mixed(seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch pos group head d_head"]:
        z = at_least_float32(seen[MIXED]) * batch.content[..., None, None]
        return rearrange(z, "batch pos (group head) k -> batch pos group head k", group=groups)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        z = rearrange(mixed(seen, batch), "batch pos group head k -> batch group k head pos").contiguous()
        moments = rearrange((z @ z.mT)[..., first, second], "batch group k pair -> batch group pair k")
        squares = einsum(moments, grams[0], "batch group pair k, group pair k -> batch group k")
        return {"v": root_mean(squares.flatten(1), batch)}

    if norm is None:
        grams = (gram(w_o),)
        return LayerMeasure((MIXED,), score)
    grams = (gram(w_o), gram(w_o * norm.gain))

    def score_after_norm(seen: Activations, batch: TokenBatch) -> SiteScores:
        z, output = mixed(seen, batch), Normed.of(norm, seen)
        # not kept: of all layers, in float32
        weights = _seen_by(norm, _stored(model, layer, "attn.W_O")).flatten(0, 1)
        along = linear(output.directions, weights).unflatten(-1, z.shape[2:])
        if backend_of(z) == "compiled":
            squares = compiled_sums(sums_of_values, (z, batch.content, *along), grams, output)
        else:
            products = z.index_select(-2, first) * z.index_select(-2, second)
            both = torch.stack([(products * pairs).sum(-2).flatten(-2) for pairs in grams])
            squares = sums_of_changes(both, along.mul_(z).sum(-2).flatten(-2), output, batch)
        return {"v": root_mean(squares.flatten(1), batch)}

    return LayerMeasure((MIXED, *norm.reads), score_after_norm)


def hidden_change(model: HookedModel, layer: int, where: str) -> LayerMeasure:
    """Feed-forward neuron k adds h[:, k] ⊗ W_down[k], of norm ‖h[:, k]‖ · ‖W_down[k]‖."""
    norm = post_norm(model, layer, "feed_forward") if where == "stream" else None
    w_out = _seen_by(norm, _stored(model, layer, "mlp.W_out"))
    row_squares = w_out.square().sum(-1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden = at_least_float32(seen[HIDDEN]) * batch.content[..., None]
        return {"mlp": root_mean(hidden.square_().sum(1) * row_squares, batch)}

    if norm is None:
        return LayerMeasure((HIDDEN,), score)
    both_squares = torch.stack([row_squares, w_out.square() @ norm.gain.square()])

    def score_after_norm(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden, output = seen[HIDDEN], Normed.of(norm, seen)
        along = linear(output.directions, _seen_by(norm, _stored(model, layer, "mlp.W_out")))  # of h = 1
        if backend_of(along) == "compiled":
            by_batch = at_least_float32(hidden), batch.content, *along
            squares = compiled_sums(sums_after_norm, by_batch, tuple(both_squares), output)
        else:
            squares = sums_of_changes(both_squares, along, output, batch, hidden)
        return {"mlp": root_mean(squares, batch)}

    return LayerMeasure((HIDDEN, *norm.reads), score_after_norm)


def _stored(model: HookedModel, layer: int, name: str) -> Float[Tensor, "*row d_model"]:
    return at_least_float32(weight(model, layer, name).detach())


def _seen_by(norm: PostNorm | None, rows: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """What a post-norm makes its change from: a LayerNorm takes the mean off all that is added."""
    return rows - rows.mean(-1, keepdim=True) if norm and norm.centred else rows
