"""Text by language, with document ids: the demo text, files, a hub data set or the user's own dict."""

import hashlib
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from .arguments import check_arguments
from .choices import listed
from .dealing import Deal, by_share, evenly, spread, spread_over, turns
from .documents import Document, identity
from .languages import Labels
from .seen import Identities, SeenDocuments, Status, identities_of


@dataclass(frozen=True)
class Corpus(Mapping[str, list[Document]]):
    """A mapping, language -> list of passages, that knows where each passage comes from."""

    texts: Mapping[str, tuple[Document, ...]]
    documents: Mapping[str, tuple[str, ...]]
    """The document that each passage was taken from; a split never divides a document."""
    parallel: bool
    """Whether passage i is the same content in every language."""
    source: str = "given"
    labels: Labels = "bcp47"
    identities: Identities = field(default_factory=dict, repr=False)
    """By what the document of each passage is recognised wherever it is read; by default of what is here."""
    history: Mapping[str, Any] = field(default_factory=dict)
    """What was taken of a larger corpus: ``limit``, ``held_out``, each with its seed."""
    ids: Mapping[str, tuple[str, ...]] = field(init=False)
    """A name for each passage, e.g. ``fr/baking-bread/0``, for messages and tables."""

    def __post_init__(self) -> None:
        if not self.identities:
            rows = {read: list(zip(self.documents[read], texts, strict=True)) for read, texts in self.texts.items()}
            object.__setattr__(self, "identities", {read: identities_of(each) for read, each in rows.items()})
        ids = {
            language: tuple(f"{language}/{name}/{turn}" for turn, name in zip(turns(names), names, strict=True))
            for language, names in self.documents.items()
        }
        object.__setattr__(self, "ids", ids)

    def __getitem__(self, language: str) -> list[Document]:
        if language not in self.texts:
            raise KeyError(f"The corpus has no {language!r}; it has {listed(self.texts, language)}.")
        return list(self.texts[language])

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """The identity of the content (SHA-256, shortened), independent of the order of languages."""
        digest = hashlib.sha256()
        for language in sorted(self.texts):
            digest.update(language.encode())
            for text in self.texts[language]:
                digest.update(b"\0" + (text if isinstance(text, str) else repr(text.tolist())).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The record that results keep of their corpus."""
        passages = {language: len(texts) for language, texts in self.texts.items()}
        documents = {language: len(set(names)) for language, names in self.documents.items()}
        counts = {"passages": passages, "documents": documents}
        return {"source": self.source, "hash": self.hash, "parallel": self.parallel, **counts, **self.history}

    def select(self, rows: Mapping[str, Sequence[int]]) -> "Corpus":
        """The passages with these positions, by language; a ValueError for one that is not there."""
        check_arguments(Corpus.select, locals())
        for language, places in rows.items():
            if wrong := [i for i in places if not 0 <= i < len(self.texts.get(language, ()))]:
                raise ValueError(f"There is no passage {wrong[0]} of {language!r} in {self!r}.")

        def chosen(values: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
            return {language: tuple(values[language][i] for i in places) for language, places in rows.items()}

        texts, documents, identities = chosen(self.texts), chosen(self.documents), chosen(self.identities)
        return Corpus(texts, documents, self.parallel, self.source, self.labels, identities, self.history)

    def limit(self, passages: int, *, seed: int = 0) -> "Corpus":
        """At most this many (at least one) per language, taken from as many documents as possible, in order.

        Which of a document's passages, is drawn: the same ones in every language of a parallel corpus.
        """
        check_arguments(Corpus.limit, locals())
        rows = {language: spread(names, passages, seed) for language, names in self.documents.items()}
        return self.select(rows)._with(limit={"passages": passages, "seed": seed})

    def _with(self, **history: Any) -> "Corpus":
        return replace(self, history={**self.history, **history})

    def seen_by(self, seen: SeenDocuments) -> dict[str, list[Status]]:
        """By language, whether the document of each passage was read: here, in another language, or not at all."""
        return seen.statuses(self.identities, self.documents, self.parallel)

    def without(self, seen: SeenDocuments) -> "Corpus":
        """The passages of documents that were not read, nor translations of them (see :attr:`Detection.seen`).

        Raises:
            ValueError: if none are left in a language.
        """
        statuses = self.seen_by(seen)
        rows = {
            language: [i for i, status in enumerate(each) if status == "unseen"] for language, each in statuses.items()
        }
        if read := [language for language, left in rows.items() if not left]:
            raise ValueError(
                f"Every document of {read[0]!r} in {self.source} was read when neurons were found, here or in another "
                "language: give text with other documents."
            )
        return self.select(rows)._with(without="documents that were read when neurons were found")

    def divide(self, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, "Corpus"]:
        """Parts with these numbers of passages per language, of as many documents as possible, none in two parts.

        Smaller parts come first; the largest takes the longest documents, and only as many as it needs at first.
        As in :meth:`split` and :meth:`folds`, a document of a parallel corpus is in the same part in every language.

        Raises:
            ValueError: if a language has too few passages.
        """
        check_arguments(Corpus.divide, locals())
        what = f"{', '.join(f'{size} of {name}' for name, size in sizes.items())} without sharing a document"
        parts = self._deal(lambda documents: spread_over(documents, list(sizes.values())), seed, what)
        return {name: self._part(parts, i).limit(size, seed=seed) for i, (name, size) in enumerate(sizes.items())}

    def split(self, held_out: float = 0.25, *, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Split into a part to work with and one with about this share of the passages, by whole documents.

        Raises:
            ValueError: for a share outside (0, 1), or a language with fewer than two documents.
        """
        check_arguments(Corpus.split, locals())
        if not 0 < held_out < 1:
            raise ValueError(f"held_out={held_out} is not a share between 0 and 1.")
        parts = self._deal(lambda documents: by_share(documents, held_out), seed, "a held-out part", least=2)
        record = {"share": held_out, "seed": seed}
        return self._part(parts, 0)._with(held_out=record), self._part(parts, 1)._with(held_out_part=record)

    def folds(self, number: int = 2, *, seed: int = 0) -> list[tuple["Corpus", "Corpus"]]:
        """Divide the documents into folds; for each, the rest to work with and the fold itself, held out.

        Raises:
            ValueError: for fewer than two folds, or a language with fewer documents than folds.
        """
        check_arguments(Corpus.folds, locals())
        if number < 2:
            raise ValueError(f"{number} folds: there must be at least two.")
        folds = self._deal(lambda documents: evenly(documents, number), seed, f"{number} folds", least=number)
        return [(self._part(folds, fold, inside=False), self._part(folds, fold)) for fold in range(number)]

    def _deal(self, deal: Deal, seed: int, what: str, least: int = 1) -> dict[str, list[int | None]]:
        """By language, the part of each passage: whole documents, dealt out in random order."""
        parts = {}
        for language, names in self.documents.items():
            sizes = Counter(names)
            order = list(sizes)
            random.Random(int(seed)).shuffle(order)
            part_of = deal({name: sizes[name] for name in order}) if len(order) >= least else None
            if part_of is None:
                count = f"{len(names)} passages of {len(order)} document{'s' * (len(order) != 1)}"
                raise ValueError(f"{language!r} has {count}, too few for {what}.")
            parts[language] = [part_of.get(name) for name in names]
        for problem in self._on_both_sides(parts):
            warnings.warn(problem, stacklevel=3)
        return parts

    def _on_both_sides(self, parts: Mapping[str, Sequence[int | None]]) -> Iterator[str]:
        for language, dealt in parts.items():
            seen: dict[str, set[int]] = defaultdict(set)
            for text, part in zip(self.texts[language], dealt, strict=True):
                if part is not None and isinstance(text, str):
                    seen[identity(text)].add(part)
            if shared := sum(len(places) > 1 for places in seen.values()):
                yield (
                    f"{shared} texts of {language!r} are in several parts, as they are in several documents: what is "
                    "measured on one part was then seen in another. Remove repeated passages first."
                )

    def _part(self, parts: Mapping[str, Sequence[int | None]], number: int, inside: bool = True) -> "Corpus":
        rows = {lang: [i for i, n in enumerate(dealt) if (n == number) == inside] for lang, dealt in parts.items()}
        return self.select(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per passage: language, document, passage id, characters (token ids where it is a tensor)."""
        rows = [
            (language, document, name, len(text))
            for language, texts in self.texts.items()
            for document, name, text in zip(self.documents[language], self.ids[language], texts, strict=True)
        ]
        return pd.DataFrame(rows, columns=["language", "document", "passage", "length"])

    def __repr__(self) -> str:
        parts = [f"{name} {len(texts)} of {len(set(self.documents[name]))}" for name, texts in self.texts.items()]
        kind = "parallel" if self.parallel else "not parallel"
        return f"Corpus({self.source}: passages of documents: {', '.join(parts)}; {kind})"
