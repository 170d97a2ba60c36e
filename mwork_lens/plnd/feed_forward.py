"""The change that deactivating a feed-forward neuron makes: one column of W_up with its row of W_down."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear

from ..batches import TokenBatch
from ..sites import HookedModel, weight
from .measure import Activations, LayerMeasure, SiteMasks, SiteScores, at_least_float32, root_mean
from .norms import PostNorm, post_norm, summed_change_after_norm
from .rounded import products, rounds, settle
from .selection import Selection

HIDDEN = "mlp.hook_post"


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the feed-forward's own output: the change is h[:, k] ⊗ W_down[k], of norm ‖h[:, k]‖ · ‖W_down[k]‖."""
    w_out = at_least_float32(weight(model, layer, "mlp.W_out").detach())
    row_squares = w_out.square().sum(-1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden = at_least_float32(seen[HIDDEN]) * batch.content[..., None]  # no contribution changes nothing
        squares = torch.linalg.vector_norm(hidden, dim=1).square() * row_squares
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

    def squares(
        hidden: Float[Tensor, "batch pos neuron"],
        content: Bool[Tensor, "batch pos"],
        scale: Float[Tensor, "batch pos 1"],
        directions: Float[Tensor, "2 batch pos d_model"],
        neurons: slice | Int[Tensor, " chosen"] = slice(None),
    ) -> Float[Tensor, "which batch _"]:
        """And their leading terms."""
        along, along_gained = linear(directions, w_out[neurons])
        return summed_change_after_norm(
            sizes=hidden[..., neurons],
            content=content,
            squares=row_squares[neurons],
            squares_gained=row_squares_gained[neurons],
            along=along,
            along_gained=along_gained,
            scale=scale,
            normalized=directions[0],
            gain=norm.gain,
        )

    def read(seen: Activations, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, normalized = norm.seen(seen)
        directions = torch.stack([normalized, normalized * gain_squared])
        return at_least_float32(seen[HIDDEN]), batch.content, scale, directions

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"mlp": root_mean(squares(*read(seen, batch))[0], batch)}

    def screen(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        hidden, content, scale, directions = read(seen, batch)
        with products("bf16"):
            rough, leading = squares(hidden, content, scale, directions)

        def exact(document: int, neurons: Int[Tensor, " chosen"]) -> Float[Tensor, " chosen"]:
            one = slice(document, document + 1)
            with products("ieee"):
                return squares(hidden[one], content[one], scale[one], directions[:, one], neurons)[0, 0]

        scores, known = settle(rough, leading, exact, batch, selection)
        return {"mlp": scores}, {"mlp": known}

    return LayerMeasure((HIDDEN, *norm.reads), score, screen if rounds(w_out) else None)
