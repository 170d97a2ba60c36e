"""How often an identifier is right on single tokens whose language is known from real text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import regex
import torch
from jaxtyping import Int
from torch import Tensor

from ..model import MAX_TOKENS, HookedModel, encode
from ..store import read_result, write_result
from ..text import OTHER, SHARED, Document, Identifier, as_corpus, identifier
from .vocabulary import token_texts, tokenizer_hash

LEAST_COUNT, LEAST_SHARE = 2, 0.9
_LETTER = regex.compile(r"[\p{L}\p{M}]")


@dataclass(frozen=True, eq=False)
class IdentifierAccuracy:
    """What an identifier calls tokens of each language."""

    confusion: Int[Tensor, "language label"]
    """Tokens of each language (rows) under each label (columns)."""
    languages: tuple[str, ...]
    names: tuple[str, ...]
    """The labels: ``languages``, then ``shared`` and ``other``."""
    settings: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of all tokens under their own language's name; ``shared`` and ``other`` count as wrong."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def decided(self) -> float:
        """Share of the tokens that get a language at all (neither ``shared`` nor ``other``)."""
        return float(self.confusion[:, :-2].sum() / self.confusion.sum())

    @property
    def precision(self) -> float:
        """Share of the tokens that get a language for which it is the right one."""
        return float(self.confusion.diagonal().sum() / self.confusion[:, :-2].sum())

    def to_frame(self) -> pd.DataFrame:
        """The confusion table: a row a language, columns what its tokens are called, and the share that is right."""
        frame = pd.DataFrame(self.confusion.tolist(), index=list(self.languages), columns=list(self.names))
        right = [row[name] / max(1, row.sum()) for name, row in frame.iterrows()]
        return frame.rename_axis("language").assign(tokens=frame.sum(axis=1), right=right)

    def summary(self) -> str:
        """How often it is right, in a sentence."""
        return (
            f"{self.settings['identifier']}: {self.accuracy:.1%} of {int(self.confusion.sum()):,} tokens right; "
            f"{self.decided:.1%} get a language, {self.precision:.1%} of these the right one"
        )

    def __repr__(self) -> str:
        return f"IdentifierAccuracy({self.summary()})\n{self.to_frame().round(2).to_string()}"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.summary())}</p>{self.to_frame().round(2).to_html()}"

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""
        write_result(path, "identifier_accuracy", dict(self.settings), {"confusion": self.confusion})

    @classmethod
    def load(cls, path: str | Path) -> "IdentifierAccuracy":
        """Read what :meth:`save` wrote."""
        settings, tensors = read_result(path, "identifier_accuracy")
        languages = tuple(settings["languages"])
        return cls(tensors["confusion"], languages, (*languages, SHARED, OTHER), settings)


def identifier_accuracy(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, name: str | Identifier = "lingua"
) -> IdentifierAccuracy:
    """Score an identifier, restricted to the corpus's languages, on the corpus's own tokens.

    A token's language is known if it has at least two letters, occurs at least twice, and at least nine times in ten in
    one language's text. Give languages about equally much text.

    Args:
        model: whose tokenizer is used.
        corpus: texts by language.
        name: as in :func:`mwork_lens.text.languages.identifier`.

    Raises:
        ValueError: without a tokenizer, for a language that the identifier does not know, or text too short to tell.
    """
    given = as_corpus(corpus)
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: its tokens have no text to identify.")
    languages = tuple(given)
    identify = identifier(name, languages)
    truth = _known(model, {language: given[language] for language in languages}, given.ids)
    if not truth:
        raise ValueError("No token of this text occurs often enough in one language alone: give more text.")
    texts = [text.strip() for text in token_texts(model, list(truth))]
    names = (*languages, SHARED, OTHER)
    confusion = torch.zeros(len(languages), len(names), dtype=torch.long)
    for own, found in zip(truth.values(), identify(texts), strict=True):
        confusion[languages.index(own), names.index(found) if found in names else -1] += 1
    settings = {
        "identifier": name if isinstance(name, str) else getattr(name, "__name__", "custom"),
        "languages": list(languages),
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "corpus": given.describe(),
    }
    return IdentifierAccuracy(confusion, languages, names, settings)


def _known(
    model: HookedModel, texts: Mapping[str, Sequence[Document]], ids: Mapping[str, Sequence[str]]
) -> dict[int, str]:
    """The language of each token that occurs nearly only there."""
    counts: dict[int, Counter[str]] = {}
    for language, documents in texts.items():
        for tokens in encode(model, documents, ids[language], max(MAX_TOKENS, model.cfg.n_ctx)):
            for token in tokens.tolist():
                counts.setdefault(token, Counter())[language] += 1
    text = dict(zip(counts, token_texts(model, list(counts)), strict=True))
    known = {}
    for token, by_language in counts.items():
        language, most = by_language.most_common(1)[0]
        total = by_language.total()
        if total >= LEAST_COUNT and most >= LEAST_SHARE * total and len(_LETTER.findall(text[token])) > 1:
            known[token] = language
    return known
