"""Files in, rows out: a document id and a text for each passage, by language."""

import contextlib
import csv
import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import langcodes

from .languages import Labels, require_language

logger = logging.getLogger("mwork_lens")

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")
DOCUMENT_IDS = "DOCUMENT_IDS.tsv"

Rows = list[tuple[str | None, str]]
"""(document id, or None where the file names none; text) of each passage, in order."""


def language_of(path: Path, labels: Labels) -> str | None:
    """The language that a file's name ends in, or None; a script or region in the name is kept."""
    name = path.name.removesuffix(".gz")
    stem = name.removesuffix(Path(name).suffix)
    if labels == "free":
        return stem
    tag = stem.rsplit(".", 1)[-1]
    known = 2 <= len(tag.split("-")[0].split("_")[0]) <= 3 and langcodes.tag_is_valid(tag)
    return require_language(tag) if known else None


def read_folder(folder: Path, wanted: Sequence[str] | None, labels: Labels, text_field: str) -> dict[str, Rows]:
    """The files of a folder that are named after a wanted language; others are named in the log and skipped."""
    candidates = sorted(p for p in folder.iterdir() if Path(p.name.removesuffix(".gz")).suffix in SUFFIXES)
    found: dict[str, Path] = {}
    skipped = []
    for path in candidates:
        language = language_of(path, labels)
        if path.name == DOCUMENT_IDS:
            continue
        if language is None:
            skipped.append(path.name)
        elif language in found:
            raise ValueError(f"{found[language].name} and {path.name} in {folder} are both {language!r}.")
        else:
            found[language] = path
    if skipped:
        logger.warning("Skipped in %s, as their names end in no language: %s", folder, ", ".join(skipped))
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise ValueError(f"{folder} has no file named after a language ({kinds}; e.g. fr.txt or news.fr.jsonl).")
    if labels != "free":
        found = _without_lone_regions(found, wanted or [])
    chosen = {language: path for language, path in found.items() if wanted is None or language in wanted}
    ids = folder / DOCUMENT_IDS
    return read_files(chosen, ids if ids.is_file() else None, text_field)


def _without_lone_regions(found: dict[str, Path], wanted: Sequence[str]) -> dict[str, Path]:
    """``zh-CN`` counts as ``zh`` where no other file is Chinese, unless it is wanted by its full name."""
    bases = [langcodes.get(tag).language if langcodes.tag_is_valid(tag) else tag for tag in found]
    short = {}
    for (tag, path), base in zip(found.items(), bases, strict=True):
        regional = langcodes.tag_is_valid(tag) and langcodes.get(tag).territory and not langcodes.get(tag).script
        lone = regional and bases.count(base) == 1 and tag not in wanted
        short[base if base and lone else tag] = path
    return short


def read_files(paths: Mapping[str, Path], ids: Path | None, text_field: str) -> dict[str, Rows]:
    """One file a language; ``ids`` names the document of each of their lines.

    Raises:
        ValueError: for a malformed file, with its line.
    """
    rows: dict[str, Rows] = {}
    names = None if ids is None else [line for line in ids.read_text(encoding="utf-8").splitlines() if line]
    for language, path in paths.items():
        rows[language] = _read_rows(path, text_field)
        if names is not None:
            if len(names) != len(rows[language]):
                raise ValueError(f"{ids} names {len(names)} lines but {path.name} has {len(rows[language])}.")
            rows[language] = [(name, text) for name, (_, text) in zip(names, rows[language], strict=True)]
    return rows


def _read_rows(path: Path, text_field: str) -> Rows:
    """The passages of a file, as they are (``datasets`` reads "NA" as missing, "2019-01-01" as a time, "007" as 7)."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is of no kind that can be read ({', '.join(SUFFIXES)}; also with .gz).")
    opened = gzip.open if path.name.endswith(".gz") else open
    rows: Rows = []
    number = 0

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal number
        for line in file:
            number += 1
            yield line

    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as file:
            for row in _parsed(lines(file), suffix, text_field):
                if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
                    raise ValueError(f"no text in field {text_field!r}")
                document = row.get("document")
                rows.append((None if document is None else str(document), row[text_field]))
    except (ValueError, OSError, EOFError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, line {number}: {error}.") from error
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def _parsed(lines: Iterator[str], suffix: str, text_field: str) -> Iterator[Any]:
    """One dict a row, by column. Quotes mean nothing in a .tsv; in a .csv they may hold commas and line ends."""
    if suffix == ".txt":
        yield from ({text_field: line.removesuffix("\n")} for line in lines)
    elif suffix == ".jsonl":
        yield from (json.loads(line.rstrip()) for line in lines if line.strip())
    elif suffix == ".csv":
        yield from _table((row for row in csv.reader(lines, strict=True) if row), text_field)
    else:
        yield from _table((line.removesuffix("\n").split("\t") for line in lines if line.strip()), text_field)


def _table(rows: Iterator[list[str]], text_field: str) -> Iterator[dict[str, str]]:
    columns = next(rows, [])
    if columns and text_field not in columns:
        raise ValueError(f"no column {text_field!r} among {columns}")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} columns where the header has {len(columns)}")
        yield dict(zip(columns, row, strict=True))


def read_hub(source: str, wanted: Sequence[str] | None, text_field: str, split: str) -> dict[str, Rows]:
    """A data set of the Hugging Face hub with a configuration a language."""
    from datasets import get_dataset_config_names, load_dataset

    try:
        with _quiet_datasets():
            configurations = wanted or get_dataset_config_names(source)
            tables: dict[str, Any] = {c: load_dataset(source, c, split=split) for c in configurations}
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source!r} is no file or folder, and not to be had as a hub data set: {reason}") from error
    rows = {}
    for language, table in tables.items():
        if text_field not in table.column_names:
            raise ValueError(f"{source} ({language}) has no column {text_field!r} among {table.column_names}.")
        named = "document" in table.column_names
        documents = [str(d) for d in table["document"]] if named else [None] * len(table)
        rows[language] = list(zip(documents, table[text_field], strict=True))
    return rows


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
