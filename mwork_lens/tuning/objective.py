"""Next-token loss of a batch and its gradient, without ever holding the logits of more than a few positions."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from ..model import HookedModel, TokenBatch, differentiable_logits, encode, run_blocks, special_ids
from ..text import Document

POSITIONS_AT_ONCE = 128
"""Positions whose logits over the vocabulary are held at a time."""

Layout = Literal["padded", "packed"]


def passages(
    model: HookedModel, texts: Sequence[Document], layout: Layout, max_tokens: int, order: Int[Tensor, " text"]
) -> list[Int[Tensor, " _"]]:
    """Token ids to train on: a row a text, or (packed) all texts in ``order`` end to end and cut into equal rows.

    Raises:
        ValueError: for no texts, or a row in which no token is predicted.
    """
    if not texts:
        raise ValueError("There are no texts to train on.")
    names = [str(i) for i in range(len(texts))]
    if layout == "packed":
        encoded = encode(model, texts, names, model.cfg.n_ctx)
        length = min(max_tokens, model.cfg.n_ctx)
        rows = [row for row in torch.cat([encoded[i] for i in order.tolist()]).split(length) if len(row) > 1]
    else:
        rows = encode(model, texts, names, max_tokens)
    short = [i for i, row in enumerate(rows) if not predicted(model, row)]
    if short or not rows:
        which = f"text {short[0]} ({texts[short[0]]!r:.60})" if short and layout == "padded" else "a row"
        raise ValueError(f"{which} is too short to train on: no ordinary token follows another.")
    return rows


def predicted(model: HookedModel, row: Int[Tensor, " pos"]) -> int:
    """The tokens of a row that count: ordinary ones, but not the first, which nothing predicts."""
    return int((~torch.isin(row[1:], special_ids(model))).sum())


def accumulate_gradient(model: HookedModel, batch: TokenBatch, tokens: int) -> float:
    """Summed nats of the batch's tokens; adds the gradient of nats / ``tokens`` to what requires one.

    Backward runs in two parts, first through the unembedding, a few positions at a time, then through the blocks: the
    same gradient, but never the logits of the whole batch.
    """
    counted = batch.content[:, 1:]
    hidden = run_blocks(model, batch.tokens)[:, :-1][counted]
    targets = batch.tokens[:, 1:][counted]
    gradients, total = [], 0.0
    pairs = zip(hidden.detach().split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    for part, part_targets in pairs:
        leaf = part.requires_grad_()
        nats = functional.cross_entropy(differentiable_logits(model, leaf), part_targets, reduction="sum")
        (nats / tokens).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        total += nats.item()
    hidden.backward(torch.cat(gradients))
    return total
