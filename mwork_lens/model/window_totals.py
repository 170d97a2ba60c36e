"""What windows of a stream add up to that were read to their end, and how much text that was."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..store import Hashes, Result, storable
from ..text import Corpus, SeenDocuments, StreamedCorpus
from .forward import Encoded
from .reducers import Reducer


@storable
@dataclass(frozen=True)
class TextRead:
    """How much text the windows of a stream held, and its identity."""

    hash: str = ""
    """Of all windows in order; of one window that of its corpus."""
    windows: int = 0
    passages: Mapping[str, int] = field(default_factory=dict)
    documents: Mapping[str, int] = field(default_factory=dict)
    """Passages of one document stand together; one that begins again counts again."""
    last: Mapping[str, str] = field(default_factory=dict)
    """The document that each language ended with."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Ordinary ones, of all windows where they are counted to end a language, else of those that were encoded."""

    def then(self, window: Corpus, tokens: Mapping[str, int]) -> "TextRead":
        """With another window."""
        chained = hashlib.sha256(f"{self.hash} {window.hash}".encode()).hexdigest()[:16]
        documents, last = dict(self.documents), dict(self.last)
        for language, names in window.documents.items():
            changes = sum(name != before for before, name in zip([last.get(language), *names], names, strict=False))
            documents[language] = documents.get(language, 0) + changes
            last[language] = names[-1]
        passages = plus(self.passages, {language: len(names) for language, names in window.documents.items()})
        hashed = chained if self.windows else window.hash
        return TextRead(hashed, self.windows + 1, passages, documents, last, plus(self.tokens, tokens))

    def describe(self, corpus: StreamedCorpus) -> dict[str, Any]:
        """The record that results keep of their corpus."""
        counts = {"passages": self.passages, "documents": self.documents}
        of_all = {name: {language: each[language] for language in corpus} for name, each in counts.items()}
        return {**corpus.describe(), "hash": self.hash, **of_all}


def plus(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    """The sums of numbers by name."""
    return {name: ours.get(name, 0) + theirs.get(name, 0) for name in (*ours, *(x for x in theirs if x not in ours))}


@dataclass(frozen=True)
class WindowTotals(Result, kind="window_totals"):
    """What windows add up to that were read to their end, by language; 8 bytes of each document and of its text."""

    text: TextRead
    parts: dict[str, Any]
    """Reducers."""
    tokens: dict[str, int]
    """Ordinary tokens that were read."""
    hashes: dict[str, list[Hashes]]
    """Of the token ids of each document, in order."""
    seen: dict[str, list[Int[Tensor, " _"]]]
    """Hashes of each passage's text."""
    record: Mapping[str, Any]
    """Everything that decides the numbers."""

    def add(self, encoded: Encoded, parts: Mapping[str, Reducer]) -> None:
        """Add what the reducers of a window hold, which are used up."""
        for language, part in parts.items():
            if language in self.parts:
                self.parts[language].add_text(part)
            else:
                self.parts[language] = part
        for language, hashes in encoded.hashes.items():
            self.hashes.setdefault(language, []).append(Hashes.of(hashes))
            texts = [one for each in encoded.corpus.identities[language] for one in each.texts]
            self.seen.setdefault(language, []).append(torch.tensor(texts, dtype=torch.int64).unique())
        self.tokens.update(plus(self.tokens, encoded.tokens))

    def compact(self) -> "WindowTotals":
        """The same with one tensor for each language."""
        hashes = {language: [Hashes.joined(each)] for language, each in self.hashes.items()}
        seen = {language: [torch.cat(each).unique()] for language, each in self.seen.items()}
        return replace(self, hashes=hashes, seen=seen)

    def document_hashes(self) -> dict[str, Hashes]:
        """By language, the identity of each document."""
        return {language: Hashes.joined(each) for language, each in self.hashes.items()}

    def seen_documents(self) -> SeenDocuments:
        """By what the texts are recognised."""
        return SeenDocuments.of_hashes({language: torch.cat(each) for language, each in self.seen.items()})


@storable
@dataclass(frozen=True)
class WindowRows(Sequence[int]):
    """The places in a language's stream of what one part has read: of every ``of``-th window, each of ``size``."""

    number: int
    of: int
    size: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]: of no slices
        if not 0 <= i < self.length:
            raise IndexError(i)
        window, row = divmod(i, self.size)
        return (self.number + self.of * window) * self.size + row
