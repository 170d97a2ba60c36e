"""The change that deactivating a feed-forward neuron makes: one column of W_up with its row of W_down."""

from functools import partial

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from ..batches import TokenBatch
from ..sites import HookedModel, weight
from .measure import Activations, LayerMeasure, SiteMasks, SiteScores, at_least_float32, root_mean
from .norms import PostNorm, post_norm, summed_change_after_norm
from .rounded import rounded_products, rounds, settle
from .selection import Selection

HIDDEN = "mlp.hook_post"


def structure_change(model: HookedModel, layer: int) -> LayerMeasure:
    """In the feed-forward's own output: the change is h[:, k] ⊗ W_down[k], of norm ‖h[:, k]‖ · ‖W_down[k]‖."""
    w_out = at_least_float32(weight(model, layer, "mlp.W_out").detach())
    row_squares = w_out.square().sum(-1)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        hidden = at_least_float32(seen[HIDDEN]) * batch.content[..., None]  # no contribution changes nothing
        squares = einsum(hidden.square(), "batch pos k -> batch k") * row_squares
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
        seen: Activations, batch: TokenBatch, document: int | None = None, neurons: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "which batch _"]:
        """Of all neurons, or of some of one document; and their leading terms."""
        one = slice(None) if document is None else slice(document, document + 1)
        some = slice(None) if neurons is None else neurons
        scale, normalized = (part[one] for part in norm.seen(seen))
        along, along_gained = linear(torch.stack([normalized, normalized * gain_squared]), w_out[some])
        return summed_change_after_norm(
            sizes=at_least_float32(seen[HIDDEN])[one, :, some],
            content=batch.content[one],
            squares=row_squares[some],
            squares_gained=row_squares_gained[some],
            along=along,
            along_gained=along_gained,
            scale=scale,
            normalized=normalized,
            gain=norm.gain,
        )

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"mlp": root_mean(squares(seen, batch)[0], batch)}

    def screen(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        with rounded_products():
            rough, leading = squares(seen, batch)
        exact = partial(squares, seen, batch)
        scores, known = settle(rough, leading, lambda *chosen: exact(*chosen)[0, 0], batch, selection)
        return {"mlp": scores}, {"mlp": known}

    return LayerMeasure((HIDDEN, *norm.reads), score, screen if rounds(w_out) else None)
