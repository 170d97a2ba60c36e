"""The change that deactivating a feed-forward neuron makes: one column of W_up with its row of W_down."""

from torch.nn.functional import linear

from ...model import HookedModel, PostNorm, TokenBatch, at_least_float32, post_norm, weight
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .post_norm import Contribution, Normed, summed_change_after_norm

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
    row_squares, row_squares_gained = w_out.square().sum(-1), w_out.square() @ norm.gain.square()

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        output = Normed.of(norm, seen)
        per_unit = Contribution(row_squares, row_squares_gained, *linear(output.directions, w_out))
        squares = summed_change_after_norm(at_least_float32(seen[HIDDEN]), batch.content, per_unit, output)
        return {"mlp": root_mean(squares, batch)}

    return LayerMeasure((HIDDEN, *norm.reads), score)
