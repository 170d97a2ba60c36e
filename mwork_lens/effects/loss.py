"""Next-token loss of each passage, without ever holding the logits of a whole passage in memory."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..model import MAX_TOKENS, HookedModel, TokenBatch, batches, encode, run_blocks, token_losses
from ..text import Document, as_corpus


def language_losses(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, max_tokens: int = MAX_TOKENS
) -> pd.DataFrame:
    """Next-token loss of the model as it is, a row a language: passages, tokens that count, nats_per_token.

    Raises:
        ValueError: for empty documents, before the work.
    """
    given = as_corpus(corpus)
    encoded = {language: encode(model, given[language], given.ids[language], max_tokens) for language in given}
    rows = []
    for language, documents in encoded.items():
        nats, tokens = passage_nats(model, documents)
        found = {"passages": len(documents), "tokens": int(tokens.sum())}
        rows.append({"language": language, **found, "nats_per_token": float(nats.sum() / tokens.sum())})
    return pd.DataFrame(rows).set_index("language")


@torch.inference_mode()
def passage_nats(
    model: HookedModel,
    encoded: Sequence[Int[Tensor, " _"]],
    *,
    skip: Sequence[int] | None = None,
    batch_size: int | None = None,
    after_batch: Callable[[int], object] = lambda documents: None,
) -> tuple[Float[Tensor, " passage"], Int[Tensor, " passage"]]:
    """Summed negative log-likelihood of each passage's ordinary tokens, and how many these are.

    A token counts if it is neither special nor the passage's first (which nothing predicts), nor among the first
    ``skip`` tokens of its passage, e.g. those of a prompt.
    """
    nats = torch.zeros(len(encoded), dtype=torch.float64)
    tokens = torch.zeros(len(encoded), dtype=torch.int64)
    for batch in batches(model, encoded, batch_size):
        stream = run_blocks(model, batch.tokens)
        counted = batch.content[:, 1:] & _after(batch, skip)
        by_token = token_losses(model, stream[:, :-1][counted], batch.tokens[:, 1:][counted])
        _add(batch, counted, by_token, nats, tokens)
        after_batch(len(batch.rows))
    return nats, tokens


def _after(batch: TokenBatch, skip: Sequence[int] | None) -> Bool[Tensor, "batch pos"]:
    positions = torch.arange(1, batch.tokens.shape[1], device=batch.tokens.device)
    first = torch.tensor([skip[row] if skip else 1 for row in batch.rows], device=positions.device)
    return positions >= first[:, None]


def _add(batch: TokenBatch, counted: Tensor, by_token: Tensor, nats: Tensor, tokens: Tensor) -> None:
    passages = torch.tensor(batch.rows)[counted.nonzero()[:, 0].cpu()]
    nats.index_add_(0, passages, by_token.double().cpu())
    tokens.index_add_(0, passages, torch.ones_like(passages))
