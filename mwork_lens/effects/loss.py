"""Next-token loss of each passage, without ever holding the logits of a whole passage in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import (
    MAX_TOKENS,
    Encoded,
    HookedModel,
    Plan,
    Progress,
    Reducer,
    TokenBatch,
    batches,
    stream,
    token_losses,
)
from ..text import Document


@dataclass(frozen=True)
class PassageLosses(Reducer, kind="passage_losses"):
    """Loss of each passage of a plan. A passage is in one batch, so that merging adds zeros."""

    nats: dict[str, Float[Tensor, " _"]]
    """By language: summed negative log-likelihood of each passage."""
    tokens: dict[str, Int[Tensor, " _"]]
    """By language: the tokens of each passage that count."""

    @classmethod
    def empty(cls, plan: Plan) -> "PassageLosses":
        """Of no batch."""
        nats, tokens = (
            {language: torch.zeros(number, dtype=dtype) for language, number in plan.encoded.documents.items()}
            for dtype in (torch.float64, torch.int64)
        )
        return cls(**Reducer.start(plan), nats=nats, tokens=tokens)

    @classmethod
    def of(cls, model: HookedModel, plan: Plan, *, progress: Progress = None) -> "PassageLosses":
        """Of all batches of a plan."""
        losses = cls.empty(plan)
        for batch, states in stream(model, plan, progress=progress):
            losses.update(model, batch, states)
        return losses

    def update(self, model: HookedModel, batch: TokenBatch, states: Float[Tensor, "batch pos d_model"]) -> None:
        """Add a batch, whose residual stream after the last block is ``states``.

        Raises:
            ValueError: if it is in already.
        """
        self.claim(batch)
        rows = list(batch.rows)
        self.nats[batch.language][rows], self.tokens[batch.language][rows] = _losses(model, batch, states)


def language_losses(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, max_tokens: int = MAX_TOKENS
) -> pd.DataFrame:
    """Next-token loss of the model as it is, one row per language: passages, tokens that count, nats_per_token.

    Raises:
        ValueError: for empty documents, before the work.
    """
    losses = PassageLosses.of(model, Encoded.of(model, corpus, max_tokens).plan())
    rows = []
    for language, nats in losses.nats.items():
        tokens = int(losses.tokens[language].sum())
        row = {"language": language, "passages": len(nats), "tokens": tokens}
        rows.append({**row, "nats_per_token": float(nats.sum() / tokens)})
    return pd.DataFrame(rows).set_index("language")


def passage_nats(
    model: HookedModel,
    encoded: Sequence[Int[Tensor, " _"]],
    *,
    skip: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> tuple[Float[Tensor, " passage"], Int[Tensor, " passage"]]:
    """Summed negative log-likelihood of each passage's ordinary tokens, and how many these are.

    A token counts if it is neither special nor the passage's first (which nothing predicts), nor among the first
    ``skip`` tokens of its passage, e.g. those of a prompt.
    """
    nats = torch.zeros(len(encoded), dtype=torch.float64)
    tokens = torch.zeros(len(encoded), dtype=torch.int64)
    for batch, states in stream(model, batches(model, encoded, batch_size)):
        rows = list(batch.rows)
        nats[rows], tokens[rows] = _losses(model, batch, states, [skip[row] for row in rows] if skip else None)
    return nats, tokens


@torch.inference_mode()
def _losses(
    model: HookedModel,
    batch: TokenBatch,
    states: Float[Tensor, "batch pos d_model"],
    skip: Sequence[int] | None = None,
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    counts = batch.content[:, 1:]
    if skip is not None:
        positions = torch.arange(1, batch.tokens.shape[1], device=counts.device)
        counts = counts & (positions >= torch.tensor(skip, device=counts.device)[:, None])
    by_token = token_losses(model, states[:, :-1][counts], batch.tokens[:, 1:][counts]).double().cpu()
    nats = torch.zeros(len(counts), dtype=torch.float64)
    return nats.index_add_(0, counts.nonzero()[:, 0].cpu(), by_token), counts.sum(1).cpu()
