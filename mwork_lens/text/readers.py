"""Rows out of files and hub data sets: the one reader of text, JSON and tables, with errors that name the line."""

import contextlib
import csv
import gzip
import itertools
import json
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import langcodes
import regex
import torch
from torch import Tensor

from .languages import Labels, expected_scripts, require_language

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")
DOCUMENT_IDS = "DOCUMENT_IDS.tsv"

Document = str | Tensor
"""One text; or its token ids as a 1-D tensor, to which nothing is prepended."""
Passages = Sequence[tuple[str | None, Document]]
"""(document id, or None where there is none; text) of each passage, in order."""
Parsed = TypeVar("Parsed")


def suffix_of(path: Path) -> str:
    """The type of a file, compressed or not: ``.jsonl`` for ``news.fr.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix


def language_of(path: Path, labels: Labels = "bcp47", among: Sequence[str] | None = None) -> str | None:
    """The language that a file's name ends in, or the last part of it that is ``among`` languages; or None."""
    stem = path.name.removesuffix(".gz").removesuffix(suffix_of(path))
    if among is not None:
        return next((part for part in reversed(regex.split("[._]", stem)) if part in among), None)
    if labels == "free":
        return stem
    tag = stem.rsplit(".", 1)[-1]
    valid = 2 <= len(tag.split("-")[0].split("_")[0]) <= 3 and langcodes.tag_is_valid(tag)
    return require_language(tag) if valid else None


def read_rows(
    path: Path, parse: Callable[[Any], Parsed], *, field: str | None = None, columns: Sequence[str] = ()
) -> list[Parsed]:
    """What ``parse`` makes of each row of a file: of a dict by column, with texts as they are in the file.

    Rows are the lines of a ``.txt`` or ``.jsonl`` (there blank ones are skipped), those of a ``.csv`` or ``.tsv`` after
    its header (or of a ``.tsv`` with these ``columns``), the items of a ``.json`` list; all also with ``.gz``. The
    column of a ``.txt`` is ``field``, and a table must have it. (``datasets`` would read "NA" as NaN, "007" as 7.)

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unsupported, empty or malformed file, with its line.
    """
    suffix, opened = suffix_of(path), gzip.open if path.name.endswith(".gz") else open
    if suffix not in (*SUFFIXES, ".json"):
        raise ValueError(f"{path}: unsupported file type ({', '.join(SUFFIXES)} are read, also with .gz).")
    # U+2028 and its like end no line anywhere, a lone \r none of a .jsonl
    newline, lines_read = {".csv": "", ".jsonl": "\n"}.get(suffix), itertools.count()
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            lines = (line for line, _ in zip(file, lines_read, strict=False))  # each takes one of the count
            rows = [parse(row) for row in _parsed(lines, suffix, field, columns)]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {str(path)!r}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, csv.Error, zlib.error) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} cannot be read, line {next(lines_read)}: {what}.") from error
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def _parsed(lines: Iterator[str], suffix: str, field: str | None, columns: Sequence[str]) -> Iterator[Any]:
    if suffix == ".txt":
        yield from ({field or "text": line.removesuffix("\n")} for line in lines)
    elif suffix == ".jsonl":
        yield from (json.loads(line.rstrip()) for line in lines if line.strip())
    elif suffix == ".csv":
        yield from _table((row for row in csv.reader(lines, strict=True) if row), field)
    elif suffix == ".json":
        content = json.loads("".join(lines))
        yield from content if isinstance(content, list) else [content]
    else:
        cells = (line.removesuffix("\n").split("\t") for line in lines if line.strip())
        yield from (dict(zip(columns, row, strict=False)) for row in cells) if columns else _table(cells, field)


def _table(rows: Iterator[list[str]], field: str | None) -> Iterator[dict[str, str]]:
    columns = next(rows, [])
    if columns and field is not None and field not in columns:
        raise ValueError(f"no column {field!r} among {columns}")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} columns where the header has {len(columns)}")
        yield dict(zip(columns, row, strict=True))


