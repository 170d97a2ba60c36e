"""The change that deactivating a feed-forward neuron makes: one column of W_up with its row of W_down."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel, weight
from .measure import Activations, LayerMeasure, SiteScores, at_least_float32, root_mean
from .norms import PostNorm, change_after_norm, post_norm

HIDDEN = "mlp.hook_post"


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the feed-forward's own output: the change is h[:, k] ⊗ W_down[k], of norm ‖h[:, k]‖ · ‖W_down[k]‖."""
    w_out = at_least_float32(weight(model, layer, "mlp.W_out").detach())
    row_squares = w_out.square().sum(-1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden = _content(seen, batch)
        squares = hidden.square().sum(1) * row_squares
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
        hidden = _content(seen, batch)
        scale, normalized = norm.seen(seen)
        directions = torch.stack([normalized, normalized * gain_squared])
        along, along_gained = einsum(directions, w_out, "which batch pos d, neuron d -> which batch pos neuron")
        squares = change_after_norm(
            squared=hidden.square() * row_squares,
            squared_gained=hidden.square() * row_squares_gained,
            along=hidden * along,
            along_gained=hidden * along_gained,
            scale=scale,
            normalized=normalized,
            gain=norm.gain,
        )
        return {"mlp": root_mean(squares.sum(1), batch)}

    return LayerMeasure((HIDDEN, *norm.reads), score)


def _content(seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch pos neuron"]:
    """The gated products, zero where no score is taken (a zero contribution changes nothing)."""
    return at_least_float32(seen[HIDDEN]) * batch.content[..., None]
