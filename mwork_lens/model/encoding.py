"""Documents as token ids: what comes before a text, where long ones are cut, and what is refused."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..text import Document, fault_of
from .architecture import HookedModel, require_hooked, special_ids, wrapped_model
from .blocks import require_attention
from .unembedding import require_same_readout


def encode(
    model: HookedModel, documents: Sequence[Document], names: Sequence[str], max_tokens: int | None
) -> list[Int[Tensor, " _"]]:
    """Token ids of each document, cut at ``max_tokens`` or the model's context, with a warning that says so.

    A text that begins with the BOS gets no second one. Refuses a document without an ordinary token or with one
    that the model has no embedding for, a string without a tokenizer and, with None, one that would be cut.
    """
    encoded, cut = encode_and_cut(model, documents, names, max_tokens)
    if cut:
        warn_of_cut(model, len(cut), max(cut), len(encoded), max_tokens)
    return encoded


Cut = list[tuple[int, str]]
"""Of documents that were cut: how many tokens they had, and their names."""


def encode_and_cut(
    model: HookedModel, documents: Sequence[Document], names: Sequence[str], max_tokens: int | None
) -> tuple[list[Int[Tensor, " _"]], Cut]:
    """The same without a warning, and what was cut."""
    require_hooked(model)
    require_attention(model)
    if wrapped_model(model) is not None:
        require_same_readout(model)
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens} leaves nothing to score; it must be at least 2.")
    limit = model.cfg.n_ctx if max_tokens is None else min(max_tokens, model.cfg.n_ctx)
    special = special_ids(model)
    encoded, cut = [], []
    for document, name in zip(documents, names, strict=True):
        ids = _ids(model, document, name)
        if len(ids) > limit:
            cut.append((len(ids), name))
        if torch.isin(ids[:limit], special).all():
            raise ValueError(f"Document {name} has no token besides special ones.")
        encoded.append(ids[:limit])
    if cut and max_tokens is None:
        number, name = cut[0]
        raise ValueError(
            f"Document {name} has {number} tokens, more than the context of {limit} of {model.cfg.model_name}."
        )
    return encoded, cut


def warn_of_cut(
    model: HookedModel,
    number: int,
    longest: tuple[int, str],
    documents: int,
    max_tokens: int | None,
    *,
    stacklevel: int = 5,
) -> None:
    """Say how many of so many documents were cut, and of the longest its tokens and name."""
    length, name = longest
    limit = min(max_tokens or model.cfg.n_ctx, model.cfg.n_ctx)
    warnings.warn(
        f"{number} of {documents} documents are longer than {limit} tokens and were cut there "
        f"(the longest, {name}, has {length}; max_tokens={max_tokens}, the model's context {model.cfg.n_ctx}).",
        stacklevel=stacklevel,
    )


def _ids(model: HookedModel, document: Document, name: str) -> Int[Tensor, " pos"]:
    if (fault := fault_of(document)) and fault != "empty":  # which gives no token, and is said below
        raise ValueError(f"Document {name} is {fault}.")
    if isinstance(document, Tensor):
        ids = document.detach().long().cpu()
        if ids.min() < 0 or ids.max() >= model.cfg.d_vocab:
            raise ValueError(f"Document {name} has token ids outside 0 to {model.cfg.d_vocab - 1}.")
        return ids
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: give documents as 1-D tensors of token ids.")
    ids = _text_ids(model, document)
    if (beyond := ids[ids >= model.cfg.d_vocab]).numel():
        word = model.tokenizer.decode(beyond[:1])
        raise ValueError(
            f"Document {name}: {word!r} is token {int(beyond[0])}, beyond the {model.cfg.d_vocab} embeddings of "
            f"{model.cfg.model_name}, whose tokenizer has tokens that it was not trained with: load the model with the "
            "tokenizer that belongs to it, or resize its embeddings."
        )
    return ids


def _text_ids(model: HookedModel, text: str) -> Int[Tensor, " pos"]:
    """What the tokenizer puts before every text stays, else its BOS comes first; what it puts after one (an EOS) does
    not, as nothing could follow. A text that begins with the BOS, as chat templates write it, gets no second one."""
    tokenizer, bos = model.tokenizer, model.tokenizer.bos_token_id
    plain, whole = (list(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (False, True))
    starts = range(len(whole) - len(plain) + 1)
    before = next((whole[:start] for start in starts if whole[start : start + len(plain)] == plain), [])
    if not getattr(model.cfg, "default_prepend_bos", True):
        before = [each for each in before if each != bos]
    elif not before and bos is not None:
        before = [bos]
    ids = before + plain
    return torch.tensor(ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids, dtype=torch.long)
