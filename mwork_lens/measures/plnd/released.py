"""The scores of the paper's released code, which are not those of its text: only to compare with."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, key_value_heads
from ..measure import Activations, LayerMeasure, SiteScores
from .parallel import rotated_pattern_change
from .values import MIXED


def released(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """What the authors' code computes for one layer.

    * ``mlp``: Σ_t |x W_up|, without the gate and without W_down.
    * ``v``: Σ_t |z|, the mixed values in query-head space.
    * ``q`` and ``k``: one list in query-head space, the change of the pattern with Δ_ijd = q̃_id k̃_jd after rotation
      and not divided by m.
    * ``k`` and ``v`` take the query-head index divided by the heads of a group, rounded down, for their own; where
      several indices meet, the highest score counts. The right neuron is (head // heads of a group, dimension), so
      with grouped heads almost all of these are other neurons' scores.

    Sums over positions are not divided by length. What is left out: that Mistral ran without a causal mask, and that
    documents which ran out of memory were dropped.

    Raises:
        ValueError: as :func:`parallel`.
    """
    geometry, squares_of = rotated_pattern_change(model, layer, scaled=False)
    groups = key_value_heads(model.cfg)
    shared = model.cfg.n_heads // groups

    def as_key_value(scores: Float[Tensor, "batch neuron"]) -> Float[Tensor, "batch kv_neuron"]:
        return rearrange(scores, "batch (kv_neuron shared) -> batch kv_neuron shared", shared=shared).amax(-1)

    def pattern(seen: Activations, batch: TokenBatch) -> SiteScores:
        scores = squares_of(seen, batch).sqrt().flatten(1)
        return {"q": scores, "k": as_key_value(scores)}

    def value(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"v": as_key_value(_absolute_sum(seen[MIXED].flatten(2), batch))}

    def hidden(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"mlp": _absolute_sum(seen[read_up], batch)}

    read_up = "mlp.hook_pre_linear" if getattr(model.cfg, "gated_mlp", False) else "mlp.hook_pre"
    parts = [LayerMeasure(geometry.reads, pattern), LayerMeasure((MIXED,), value)]
    return parts if getattr(model.cfg, "attn_only", False) else [*parts, LayerMeasure((read_up,), hidden)]


def _absolute_sum(x: Float[Tensor, "batch pos neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
    return (at_least_float32(x).abs() * batch.content[..., None]).sum(1)
