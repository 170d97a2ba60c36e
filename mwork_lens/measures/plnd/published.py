"""What was published, to compare with: the paper's parallel form as it stands, and the scores of its released code."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32, has_feed_forward, key_value_heads
from ..measure import Activations, LayerMeasure, SiteScores, root_mean
from . import feed_forward, values
from .attention import Geometry


def parallel(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """Zhao et al. 2024, eq. 4: ‖softmax(S − Δ) − softmax(S)‖ with Δ_ijd = q̃_id k̃_jd / m materialised.

    The same Δ serves queries and keys, so a key's score adds up the heads of its group. Only for models whose pattern
    is a softmax of masked scores alone.

    Raises:
        ValueError: for a soft cap, ALiBi or attention sinks.
    """
    geometry, squares_of = rotated_pattern_change(model, layer)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        squares = squares_of(seen, batch)
        groups = key_value_heads(model.cfg)
        by_group = rearrange(squares, "batch (group head) d -> batch group head d", group=groups)
        return {"q": root_mean(squares.flatten(1), batch), "k": root_mean(by_group.sum(2).flatten(1), batch)}

    parts = [LayerMeasure(geometry.reads, score), values.structure_change(model, layer)]
    return [*parts, feed_forward.structure_change(model, layer)] if has_feed_forward(model.cfg) else parts


def rotated_pattern_change(
    model: HookedModel, layer: int, *, scaled: bool = True
) -> tuple[Geometry, Callable[[Activations, TokenBatch], Float[Tensor, "batch head d_head"]]]:
    """What to read, and how it gives ‖softmax(S − Δ) − softmax(S)‖² of each coordinate of q̃ and k̃.

    Args:
        model: a hooked model.
        layer: which layer.
        scaled: whether Δ is divided by m, as S is.

    Raises:
        ValueError: for a soft cap, ALiBi or attention sinks.
    """
    geometry = Geometry.of(model, layer, rotated_neurons=True)
    biased = model.cfg.positional_embedding_type == "alibi" or getattr(model.cfg, "use_attention_sinks", False)
    if geometry.cap or biased:
        raise ValueError(f"{model.cfg.model_name}: the paper's form has no soft cap, no biases and no sinks.")

    def squares(seen: Activations, batch: TokenBatch) -> Float[Tensor, "batch head d_head"]:
        by_document = []
        for i, length in enumerate(batch.lengths):
            q, k, pattern = (seen[name][i] for name in geometry.reads)
            seen_pattern, content = pattern[:, :length, :length], batch.content[i, :length]
            attention = geometry.attention(q[:length], k[:length], seen_pattern, content)
            queries = attention.query_neurons.direct * (1 if scaled else geometry.scale)
            keys = repeat(attention.keys, "group d key -> (group head) d key", head=attention.heads_per_group)
            by_document.append(_squares(attention.pattern, attention.scores, queries, keys))
        return torch.stack(by_document)

    return geometry, squares


def _squares(
    pattern: Float[Tensor, "head query key"],
    scores: Float[Tensor, "head query key"],
    queries: Float[Tensor, "head d_head query"],
    keys: Float[Tensor, "head d_head key"],
) -> Float[Tensor, "head d_head"]:
    masked = scores.masked_fill(pattern == 0, -torch.inf)
    delta = einsum(queries, keys, "head d query, head d key -> head query key d")
    changed = torch.softmax(masked[..., None] - delta, dim=2)
    return (changed - pattern[..., None]).square().sum((1, 2))


def released(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """What the authors' code computes for one layer, which are not the scores of their text.

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
    shared = model.cfg.n_heads // key_value_heads(model.cfg)

    def as_key_value(scores: Float[Tensor, "batch neuron"]) -> Float[Tensor, "batch kv_neuron"]:
        return rearrange(scores, "batch (kv_neuron shared) -> batch kv_neuron shared", shared=shared).amax(-1)

    def pattern(seen: Activations, batch: TokenBatch) -> SiteScores:
        scores = squares_of(seen, batch).sqrt().flatten(1)
        return {"q": scores, "k": as_key_value(scores)}

    def value(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"v": as_key_value(_absolute_sum(seen[values.MIXED].flatten(2), batch))}

    def hidden(seen: Activations, batch: TokenBatch) -> SiteScores:
        return {"mlp": _absolute_sum(seen[read_up], batch)}

    read_up = "mlp.hook_pre_linear" if getattr(model.cfg, "gated_mlp", False) else "mlp.hook_pre"
    parts = [LayerMeasure(geometry.reads, pattern), LayerMeasure((values.MIXED,), value)]
    return [*parts, LayerMeasure((read_up,), hidden)] if has_feed_forward(model.cfg) else parts


def _absolute_sum(x: Float[Tensor, "batch pos neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
    return (at_least_float32(x).abs() * batch.content[..., None]).sum(1)
