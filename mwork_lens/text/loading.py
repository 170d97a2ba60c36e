"""Corpora from the demo text, files, a hub data set or the user's own dict."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, overload

import langcodes

from ..store import user_path
from .arguments import check_arguments
from .choices import listed
from .corpora import Corpus
from .documents import Document, as_documents, as_names, fault_of
from .files import SUFFIXES, suffix_of
from .languages import Labels, require_language
from .problems import problems, repeats
from .readers import Passages, joined_text, language_of, read_files, read_folder, read_hub, rows_of_passages
from .seen import Identities, identities_of, joined
from .streaming import Texts, stream_corpus
from .streams import NEEDS_ALL, WINDOW, StreamedCorpus


@overload
def load_corpus(source: Any = "demo", *, streaming: Literal[True], **options: Any) -> StreamedCorpus: ...
@overload
def load_corpus(source: Any = "demo", *, streaming: Literal[False] = False, **options: Any) -> Corpus: ...
def load_corpus(  # pyright: ignore[reportInconsistentOverload]: further options are those of both
    source: str | Path | Mapping[str, Sequence[Document]] | Mapping[str, Texts] = "demo",
    *,
    languages: Sequence[str] | None = None,
    sentences_per_passage: int = 1,
    limit: int | None = None,
    parallel: bool | None = None,
    labels: Labels = "bcp47",
    text_field: str = "text",
    split: str = "train",
    streaming: bool = False,
    window: int = WINDOW,
    max_tokens_per_language: int | None = None,
) -> Corpus | StreamedCorpus:
    """Load text by language, or with ``streaming`` begin to read it.

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
        streaming: whether the text may be larger than memory: the :class:`StreamedCorpus` is read a window at a time,
            each time anew, by ``detect`` and ``collect_means``. A dict may then hold data sets of ``datasets``
            (``load_dataset(..., streaming=True)``), iterables or functions that return an iterator; files may also be
            ``.parquet``, but no ``.json``. The passages of a document stand together.
        window: passages of all languages together that are read and planned at a time; results depend on it in their
            last bits.
        max_tokens_per_language: a streamed language ends with the passage that reaches so many ordinary tokens.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for an unknown language, an empty corpus, an empty document, or a malformed file (with line).

    Example:
        >>> corpus = mw.load_corpus("demo", languages=["en", "fr"], limit=6)
        >>> {language: len(texts) for language, texts in corpus.items()}
        {'en': 6, 'fr': 6}
        >>> train, held_out = corpus.split(held_out=0.25)
        >>> stream = mw.load_corpus("demo", languages=["fr"], streaming=True, max_tokens_per_language=10_000_000)
        >>> next(iter(stream["fr"])) == mw.load_corpus("demo", languages=["fr"])["fr"][0]
        True
    """
    check_arguments(load_corpus, locals())
    _require_readable(source, streaming, limit, parallel, window, max_tokens_per_language)
    if isinstance(source, Corpus):
        labels = source.labels if labels == "bcp47" else labels
        parallel = source.parallel if parallel is None else parallel
    wanted = None if languages is None else [require_language(x, labels) for x in as_names(languages, "languages")]
    if wanted is not None and not wanted:
        raise ValueError("languages is empty: name at least one, e.g. languages=['en', 'fr'].")
    if sentences_per_passage < 1 or (limit is not None and limit < 1):
        raise ValueError(f"{sentences_per_passage=} and {limit=} must be at least 1.")
    if streaming:
        reading = {"sentences": sentences_per_passage, "text_field": text_field, "split": split}
        dealing = {"window": window, "max_tokens_per_language": max_tokens_per_language}
        return stream_corpus(source, wanted, labels, **reading, **dealing)
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


def _require_readable(
    source: Any,
    streaming: bool,
    limit: int | None,
    parallel: bool | None,
    window: int,
    max_tokens_per_language: int | None,
) -> None:
    """Refuse options that a stream or a whole corpus does not have."""
    if isinstance(source, StreamedCorpus):
        raise ValueError(f"{source!r} is loaded already; what a Corpus is made of {NEEDS_ALL}")
    tokens = max_tokens_per_language
    if window < 1 or (tokens is not None and tokens < 1):
        raise ValueError(f"{window=} and max_tokens_per_language={tokens} must be at least 1.")
    if tokens is not None and not streaming:
        raise ValueError(f"max_tokens_per_language={tokens} ends a stream: add streaming=True.")
    if streaming and (limit is not None or parallel):
        option = f"limit={limit}" if limit is not None else "parallel=True"
        raise ValueError(f"{option} of a stream {NEEDS_ALL}")


def as_corpus(corpus: Mapping[str, Any]) -> Corpus:
    """A dict of lists as a Corpus, under standard tags (``he`` for ``iw``) where all its keys are; a Corpus as it is.

    Raises:
        ValueError: for what is not a dict of lists of documents, or has the same language twice; for a stream.
    """
    if isinstance(corpus, Corpus):
        return corpus
    if isinstance(corpus, StreamedCorpus):
        raise ValueError(f"Only detect and collect_means read a stream; what is called here {NEEDS_ALL}")
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
    tags = {language: require_language(language, labels) for language in rows}
    for tag, number in Counter(tags.values()).items():
        if number > 1:
            same = " and ".join(repr(language) for language in tags if tags[language] == tag)
            raise ValueError(f"{same} are the same language ({tag}): put their texts together, or leave one out.")
    return {tags[language]: passages for language, passages in rows.items()}


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
