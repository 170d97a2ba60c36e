"""What neurons write: the tokens that a neuron's output promotes and suppresses through the unembedding."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..measures import post_norm
from ..model import ROWS_AT_ONCE, HookedModel, final_norm, top_ids, weight

WRITES = {"v": "attention", "mlp": "feed_forward"}
"""Sites whose neurons add to the residual stream, and in which structure."""


def directions(
    model: HookedModel, layer: int, site: str, neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "neuron d_model"]:
    """What each neuron adds to the residual stream per unit of activation, up to a positive factor.

    For ``mlp`` its row of W_out; for ``v`` the sum of its rows of W_O over the query heads of its group, as if all of
    them attended alike. Times the gain of the post-norm where the model has one.
    """
    if site == "mlp":
        rows = weight(model, layer, "mlp.W_out")
    else:
        groups = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
        by_head = rearrange(weight(model, layer, "attn.W_O"), "(g head) k d_model -> g head k d_model", g=groups)
        rows = rearrange(by_head.sum(1), "g k d_model -> (g k) d_model")
    norm = post_norm(model, layer, WRITES[site])
    chosen = rows[neurons.to(rows.device)]
    return chosen if norm is None else chosen * norm.gain.to(chosen.dtype)


@torch.inference_mode()
def written(
    model: HookedModel, added: Float[Tensor, "neuron d_model"], k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """The ``k`` tokens whose logits each direction raises most and lowers most, strongest first (the direct path)."""
    # the norm of a direction, less the norm of nothing: a final norm's own bias is no neuron's doing
    normed = final_norm(model, added) - final_norm(model, torch.zeros_like(added))
    ids = [top_ids(model, part, k) for part in torch.cat([normed, -normed]).split(ROWS_AT_ONCE)]
    promoted, suppressed = torch.cat(ids).cpu().chunk(2)
    return promoted, suppressed
