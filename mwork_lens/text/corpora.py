"""Text by language, with document ids: the demo text, files, a hub data set or the user's own dict."""

import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import langcodes
import pandas as pd
import torch
from torch import Tensor

from .languages import Labels, expected_scripts, main_script, require_language
from .readers import SUFFIXES, language_of, read_files, read_folder, read_hub

Document = str | Tensor
"""One text; or its token ids as a 1-D tensor, used as given (nothing is prepended)."""

FEW_PASSAGES = 20


@dataclass(frozen=True)
class Corpus(Mapping[str, list[Document]]):
    """Passages by language. A mapping, language -> list of texts, that knows where each passage comes from."""

    texts: Mapping[str, tuple[Document, ...]]
    """Passages by language."""
    documents: Mapping[str, tuple[str, ...]]
    """The document that each passage was taken from; a split never divides a document."""
    parallel: bool
    """Whether passage i is the same content in every language."""
    source: str = "given"
    labels: Labels = "bcp47"
    ids: Mapping[str, tuple[str, ...]] = field(init=False)
    """A name for each passage, e.g. ``fr/baking-bread/0``, for messages and tables."""

    def __post_init__(self) -> None:
        ids = {
            language: tuple(f"{language}/{name}/{turn}" for name, turn in zip(names, _turns(names), strict=True))
            for language, names in self.documents.items()
        }
        object.__setattr__(self, "ids", MappingProxyType(ids))

    def __getitem__(self, language: str) -> list[Document]:
        try:
            return list(self.texts[language])
        except KeyError:
            raise KeyError(f"The corpus has no {language!r}; it has {', '.join(self.texts)}.") from None

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
        return {"source": self.source, "hash": self.hash, "parallel": self.parallel, "passages": passages}

    def select(self, rows: Mapping[str, Sequence[int]]) -> "Corpus":
        """The passages with these positions, by language."""
        texts = {language: tuple(self.texts[language][i] for i in chosen) for language, chosen in rows.items()}
        documents = {language: tuple(self.documents[language][i] for i in c) for language, c in rows.items()}
        return Corpus(texts, documents, self.parallel, self.source, self.labels)

    def limit(self, passages: int) -> "Corpus":
        """At most this many passages a language, taken from as many documents as possible (in order)."""
        return self.select({language: _spread(names, passages) for language, names in self.documents.items()})

    def split(self, held_out: float = 0.25, *, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Split into a part to work with and a held-out part, by whole documents.

        Where the corpus is parallel the same documents are held out in every language, so that no translation
        of a held-out passage is ever seen.

        Args:
            held_out: share of the passages to hold out, above 0 and below 1.
            seed: another one gives another split.

        Raises:
            ValueError: for a share outside (0, 1), or a language with fewer than two documents.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out={held_out} is no share between 0 and 1.")
        kept, out = {}, {}
        for language, names in self.documents.items():
            chosen = _documents_to_hold_out(names, held_out, seed, language)
            kept[language] = [i for i, name in enumerate(names) if name not in chosen]
            out[language] = [i for i, name in enumerate(names) if name in chosen]
        return self.select(kept), self.select(out)

    def folds(self, number: int = 2, *, seed: int = 0) -> list[tuple["Corpus", "Corpus"]]:
        """Divide the documents into folds; for each, the rest to work with and the fold itself, held out.

        Where the corpus is parallel a document is in the same fold in every language.

        Raises:
            ValueError: for fewer than two folds, or a language with fewer documents than folds.
        """
        if number < 2:
            raise ValueError(f"{number} folds: there must be at least two.")
        folds = {language: _folds(names, number, seed, language) for language, names in self.documents.items()}

        def part(fold: int, inside: bool) -> "Corpus":
            rows = {lang: [i for i, f in enumerate(found) if (f == fold) == inside] for lang, found in folds.items()}
            return self.select(rows)

        return [(part(fold, False), part(fold, True)) for fold in range(number)]

    def to_frame(self) -> pd.DataFrame:
        """One row a passage: language, document, passage id, characters (token ids where it is a tensor)."""
        return pd.DataFrame(
            [
                {"language": language, "document": document, "passage": name, "length": len(text)}
                for language, texts in self.texts.items()
                for document, name, text in zip(self.documents[language], self.ids[language], texts, strict=True)
            ]
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{language} {len(texts)}" for language, texts in self.texts.items())
        return f"Corpus({self.source}: {counts}; {'parallel' if self.parallel else 'not parallel'})"


def _turns(names: Sequence[str]) -> list[int]:
    """For each passage, how many passages of its document came before it."""
    seen: Counter[str] = Counter()
    turns = []
    for name in names:
        turns.append(seen[name])
        seen[name] += 1
    return turns


def _spread(names: Sequence[str], passages: int) -> list[int]:
    """Positions of ``passages`` passages, round-robin over documents, in their original order."""
    order = sorted((turn, i) for i, turn in enumerate(_turns(names)))
    return sorted(i for _, i in order[:passages])


def _documents_to_hold_out(names: Sequence[str], held_out: float, seed: int, language: str) -> set[str]:
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 2:
        raise ValueError(f"{language!r} has {len(distinct)} document: at least two are needed to hold one out.")
    random.Random(seed).shuffle(distinct)
    chosen: set[str] = set()
    held = 0
    for name in distinct[:-1]:
        if chosen and held + names.count(name) / 2 > held_out * len(names):
            break
        chosen.add(name)
        held += names.count(name)
    return chosen


def _folds(names: Sequence[str], number: int, seed: int, language: str) -> list[int]:
    """The fold of each passage: whole documents in random order, each into the fold with the fewest passages."""
    counts = Counter(names)
    if len(counts) < number:
        raise ValueError(f"{language!r} has {len(counts)} documents, too few for {number} folds.")
    distinct = list(dict.fromkeys(names))
    random.Random(seed).shuffle(distinct)
    sizes, fold_of = [0] * number, {}
    for name in distinct:
        fold_of[name] = sizes.index(min(sizes))
        sizes[fold_of[name]] += counts[name]
    return [fold_of[name] for name in names]


# --- loading --------------------------------------------------------------------------------------


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
            a folder with a file a language; one such file; or a hub data set id with a configuration a language.
            In a folder the last part of a file's name before its suffix is the language: ``fr.txt``,
            ``news.fr.jsonl.gz`` and ``newstest2019-ref.fra.txt`` are French (ISO 639-3 codes count, and a region
            may be left out where only one is there). ``.txt`` files have a passage a line, the others a column
            ``text`` and, optionally, ``document``. A file DOCUMENT_IDS.tsv beside ``.txt`` files names the
            document of each line, the same in every language: the corpus is parallel then.
        languages: BCP 47 tags to keep, in this order; all that are there if None.
        sentences_per_passage: neighbouring lines or rows joined into one passage, never across documents (where none
            are named, the file is one running text and each passage its own document).
        limit: at most this many passages a language, spread over the documents.
        parallel: whether passage i is the same content in every language; found out from document ids if None.
        labels: ``"free"`` for groups that are no languages (dialects, domains, scripts).
        text_field: the column with the text.
        split: of a hub data set.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for an unknown language, an empty corpus, an empty document, or a malformed file (with line).
    """
    wanted = None if languages is None else [_label(language, labels) for language in languages]
    if wanted is not None and not wanted:
        raise ValueError("languages is empty: name at least one, e.g. languages=['en', 'fr'].")
    if sentences_per_passage < 1 or (limit is not None and limit < 1):
        raise ValueError(f"{sentences_per_passage=} and {limit=} must be at least 1.")
    rows, name = _read(source, wanted, labels, text_field, split)
    missing = [language for language in wanted or () if language not in rows]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}; it has {', '.join(sorted(rows)) or 'no language'}.")
    if parallel is None and isinstance(source, Corpus):
        parallel = source.parallel
    chosen = {language: rows[language] for language in wanted or rows}
    _require_passages(chosen, name)
    joined = {
        language: _join(rows, sentences_per_passage, _between(language, labels)) for language, rows in chosen.items()
    }
    corpus = _assemble(joined, name, labels, parallel)
    corpus = corpus if limit is None else corpus.limit(limit)
    _warn(corpus)
    return corpus


def as_corpus(corpus: Mapping[str, Sequence[Document]]) -> Corpus:
    """A dict of lists as a Corpus; a Corpus as it is."""
    if isinstance(corpus, Corpus):
        return corpus
    valid = all(langcodes.tag_is_valid(label) for label in corpus if label)
    rows = _from_dict(corpus)
    _require_passages(rows, "given")
    return _assemble(rows, "given", "bcp47" if valid else "free", None)


Passages = Sequence[tuple[str | None, Document]]
"""(document id, or None where there is none; text) of each passage, in order."""


def _label(language: str, labels: Labels) -> str:
    return language if labels == "free" else require_language(language)


def _read(
    source: Any, wanted: list[str] | None, labels: Labels, text_field: str, split: str
) -> tuple[Mapping[str, Passages], str]:
    if isinstance(source, Corpus):
        return {
            lang: list(zip(source.documents[lang], source.texts[lang], strict=True)) for lang in source
        }, source.source
    if isinstance(source, Mapping):
        given = {_label(language, labels): rows for language, rows in _from_dict(source).items()}
        if len(given) < len(source):
            raise ValueError(f"Of {', '.join(source)}, several are the same language: {', '.join(given)} remain.")
        return given, "given"
    if str(source) == "demo":
        return read_folder(Path(str(files("mwork_lens") / "data")), wanted, labels, "text"), "demo"
    path = Path(source).expanduser()
    if path.is_dir():
        return read_folder(path, wanted, labels, text_field), path.name
    if path.is_file():
        return read_files({language_of(path, labels) or "und": path}, None, text_field), path.name
    hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "/", "~"))
    if hub_id and path.suffix not in (*SUFFIXES, ".gz"):
        return read_hub(str(source), wanted, text_field, split), str(source)
    raise FileNotFoundError(f"There is no corpus file or folder {str(source)!r}.")


def _from_dict(corpus: Mapping[str, Sequence[Document]]) -> dict[str, Passages]:
    for language, texts in corpus.items():
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ValueError(f"The texts of {language!r} must be a list of documents, not {type(texts).__name__}.")
    return {language: [(None, text) for text in texts] for language, texts in corpus.items()}


def _require_passages(rows: Mapping[str, Passages], name: str) -> None:
    if not any(rows.values()):
        raise ValueError(f"The corpus {name!r} is empty.")
    for language, passages in rows.items():
        if not passages:
            raise ValueError(f"The corpus {name!r} has no documents in {language!r}.")
        for i, (_, text) in enumerate(passages):
            _require_document(text, language, i)


def _assemble(rows: Mapping[str, Passages], name: str, labels: Labels, parallel: bool | None) -> Corpus:
    """A passage without a document id is a document of its own."""
    named = all(document is not None for passages in rows.values() for document, _ in passages)
    documents = {
        language: tuple(str(i) if document is None else document for i, (document, _) in enumerate(passages))
        for language, passages in rows.items()
    }
    same = len(set(documents.values())) == 1
    if parallel and not same:
        raise ValueError(f"The corpus {name!r} is said to be parallel, but its documents differ between languages.")
    found = same and named and len(rows) > 1
    texts = {language: tuple(text for _, text in passages) for language, passages in rows.items()}
    return Corpus(texts, documents, found if parallel is None else parallel, name, labels)


def _require_document(text: Any, language: str, i: int) -> None:
    if isinstance(text, Tensor):
        if text.ndim != 1 or text.dtype not in (torch.int64, torch.int32) or not len(text):
            raise ValueError(
                f"Document {i} of {language!r} is a tensor of shape {tuple(text.shape)} and {text.dtype}; "
                "token ids must be a non-empty 1-D integer tensor."
            )
    elif not isinstance(text, str):
        raise ValueError(f"Document {i} of {language!r} is a {type(text).__name__}, not a string or a tensor of ids.")
    elif not text.strip():
        raise ValueError(f"Document {i} of {language!r} is empty.")


def _between(language: str, labels: Labels) -> str:
    """What stands between two sentences: nothing in Chinese and Japanese, else a space."""
    scripts = frozenset() if labels == "free" else expected_scripts(language)
    return "" if scripts and scripts <= {"Hani", "Hira", "Kana"} else " "


def _join(rows: Passages, sentences: int, between: str) -> Passages:
    """Join neighbours of one document; rows that name no document are one running text."""
    if sentences == 1:
        return rows
    by_document: dict[str | None, list[Document]] = {}
    for document, text in rows:
        by_document.setdefault(document, []).append(text)
    return [
        (document, _joined(parts[start : start + sentences], between))
        for document, parts in by_document.items()
        for start in range(0, len(parts), sentences)
    ]


def _joined(parts: Sequence[Document], between: str) -> Document:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return torch.cat(tensors)
    return between.join(part for part in parts if isinstance(part, str))


def _warn(corpus: Corpus) -> None:
    counts = {language: len(texts) for language, texts in corpus.texts.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{language} {n}" for language, n in counts.items())
        warnings.warn(f"The languages have unequal numbers of passages: {listed}.", stacklevel=3)
    fewest = min(counts, key=lambda language: counts[language])
    if counts[fewest] < FEW_PASSAGES:
        warnings.warn(
            f"{fewest!r} has only {counts[fewest]} passages; sets found on fewer than {FEW_PASSAGES} are unstable.",
            stacklevel=3,
        )
    if corpus.labels == "free":
        return
    for language, texts in corpus.texts.items():
        sample = " ".join(text for text in texts[:200] if isinstance(text, str))
        script = main_script(sample)
        if script and language != "und" and script not in expected_scripts(language):
            usual = "/".join(sorted(expected_scripts(language)))
            warnings.warn(f"The text of {language!r} is mostly in {script}, not in {usual}.", stacklevel=3)
