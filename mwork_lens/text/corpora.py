"""Text by language, with document ids: the demo text, files, a hub data set or the user's own dict."""

import hashlib
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import langcodes
import pandas as pd

from ..store import user_path
from .arguments import check_arguments
from .choices import listed, require_choice
from .dealing import Deal, by_share, evenly, spread, spread_over, turns
from .documents import Document, as_documents, as_names, fault_of, identity
from .files import SUFFIXES, suffix_of
from .languages import Labels, require_language
from .problems import problems, repeats
from .readers import Passages, joined_text, language_of, read_files, read_folder, read_hub, rows_of_passages
from .seen import Identities, SeenDocuments, Status, identities_of, joined


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


def load_corpus(
    source: str | Path | Mapping[str, Sequence[Document]] = "demo",
    *,
    languages: Sequence[str] | None = None,
    sentences_per_passage: int = 1,
    limit: int | None = None,
    parallel: bool | None = None,
    labels: Labels = "bcp47",
    text_field: str = "text",
    split: str = "train",
) -> Corpus:
    """Load text by language.

    Args:
        source: ``"demo"`` (parallel text in en de fr es zh ru th, written for this package); a dict of lists;
            a folder with one file per language; one such file; or a hub data set with one configuration per language.
            In a folder the last part of a file's name before its suffix is the language: ``fr.txt``,
            ``news.fr.jsonl.gz`` and ``newstest2019-ref.fra.txt`` are French (a region may be left out where only one
            is there). ``.txt`` files have one passage per line, the others a column ``text`` and, optionally,
            ``document``. DOCUMENT_IDS.tsv next to ``.txt`` files names the document of each line in every language.
            A :class:`Corpus` keeps its labels, and what it says of ``parallel`` if that is None.
        languages: BCP 47 tags to keep, in this order; all that are there if None.
        sentences_per_passage: neighbouring lines or rows joined into one passage, never across documents.
        limit: at most this many passages per language, spread over the documents.
        parallel: whether passage i is the same content in every language; decided by document ids if None.
        labels: ``"free"`` for groups that are not languages (dialects, domains, scripts).
        text_field: the column with the text.
        split: of a hub data set.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for an unknown language, an empty corpus, an empty document, or a malformed file (with line).

    Example:
        >>> corpus = mw.load_corpus("demo", languages=["en", "fr"], limit=6)
        >>> {language: len(texts) for language, texts in corpus.items()}
        {'en': 6, 'fr': 6}
        >>> train, held_out = corpus.split(held_out=0.25)
    """
    check_arguments(load_corpus, locals())
    if isinstance(source, Corpus):
        labels = source.labels if labels == "bcp47" else labels
        parallel = source.parallel if parallel is None else parallel
    require_choice("labels", labels, get_args(Labels))
    wanted = None if languages is None else [require_language(x, labels) for x in as_names(languages, "languages")]
    if wanted is not None and not wanted:
        raise ValueError("languages is empty: name at least one, e.g. languages=['en', 'fr'].")
    if sentences_per_passage < 1 or (limit is not None and limit < 1):
        raise ValueError(f"{sentences_per_passage=} and {limit=} must be at least 1.")
    rows, name = _read(source, wanted, labels, text_field, split)
    known = source.identities if isinstance(source, Corpus) else None
    if absent := [language for language in wanted or () if language not in rows]:
        raise ValueError(f"{name} has no {absent[0]!r}; it has {listed(sorted(rows), absent[0])}.")
    rows = {language: rows[language] for language in wanted or rows}
    corpus = _assemble(rows, name, labels, parallel, sentences_per_passage, known)
    corpus = corpus._with(**source.history) if isinstance(source, Corpus) else corpus
    corpus = corpus if limit is None else corpus.limit(limit)
    for problem in problems(corpus.texts, languages=corpus.labels != "free"):
        warnings.warn(problem, stacklevel=2)
    return corpus


def as_corpus(corpus: Mapping[str, Sequence[Document]]) -> Corpus:
    """A dict of lists as a Corpus, under standard tags (``he`` for ``iw``) where all its keys are; a Corpus as it is.

    Raises:
        ValueError: for what is not a dict of lists of documents, or has the same language twice.
    """
    if isinstance(corpus, Corpus):
        return corpus
    rows = _from_dict(corpus)
    labels: Labels = "bcp47" if all(langcodes.tag_is_valid(label) for label in rows if label) else "free"
    assembled = _assemble(_standard(rows, labels), "given", labels, None)
    for problem in repeats(assembled.texts):
        warnings.warn(problem, stacklevel=3)
    return assembled


