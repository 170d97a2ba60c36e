"""How to tune: the settings of one run, its rows of tokens, their next-token loss and its gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from ..model import HookedModel, TokenBatch, differentiable_logits, encode, run_blocks, special_ids
from ..settings import RecipeSettings
from ..text import Document, check_settings, warn_of_unknown

POSITIONS_AT_ONCE = 128
"""Positions whose logits over the vocabulary are held at a time."""

_WHOLE = ("batch_size", "epochs", "micro_batch_size", "steps", "max_tokens")

Layout = Literal["padded", "packed"]


@dataclass(frozen=True)
class Recipe(RecipeSettings):
    """All settings that decide what tuning does to the weights."""

    layout: Layout = "padded"
    """One row per text, or all texts end to end and cut into rows (where attention then crosses from text to text)."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    clip: float = 0.3
    """Largest norm of the gradient of the selected entries."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        check_settings(self)
        for name in ("learning_rate", "clip", *_WHOLE):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be above 0.")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.warmup < 1:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative, warmup={self.warmup} in [0, 1).")

    def rate(self, step: int, total: int) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up counted from one, then a cosine; never zero."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def rows_of(self, step: int, rows: int) -> list[int]:
        """Which rows a step reads; every pass is shuffled anew, and depends on the seed and the pass alone."""
        epoch, within = divmod(step, math.ceil(rows / self.batch_size))
        return self.order(rows, epoch)[within * self.batch_size :][: self.batch_size].tolist()

    def order(self, rows: int, epoch: int) -> Int[Tensor, " row"]:
        """The order of the rows in one pass."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(rows, generator=generator)

    def rows(self, model: HookedModel, texts: Sequence[Document]) -> list[Int[Tensor, " _"]]:
        """Token ids to train on; a ValueError for no texts, or for a row in which no token is predicted."""
        if not texts:
            raise ValueError("There are no texts to train on.")
        names, packed = [str(i) for i in range(len(texts))], self.layout == "packed"
        rows = encode(model, texts, names, model.cfg.n_ctx if packed else self.max_tokens)
        say_unknown(model, "texts to train on", texts, rows)
        rows = [row.clone() if row.is_inference() else row for row in rows]  # backward cannot keep such tensors
        if packed:
            ids = torch.cat([rows[i] for i in self.order(len(texts), 0).tolist()])
            rows = [row for row in ids.split(min(self.max_tokens, model.cfg.n_ctx)) if len(row) > 1]
        short = [i for i, row in enumerate(rows) if not predicted(model, row)]
        if short or not rows:
            which = "a row" if packed else f"text {short[0]} ({texts[short[0]]!r:.60})"
            raise ValueError(f"{which} is too short to train on: no ordinary token follows another.")
        return rows


def say_unknown(model: HookedModel, what: str, texts: Sequence[Document], rows: Sequence[Int[Tensor, " _"]]) -> None:
    """Warn of words that the tokenizer does not know; those who give token ids have chosen them."""
    of_words = [row for text, row in zip(texts, rows, strict=True) if isinstance(text, str)]
    warn_of_unknown(model.tokenizer, {what: of_words}, stacklevel=5)


def predicted(model: HookedModel, row: Int[Tensor, " pos"]) -> int:
    """The tokens of a row that count: ordinary ones, but not the first, which nothing predicts."""
    return int((~torch.isin(row[1:], special_ids(model))).sum())


def accumulate_gradient(model: HookedModel, batch: TokenBatch, tokens: int) -> float:
    """Summed nats of the batch's tokens; adds the gradient of nats / ``tokens`` to what requires one.

    Backward runs through the unembedding a few positions at a time, then through the blocks: the same gradient.
    """
    states = run_blocks(model, batch.tokens)
    batch = batch.to(states.device)  # of the last layer, in a model over several
    counted = batch.content[:, 1:]
    hidden = states[:, :-1][counted]
    targets = batch.tokens[:, 1:][counted]
    gradients, total = [], 0.0
    parts = (values.split(POSITIONS_AT_ONCE) for values in (hidden.detach(), targets))
    for leaf, leaf_targets in zip(*parts, strict=True):
        leaf.requires_grad_()
        logits = differentiable_logits(model, leaf)
        nats = functional.cross_entropy(logits, leaf_targets.to(logits.device), reduction="sum")
        (nats / tokens).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        total += nats.item()
    hidden.backward(torch.cat(gradients))
    return total
