"""Words that a tokenizer does not know: they become one special token, which is neither scored nor counted."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def unknown_id(tokenizer: Any) -> int | None:
    """The token that stands for unknown words; None where a tokenizer has none. It need not say so: then the model of
    the tokenizer does."""
    declared = getattr(tokenizer, "unk_token_id", None)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(model, "unk_token", None)
    return tokenizer.get_vocab().get(name) if declared is None and name else declared


def unknown_shares(tokenizer: Any, ids: Mapping[str, Sequence[Int[Tensor, " _"]]]) -> dict[str, float]:
    """By language, the share of unknown tokens among those that are unknown or ordinary; without languages that have
    none, and empty where a tokenizer has no token of its own for them."""
    counts = unknown_counts(tokenizer, ids)
    return {language: unknown / content for language, (unknown, content) in counts.items() if unknown}


def unknown_counts(tokenizer: Any, ids: Mapping[str, Sequence[Int[Tensor, " _"]]]) -> dict[str, tuple[int, int]]:
    """By language, how many tokens are unknown, and how many unknown or ordinary; empty where a tokenizer has none."""
    unknown = unknown_id(tokenizer)
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
    if unknown is None or unknown in others:
        return {}
    special = torch.tensor([i for i in tokenizer.all_special_ids if i not in (None, unknown)], dtype=torch.long)
    counts = {}
    for language, documents in ids.items():
        tokens = torch.cat([*documents]) if documents else torch.empty(0, dtype=torch.long)
        content = tokens[~torch.isin(tokens, special)]
        counts[language] = int((content == unknown).sum()), len(content)
    return counts


_all_said: ContextVar[bool] = ContextVar("all_said", default=False)


@contextlib.contextmanager
def unknown_words_said() -> Iterator[None]:
    """A block that reads texts in parts, of which all has been said at once."""
    before = _all_said.set(True)
    try:
        yield
    finally:
        _all_said.reset(before)


NOT_COUNTED = "these tokens are neither scored nor counted, so results hold for the rest only"
ONE_TOKEN = "the model reads one and the same token for all of it"


def warn_of_unknown(
    tokenizer: Any, ids: Mapping[str, Sequence[Int[Tensor, " _"]]], *, effect: str = NOT_COUNTED, stacklevel: int = 4
) -> None:
    """Say by language which share of the text the tokenizer does not know, and what comes of that."""
    if not _all_said.get():
        say_unknown(tokenizer, unknown_shares(tokenizer, ids), effect=effect, stacklevel=stacklevel + 1)


def say_unknown(tokenizer: Any, shares: Mapping[str, float], *, effect: str = NOT_COUNTED, stacklevel: int = 3) -> None:
    """The same of shares by language."""
    if shares:
        token = tokenizer.convert_ids_to_tokens(unknown_id(tokenizer))
        listed = ", ".join(f"{language} {share:.1%}" for language, share in shares.items())
        warnings.warn(
            f"The tokenizer does not know part of the text ({token} by language: {listed}): {effect}.",
            stacklevel=stacklevel,
        )
