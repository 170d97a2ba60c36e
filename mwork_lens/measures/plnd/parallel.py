"""The paper's parallel form as it stands, Δ ∈ R^{l × l × d} for every head: to compare with, in cost and in scores."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch, key_value_heads
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
    return parts if getattr(model.cfg, "attn_only", False) else [*parts, feed_forward.structure_change(model, layer)]


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
            found = geometry.attention(q[:length], k[:length], pattern[:, :length, :length], batch.content[i, :length])
            queries = found.query_neurons.direct * (1 if scaled else geometry.scale)
            keys = repeat(found.keys, "group d key -> (group head) d key", head=found.heads_per_group)
            by_document.append(_squares(found.pattern, found.scores, queries, keys))
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
