"""Streams of passages from files, Parquet, hub data sets or the user's own dict; ``datasets`` reads the latter."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..store import user_path
from .choices import listed
from .documents import Document
from .files import SUFFIXES, Place, iterate_lines, iterate_rows, suffix_of
from .languages import Labels, require_language
from .readers import NO_DATA_SET, files_by_language, hub_errors, language_of, passage_of
from .streams import Rows, Stream, StreamedCorpus

PARQUET = ".parquet"
Texts = Iterable[Any] | Callable[[], Iterable[Any]]
"""Of one language: what can be read again from the beginning, or a function that returns its reading."""


def stream_corpus(
    source: Any,
    wanted: Sequence[str] | None,
    labels: Labels,
    *,
    sentences: int,
    text_field: str,
    split: str,
    **options: Any,
) -> StreamedCorpus:
    """What :func:`load_corpus` returns with ``streaming=True``; nothing is read but the names of files and columns."""
    rows, name = _rows(source, wanted, labels, text_field, split)
    if absent := [language for language in wanted or () if language not in rows]:
        raise ValueError(f"{name} has no {absent[0]!r}; it has {listed(sorted(rows), absent[0])}.")
    streams = {read: Stream.of(rows[read], read, labels, sentences) for read in wanted or rows}
    return StreamedCorpus(streams, name, labels, **options)


def _rows(
    source: Any, wanted: Sequence[str] | None, labels: Labels, text_field: str, split: str
) -> tuple[dict[str, Rows], str]:
    """By language, and the name of the source."""
    if isinstance(source, Mapping):
        return _of_dict(source, labels, text_field), "given"
    if not isinstance(source, str | Path):
        raise ValueError(
            f"A stream comes from a dict, or a file's, folder's or data set's name, not {type(source).__name__}; a "
            "dict needs a language for each data set, e.g. {'fr': dataset}."
        )
    if str(source) == "demo":
        return _of_folder(Path(str(files("mwork_lens") / "data")), wanted, labels, "text", "demo"), "demo"
    path = user_path(source)
    if path.is_dir():
        return _of_folder(path, wanted, labels, text_field, str(path)), path.name
    if path.is_file():
        return {language_of(path, labels) or "und": _of_file(path, text_field)}, path.name
    hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "/", "~"))
    if hub_id and suffix_of(path) not in (*SUFFIXES, PARQUET):
        return _of_hub(str(source), wanted, labels, text_field, split), str(source)
    raise FileNotFoundError(f"There is no corpus file or folder {str(source)!r}.")


def _of_dict(source: Mapping[Any, Texts], labels: Labels, text_field: str) -> dict[str, Rows]:
    rows: dict[str, Rows] = {}
    for language, texts in source.items():
        if not isinstance(language, str):
            raise ValueError(f"The languages of a corpus are strings, not {language!r}.")
        if (tag := require_language(language, labels)) in rows:
            raise ValueError(f"{language!r} is the same language as another one ({tag}): leave one out.")
        rows[tag] = partial(_of_texts, _again(texts, language), text_field, f"the texts of {language!r}")
    if not rows:
        raise ValueError("The corpus 'given' is empty.")
    return rows


def _again(texts: Texts, language: str) -> Callable[[], Iterable[Any]]:
    """A function that begins a reading; refused for what can be read only once."""
    if callable(texts):
        return texts
    if isinstance(texts, Iterator) or not isinstance(texts, Iterable) or isinstance(texts, str | bytes | Mapping):
        raise ValueError(
            f"The texts of {language!r} are read more than once: give a data set, a list, or a function that returns a "
            f"new iterator each time, not {type(texts).__name__}."
        )
    return lambda: texts


def _of_texts(begin: Callable[[], Iterable[Any]], text_field: str, what: str) -> Iterator[tuple[str | None, Document]]:
    """Of documents, or of rows with columns."""
    for number, row in enumerate(begin()):
        try:
            yield passage_of(text_field, row) if isinstance(row, Mapping) else (None, row)
        except ValueError as error:
            raise ValueError(f"Row {number} of {what} cannot be read: {error}.") from None


def _of_folder(
    folder: Path, wanted: Sequence[str] | None, labels: Labels, text_field: str, title: str
) -> dict[str, Rows]:
    paths, ids = files_by_language(folder, wanted, labels, title, further=(PARQUET,))
    return {language: _of_file(path, text_field, ids) for language, path in paths.items()}


def _of_file(path: Path, text_field: str, ids: Path | None = None) -> Rows:
    if suffix_of(path) == ".json":
        raise ValueError(f"{path} is one list, which is read at once: write it as .jsonl, one object per line.")
    if suffix_of(path) == PARQUET:
        return partial(_of_parquet, path, text_field)
    return partial(_of_lines, path, text_field, ids)


def _of_lines(path: Path, text_field: str, ids: Path | None) -> Iterator[tuple[str | None, Document]]:
    passages = iterate_rows(path, partial(passage_of, text_field), field=text_field)
    if ids is None:
        yield from passages
        return
    for name, passage in zip_longest(iterate_lines(ids), passages):
        if name is None or passage is None:
            raise ValueError(f"{ids} names {'fewer' if name is None else 'more'} lines than {path.name} has.")
        yield name or None, passage[1]


def _of_parquet(path: Path, text_field: str) -> Iterator[tuple[str | None, Document]]:
    from datasets import load_dataset

    place = Place(path, unit="row")
    with place.named(), hub_errors("it is not Parquet, or damaged"):
        table = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    yield from _of_table(table, text_field, str(path))


def _of_hub(source: str, wanted: Sequence[str] | None, labels: Labels, text_field: str, split: str) -> dict[str, Rows]:
    from datasets import get_dataset_config_names, load_dataset

    with hub_errors(NO_DATA_SET.format(source)):
        names = wanted or get_dataset_config_names(source)
        tables = {name: load_dataset(source, name, split=split, streaming=True) for name in names}
    return {
        require_language(name, labels): partial(_of_table, table, text_field, f"{source} ({name})")
        for name, table in tables.items()
    }


def _of_table(table: Iterable[Any], text_field: str, what: str) -> Iterator[tuple[str | None, Document]]:
    """Whatever reading raises becomes a ValueError with the table's name."""
    rows = _of_texts(lambda: table, text_field, what)
    while True:
        try:
            passage = next(rows, None)
        except ValueError:
            raise
        except Exception as error:  # the network, or a damaged file
            raise ValueError(f"{what} cannot be read further: {str(error).strip() or type(error).__name__}") from error
        if passage is None:
            return
        yield passage