def _read(
    source: Any, wanted: list[str] | None, labels: Labels, text_field: str, split: str
) -> tuple[Mapping[str, Passages], str]:
    """The passages of any source by language, and its name."""
    if isinstance(source, Corpus):
        rows = {name: list(zip(source.documents[name], texts, strict=True)) for name, texts in source.texts.items()}
        return rows, source.source
    if isinstance(source, Mapping):
        return _standard(_from_dict(source), labels), "given"
    if not isinstance(source, str | Path):
        what = f"not {type(source).__name__}; a dict needs a language for each list, e.g. {{'fr': texts}}"
        raise ValueError(f"A corpus comes from a dict of lists, or a file's, folder's or data set's name, {what}.")
    if str(source) == "demo":
        return read_folder(Path(str(files("mwork_lens") / "data")), wanted, labels, "text", "demo"), "demo"
    path = user_path(source)
    if path.is_dir():
        return read_folder(path, wanted, labels, text_field, str(path)), path.name
    if path.is_file():
        return read_files({language_of(path, labels) or "und": path}, None, text_field), path.name
    hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "/", "~"))
    if hub_id and suffix_of(path) not in SUFFIXES:
        return read_hub(str(source), wanted, labels, text_field, split), str(source)
    raise FileNotFoundError(f"There is no corpus file or folder {str(source)!r}.")


def _from_dict(corpus: Any) -> dict[str, Passages]:
    if not isinstance(corpus, Mapping):
        what = f"A corpus must be a dict from languages to lists of documents, not {type(corpus).__name__}"
        raise ValueError(f"{what}: give e.g. {{'fr': texts}}, or a file or folder to load_corpus.")
    if names := [language for language in corpus if not isinstance(language, str)]:
        raise ValueError(f"The languages of a corpus are strings, not {names[0]!r}.")
    lists = {language: as_documents(texts, f"The texts of {language!r}") for language, texts in corpus.items()}
    for language, texts in lists.items():
        _require_documents(texts, language)
    return {language: [(None, text) for text in texts] for language, texts in lists.items()}


def _require_documents(texts: Iterable[Any], language: str) -> None:
    for i, text in enumerate(texts):
        if fault := fault_of(text):
            raise ValueError(f"Document {i} of {language!r} is {fault}.")


def _standard(rows: Mapping[str, Passages], labels: Labels) -> dict[str, Passages]:
    """By language tags in their standard form; refused where two of them are the same language."""
    standard = {require_language(language, labels): passages for language, passages in rows.items()}
    if len(standard) < len(rows):
        raise ValueError(f"Of {', '.join(rows)}, several are the same language: {', '.join(standard)} remain.")
    return standard


def _assemble(
    rows: Mapping[str, Passages],
    name: str,
    labels: Labels,
    parallel: bool | None,
    sentences: int = 1,
    known: Identities | None = None,
) -> Corpus:
    """Checked and joined; a passage without a document id is a document of its own."""
    if not any(rows.values()):
        raise ValueError(f"The corpus {name!r} is empty.")
    for language, passages in rows.items():
        if not passages:
            raise ValueError(f"The corpus {name!r} has no documents in {language!r}.")
        _require_documents((text for _, text in passages), language)
        if (unnamed := [document for document, _ in passages].count(None)) not in (0, len(passages)):
            raise ValueError(
                f"{unnamed} of {len(passages)} passages of {language!r} in {name!r} name no document: all or none must."
            )
    joins = {language: rows_of_passages(passages, sentences) for language, passages in rows.items()}
    documents = {
        language: tuple(
            str(i) if (document := rows[language][first][0]) is None else document for i, (first, *_) in enumerate(each)
        )
        for language, each in joins.items()
    }
    same = len(set(documents.values())) == 1
    if parallel and not same:
        raise ValueError(f"The corpus {name!r} is said to be parallel, but its documents differ between languages.")
    if parallel is None:
        parallel = same and len(rows) > 1 and all(name is not None for part in rows.values() for name, _ in part)
    texts = {
        language: tuple(joined_text([rows[language][i][1] for i in part], language, labels) for part in each)
        for language, each in joins.items()
    }
    of_rows = known or {language: identities_of(passages) for language, passages in rows.items()}
    identities = {
        language: tuple(
            joined([of_rows[language][i] for i in part], text) if len(part) > 1 else of_rows[language][part[0]]
            for part, text in zip(each, texts[language], strict=True)
        )
        for language, each in joins.items()
    }
    return Corpus(texts, documents, parallel, name, labels, identities)
