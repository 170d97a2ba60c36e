"""The change that deactivating a feed-forward neuron makes: one column of W_up with its row of W_down."""

import torch
from torch.nn.functional import linear

from ...model import HookedModel, PostNorm, TokenBatch, at_least_float32, post_norm, weight
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .post_norm import summed_change_after_norm

HIDDEN = "mlp.hook_post"


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the feed-forward's own output: the change is h[:, k] ⊗ W_down[k], of norm ‖h[:, k]‖ · ‖W_down[k]‖."""
    w_out = at_least_float32(weight(model, layer, "mlp.W_out").detach())
    row_squares = w_out.square().sum(-1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden = at_least_float32(seen[HIDDEN]) * batch.content[..., None]  # no contribution changes nothing
        squares = hidden.square_().sum(1) * row_squares
        return {"mlp": root_mean(squares, batch)}

    return LayerMeasure((HIDDEN,), score)


def stream_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the residual stream: as :func:`structure_change`, and through the post-norm where the model has one."""
    norm = post_norm(model, layer, "feed_forward")
    return structure_change(model, layer) if norm is None else _through(norm, model, layer)


def _through(norm: PostNorm, model: HookedModel, layer: int) -> LayerMeasure:
    w_out = at_least_float32(weight(model, layer, "mlp.W_out").detach())
    gain_squared = norm.gain.square()
    row_squares = w_out.square().sum(-1)
    row_squares_gained = w_out.square() @ gain_squared

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        scale, normalized = norm.seen(seen)
        along, along_gained = linear(torch.stack([normalized, normalized * gain_squared]), w_out)
        squares = summed_change_after_norm(
            sizes=at_least_float32(seen[HIDDEN]),
            content=batch.content,
            squares=row_squares,
            squares_gained=row_squares_gained,
            along=along,
            along_gained=along_gained,
            scale=scale,
            normalized=normalized,
            gain=norm.gain,
        )
        return {"mlp": root_mean(squares, batch)}

    return LayerMeasure((HIDDEN, *norm.reads), score)
