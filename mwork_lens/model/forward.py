"""Documents in, right-padded token batches out; and the forward pass through the blocks alone."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..text import Document
from .sites import HookedModel, special_ids

MAX_TOKENS = 512
"""Where documents are cut by default."""

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class TokenBatch:
    """Some documents as tokens, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    content: Bool[Tensor, "batch pos"]
    """Ordinary tokens: neither special nor padding. Only these positions are scored."""
    lengths: tuple[int, ...]
    """Tokens of each document without the padding."""
    rows: tuple[int, ...]
    """Which of the given documents these are."""


def encode(
    model: HookedModel, documents: Sequence[Document], names: Sequence[str], max_tokens: int | None
) -> list[Int[Tensor, " _"]]:
    """Token ids of each document, cut at ``max_tokens`` or the model's context, with a warning that says so.

    Raises:
        ValueError: for a document without any ordinary token, a string where there is no tokenizer, or, with
            ``max_tokens=None``, one longer than the model's context.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens} leaves nothing to score; it must be at least 2.")
    limit = model.cfg.n_ctx if max_tokens is None else min(max_tokens, model.cfg.n_ctx)
    special = special_ids(model)
    encoded, cut = [], []
    for document, name in zip(documents, names, strict=True):
        ids = _ids(model, document, name)
        if len(ids) > limit and max_tokens is None:
            raise ValueError(
                f"Document {name} has {len(ids)} tokens, more than the context of {limit} of {model.cfg.model_name}."
            )
        if len(ids) > limit:
            cut.append((len(ids), name))
        ids = ids[:limit]
        if torch.isin(ids, special).all():
            raise ValueError(f"Document {name} has no token besides special ones.")
        encoded.append(ids)
    if cut:
        longest, name = max(cut)
        warnings.warn(
            f"{len(cut)} of {len(encoded)} documents are longer than {limit} tokens and were cut there "
            f"(the longest, {name}, has {longest}; max_tokens={max_tokens}, the model's context {model.cfg.n_ctx}).",
            stacklevel=4,
        )
    return encoded


def _ids(model: HookedModel, document: Document, name: str) -> Int[Tensor, " pos"]:
    if isinstance(document, Tensor):
        if document.ndim != 1 or not len(document) or document.is_floating_point():
            raise ValueError(
                f"Document {name} is a tensor of shape {tuple(document.shape)} and {document.dtype}; "
                "token ids must be a non-empty 1-D integer tensor."
            )
        ids = document.detach().long().cpu()
        if ids.min() < 0 or ids.max() >= model.cfg.d_vocab:
            raise ValueError(f"Document {name} has token ids outside 0 to {model.cfg.d_vocab - 1}.")
        return ids
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: give documents as 1-D tensors of token ids.")
    return model.to_tokens(document, truncate=False)[0].cpu()  # pyright: ignore[reportAttributeAccessIssue]


def batches(
    model: HookedModel, encoded: Sequence[Int[Tensor, " _"]], batch_size: int | None = None
) -> Iterator[TokenBatch]:
    """Batches of documents of like length: ``batch_size`` documents, or as many as fit a token budget."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    device = next(model.parameters()).device  # pyright: ignore[reportAttributeAccessIssue]
    budget = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])
    special = special_ids(model)
    by_length = sorted(range(len(encoded)), key=lambda row: (len(encoded[row]), row))
    group: list[int] = []
    for row in by_length:
        full = len(group) == batch_size if batch_size else (len(group) + 1) * len(encoded[row]) > budget
        if group and full:
            yield _batch(encoded, group, special, device)
            group = []
        group.append(row)
    if group:
        yield _batch(encoded, group, special, device)


def _batch(
    encoded: Sequence[Tensor], rows: Sequence[int], special: Int[Tensor, " id"], device: torch.device
) -> TokenBatch:
    lengths = tuple(len(encoded[row]) for row in rows)
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    content = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : lengths[i]] = encoded[row]
        content[i, : lengths[i]] = ~torch.isin(encoded[row], special)
    return TokenBatch(tokens.to(device), content.to(device), lengths, tuple(rows))


def run_blocks(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, for right-padded tokens; the unembedding is not computed.

    Raises:
        ValueError: if it is not finite (broken weights, or an overflow in half precision).
    """
    stream = _bridge_stream(model, tokens) if hasattr(model, "original_model") else _stream(model, tokens)
    if not torch.isfinite(stream).all():
        raise ValueError(
            f"The residual stream of {model.cfg.model_name} is not finite: its weights hold NaN or infinite values, "
            f"or {stream.dtype} overflows."
        )
    return stream


def _stream(model: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    return model(tokens, stop_at_layer=model.cfg.n_layers, padding_side="right")


def _bridge_stream(bridge: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """A raw bridge takes ``stop_at_layer=n_layers`` for the whole model, so run what is below the unembedding."""
    streams: list[Tensor] = []
    last = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    with bridge.hooks(fwd_hooks=[(last, lambda activation, hook: streams.append(activation))]):
        bridge.original_model.base_model(tokens, use_cache=False)
    return streams[-1]
