"""What was published, to compare with: the paper's parallel form as it stands, and the scores of its released code."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, has_feed_forward, key_value_heads
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from .attention import READS, Geometry
from .outputs import MIXED, output_changes


def parallel(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """Zhao et al. 2024, eq. 4: ‖softmax(S − Δ) − softmax(S)‖ with Δ_ijd = q̃_id k̃_jd / m materialised.

    The same Δ serves queries and keys, so a key's score adds up the heads of its group. Only for models whose pattern
    is a softmax of masked scores alone.

    Raises:
        ValueError: for a soft cap, ALiBi or attention sinks.
    """
    squares_of = _rotated_pattern_change(model, layer)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        squares = squares_of(seen, batch)
        groups = key_value_heads(model.cfg)
        by_group = rearrange(squares, "batch (group head) d -> batch group head d", group=groups)
        return {"q": root_mean(squares.flatten(1), batch), "k": root_mean(by_group.sum(2).flatten(1), batch)}

    return [LayerMeasure(READS, score), *output_changes(model, layer, "structure")]


def _rotated_pattern_change(
    model: HookedModel, layer: int, *, scaled: bool = True
) -> Callable[[Activations, TokenBatch], Float[Tensor, "batch head d_head"]]:
    """‖softmax(S − Δ) − softmax(S)‖² of each coordinate of q̃ and k̃; ``scaled``: whether Δ is divided by m, as S is."""
    geometry = Geometry.of(model, layer, rotated_neurons=True)
    biased = model.cfg.positional_embedding_type == "alibi" or getattr(model.cfg, "use_attention_sinks", False)
    if geometry.cap or biased:
        raise ValueError(f"{model.cfg.model_name}: the paper's form has no soft cap, no biases and no sinks.")

    def squares(seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch head d_head"]:
        by_document = []
        for attention in geometry.documents(seen, batch):
            queries = attention.query_neurons.direct * (1 if scaled else geometry.scale)
            keys = repeat(attention.keys, "group d key -> (group head) d key", head=attention.heads_per_group)
            masked = attention.scores.masked_fill(attention.pattern == 0, -torch.inf)
            delta = einsum(queries, keys, "head d query, head d key -> head query key d")
            changed = torch.softmax(masked[..., None] - delta, dim=2)
            by_document.append((changed - attention.pattern[..., None]).square().sum((1, 2)))
        return torch.stack(by_document)

    return squares


def released(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """What the authors' code computes for one layer, which are not the scores of their text.

    * ``mlp``: Σ_t |x W_up|, without the gate and without W_down.
    * ``v``: Σ_t |z|, the mixed values in query-head space.
    * ``q`` and ``k``: one list in query-head space, the change of the pattern with Δ_ijd = q̃_id k̃_jd after rotation
      and not divided by m.
    * ``k`` and ``v`` take the query-head index divided by the heads of a group, rounded down, as theirs; where several
      indices meet, the highest score counts. The right neuron is (head // heads of a group, dimension), so
      with grouped heads almost all of these are other neurons' scores.

    Sums over positions are not divided by length. What is left out: that Mistral ran without a causal mask, and that
    documents which ran out of memory were dropped. Three more differences: their change of a pattern is the sum of
    squares, of which the root here has the same order; they count the BOS, and here only ordinary tokens count; and of
    ``k`` and ``v`` they take the top and intersect documents by query-head index and map to key heads last, so that
    their sets are others.

    Raises:
        ValueError: as :func:`parallel`.
    """
    squares_of = _rotated_pattern_change(model, layer, scaled=False)
    shared = model.cfg.n_heads // key_value_heads(model.cfg)

    def as_key_value(scores: Float[Tensor, "batch neuron"]) -> Float[Tensor, "batch kv_neuron"]:
        return rearrange(scores, "batch (kv_neuron shared) -> batch kv_neuron shared", shared=shared).amax(-1)

    def pattern(seen: Activations, batch: TokenBatch) -> SiteScores:
        scores = squares_of(seen, batch).sqrt().flatten(1)
        return {"q": scores, "k": as_key_value(scores)}

    def absolute_sum(x: Float[Tensor, "batch pos neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
        return (at_least_float32(x).abs() * batch.content[..., None]).sum(1)

    def value(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"v": as_key_value(absolute_sum(seen[MIXED].flatten(2), batch))}

    def hidden(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"mlp": absolute_sum(seen[read_up], batch)}

    read_up = "mlp.hook_pre_linear" if getattr(model.cfg, "gated_mlp", False) else "mlp.hook_pre"
    parts = [LayerMeasure(READS, pattern), LayerMeasure((MIXED,), value)]
    return [*parts, LayerMeasure((read_up,), hidden)] if has_feed_forward(model.cfg) else parts