def read_folder(folder: Path, wanted: Sequence[str] | None, labels: Labels, text_field: str) -> Mapping[str, Passages]:
    """The files of a folder that are named after a wanted language; others are named in the log and skipped."""
    by_language: dict[str, Path] = {}
    skipped = []
    for path in sorted(p for p in folder.iterdir() if suffix_of(p) in SUFFIXES and p.name != DOCUMENT_IDS):
        language = language_of(path, labels)
        if language is None:
            skipped.append(path.name)
        elif language in by_language:
            raise ValueError(f"{by_language[language].name} and {path.name} in {folder} are both {language!r}.")
        else:
            by_language[language] = path
    if skipped:
        logging.getLogger("mwork_lens").warning(
            "Skipped in %s, as their names end in no language: %s", folder, ", ".join(skipped)
        )
    if not by_language:
        raise ValueError(f"{folder} has no file named after a language ({', '.join(SUFFIXES)}; e.g. fr.txt).")
    if labels != "free":
        by_language = _without_lone_regions(by_language, wanted or [])
    selected = {language: path for language, path in by_language.items() if wanted is None or language in wanted}
    ids = folder / DOCUMENT_IDS
    return read_files(selected, ids if ids.is_file() else None, text_field)


def _without_lone_regions(by_language: dict[str, Path], wanted: Sequence[str]) -> dict[str, Path]:
    """``zh-CN`` counts as ``zh`` where no other file is Chinese, unless it is wanted by its full name."""
    bases = Counter(langcodes.get(tag).language for tag in by_language)
    short = {}
    for tag, path in by_language.items():
        parts = langcodes.get(tag)
        lone = parts.territory and not parts.script and bases[parts.language] == 1 and tag not in wanted
        short[(lone and parts.language) or tag] = path
    return short


def read_files(paths: Mapping[str, Path], ids: Path | None, text_field: str) -> Mapping[str, Passages]:
    """One file per language; the file ``ids`` names the document of each of their lines."""
    parse = partial(_passage, text_field)
    rows = {language: read_rows(path, parse, field=text_field) for language, path in paths.items()}
    if ids is None:
        return rows
    names = [line for line in ids.read_text(encoding="utf-8").splitlines() if line]
    for language, path in paths.items():
        if len(names) != len(rows[language]):
            raise ValueError(f"{ids} names {len(names)} lines but {path.name} has {len(rows[language])}.")
        rows[language] = [(name, text) for name, (_, text) in zip(names, rows[language], strict=True)]
    return rows


def _passage(text_field: str, row: Any) -> tuple[str | None, str]:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise ValueError(f"no text in field {text_field!r}")
    document = row.get("document")
    return None if document is None else str(document), row[text_field]


def read_hub(source: str, wanted: Sequence[str] | None, text_field: str, split: str) -> Mapping[str, Passages]:
    """A data set of the Hugging Face hub with one configuration per language."""
    from datasets import get_dataset_config_names, load_dataset

    with hub_errors(f"{source!r} is neither a local path nor a hub data set that loads"):
        configurations = wanted or get_dataset_config_names(source)
        tables: dict[str, Any] = {c: load_dataset(source, c, split=split) for c in configurations}
    rows = {}
    for language, table in tables.items():
        if text_field not in table.column_names:
            raise ValueError(f"{source} ({language}) has no column {text_field!r} among {table.column_names}.")
        documents = table["document"] if "document" in table.column_names else [None] * len(table)
        names = (None if document is None else str(document) for document in documents)
        rows[language] = list(zip(names, table[text_field], strict=True))
    return rows


def join_rows(rows: Passages, sentences: int, language: str, labels: Labels) -> Passages:
    """Join neighbours of one document; rows that name no document are one running text."""
    if sentences == 1:
        return rows
    unspaced = labels != "free" and expected_scripts(language) <= {"Hani", "Hira", "Kana"}
    by_document: dict[str | None, list[Any]] = defaultdict(list)
    for document, text in rows:
        by_document[document].append(text)
    return [
        (document, torch.cat(part) if isinstance(part[0], Tensor) else ("" if unspaced else " ").join(part))
        for document, parts in by_document.items()
        for part in (parts[start : start + sentences] for start in range(0, len(parts), sentences))
    ]


@contextlib.contextmanager
def hub_errors(problem: str) -> Iterator[None]:
    """Without bars of ``datasets``; whatever the hub's client raises becomes a ValueError, with its first line."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{problem}: {reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
