"""The paper's parallel form as it stands: Δ of every query, key and dimension at once, to compare costs with."""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel
from . import feed_forward, values
from .attention import Geometry
from .measure import Activations, LayerMeasure, SiteScores, root_mean


def parallel(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
    """Zhao et al. 2024, eq. 4: ‖softmax(S − Δ) − softmax(S)‖ with Δ ∈ R^{l × l × d}, materialised head by head.

    The same Δ_ijd = q̃_id k̃_jd / m serves queries and keys, so a key's score adds up the heads of its group. Only for
    models whose pattern is a softmax of masked scores alone.

    Raises:
        ValueError: for a soft cap, ALiBi or attention sinks.
    """
    geometry = Geometry.of(model, layer, rotated_neurons=True)
    biased = model.cfg.positional_embedding_type == "alibi" or getattr(model.cfg, "use_attention_sinks", False)
    if geometry.cap or biased:
        raise ValueError(f"{model.cfg.model_name}: the paper's form has no soft cap, no biases and no sinks.")

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        by_document = []
        for i, length in enumerate(batch.lengths):
            q, k, pattern = (seen[name][i] for name in geometry.reads)
            found = geometry.attention(q[:length], k[:length], pattern[:, :length, :length], batch.content[i, :length])
            heads = [
                _squares(
                    found.pattern[h],
                    found.scores[h],
                    found.query_neurons.direct[h],
                    found.keys[h // found.heads_per_group],
                )
                for h in range(len(found.queries))
            ]
            by_document.append(torch.stack(heads))
        squares = torch.stack(by_document)
        by_group = rearrange(squares, "batch (group head) d -> batch group head d", head=found.heads_per_group)
        return {
            "q": root_mean(squares.flatten(1), batch),
            "k": root_mean(by_group.sum(2).flatten(1), batch),
        }

    parts = [LayerMeasure(geometry.reads, score), values.structure_change(model, layer)]
    return parts if getattr(model.cfg, "attn_only", False) else [*parts, feed_forward.structure_change(model, layer)]


def _squares(pattern: Tensor, scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """All dimensions of one head; ``queries`` come divided by m."""
    delta = einsum(queries, keys, "d query, d key -> d query key")
    masked = scores.masked_fill(pattern == 0, -torch.inf)
    return (torch.softmax(masked - delta, -1) - pattern).square().sum((-1, -2))
