"""The change that value neurons make where an RMS norm of all heads' mixed values comes before W_O (BitNet)."""

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, key_value_heads, weight
from ..measure import Activations, LayerMeasure, SiteScores, root_mean

MIXED = "attn.hook_z"


def normed_value_change(model: HookedModel, layer: int, gain: Float[Tensor, " width"]) -> LayerMeasure:
    """With ẑ what W_O reads, ŵ the neuron's coordinates of it in the query heads of its group, A = ẑ W_O, B = ŵ W_O.

    Without the neuron the rest grows by ρ = (1 − share)^(−1/2), where share = ‖ŵ / g‖² / width is its part of the mean
    square; the change A − ρ (A − B) has the square (1 − ρ)² ‖A‖² + 2 (1 − ρ) ρ ⟨A, B⟩ + ρ² ‖B‖².
    """
    w_o = at_least_float32(weight(model, layer, "attn.W_O").detach())
    by_group = rearrange(w_o, "(group head) k d -> group k head d", group=key_value_heads(model.cfg))
    gram, gain_by_head = by_group @ by_group.mT, gain.view(*w_o.shape[:2])

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        z = at_least_float32(seen[MIXED])
        output = einsum(z, w_o, "batch pos head k, head k d -> batch pos d")
        mixed, plain = (
            rearrange(x, "batch pos (group head) k -> batch pos group k head", group=len(gram))
            for x in (z, z / gain_by_head)
        )
        share = plain.square().sum(-1) / gain.numel()
        root = (1 - share).clamp(min=0).sqrt()
        lost = -share / (root * (1 + root))  # 1 − ρ, without cancellation for small shares
        along = einsum(output, by_group, mixed, "b pos d, group k head d, b pos group k head -> b pos group k")
        size = einsum(mixed, gram, mixed, "b pos group k one, group k one two, b pos group k two -> b pos group k")
        squares = lost.square() * output.square().sum(-1)[..., None, None] + (2 * lost * along + size / root) / root
        return {"v": root_mean((squares * batch.content[..., None, None]).sum(1).flatten(1), batch)}

    return LayerMeasure((MIXED,), score)
