"""Passages by language, out of files that are named after languages and out of hub data sets."""

import contextlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import langcodes
import regex
import torch
from torch import Tensor

from .choices import listed
from .documents import Document, fault_of
from .files import SUFFIXES, files_of, read_lines, read_rows, stem_of, suffix_of
from .languages import Labels, expected_scripts, require_language

DOCUMENT_IDS = "DOCUMENT_IDS.tsv"
NO_DATA_SET = "'{}' is neither a local path nor a hub data set that loads"

Passages = Sequence[tuple[str | None, Document]]
"""(document id, or None where there is none; text) of each passage, in order."""

PARTS = "dev devtest test train tst trn val valid validation"
"""Parts of a data set; in a file's name they may follow the language: ``flores.eng_Latn.dev.txt`` is English."""
WORDS = (
    "all alt and app aux bad bak big bin cfg csv cut doc dup end err ids inp job key lab lex lib log low map max mid "
    "mix net new nil non not old one opt org pid pkg pos pre raw row seg set src sub sum sys tab tag tgt the tmp top "
    "tsv two txt uni usr var yes"
)
"""Codes of small languages (``log`` is Logo) that in the name of a file are hardly ever meant, unless asked for."""


def language_of(
    path: Path, labels: Labels = "bcp47", among: Sequence[str] | None = None, wanted: Sequence[str] = ()
) -> str | None:
    """The language that a file's name ends in, or the last part of it that is ``among`` languages; or None."""
    stem = stem_of(path)
    if among is not None:
        return next((part for part in reversed(regex.split("[._]", stem)) if part in among), None)
    if labels == "free":
        return stem
    parts = stem.split(".")
    while len(parts) > 1 and parts[-1].lower() in PARTS.split() and parts[-1] not in wanted:
        parts.pop()
    tag = parts[-1]
    valid = 2 <= len(tag.split("-")[0].split("_")[0]) <= 3 and langcodes.tag_is_valid(tag)
    if not valid or (tag.lower() in f"{PARTS} {WORDS}".split() and tag not in wanted):
        return None
    return require_language(tag)


def read_folder(
    folder: Path, wanted: Sequence[str] | None, labels: Labels, text_field: str, title: str
) -> Mapping[str, Passages]:
    """The files of a folder that are named after a wanted language; others are named in the log and skipped."""
    return read_files(*files_by_language(folder, wanted, labels, title), text_field)


def files_by_language(
    folder: Path, wanted: Sequence[str] | None, labels: Labels, title: str, further: Sequence[str] = ()
) -> tuple[dict[str, Path], Path | None]:
    """Those files, of these further types too, and the one that names documents, where there is one."""
    by_language: dict[str, Path] = {}
    paths, others = files_of(folder, further)
    skipped = []
    for path in (path for path in paths if path.name != DOCUMENT_IDS):
        language = language_of(path, labels, wanted=wanted or ())
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
    unread = [path.name for path in others if labels != "free" and (language_of(path) or _packed_language(path))]
    if unread:
        named = f"{', '.join(unread)} in {folder} {'is' if len(unread) == 1 else 'are'} named after a language"
        warnings.warn(f"{named} but not read: only files {', '.join(SUFFIXES)} are, also with .gz.", stacklevel=5)
    if not by_language:
        raise ValueError(f"{folder} has no file named after a language ({', '.join(SUFFIXES)}; e.g. fr.txt).")
    if labels != "free":
        by_language = _without_lone_regions(by_language, wanted or [])
    if absent := [language for language in wanted or () if language not in by_language]:
        raise ValueError(f"{title} has no {absent[0]!r}; it has {listed(sorted(by_language), absent[0])}.")
    selected = {language: path for language, path in by_language.items() if wanted is None or language in wanted}
    ids = folder / DOCUMENT_IDS
    return selected, ids if ids.is_file() else None


def _packed_language(path: Path) -> str | None:
    """That of a file of a type that is read within another one: ``fr.txt.bz2``."""
    return language_of(Path(path.stem)) if suffix_of(Path(path.stem)) in SUFFIXES else None


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
    parse = partial(passage_of, text_field)
    rows = {language: read_rows(path, parse, field=text_field) for language, path in paths.items()}
    if ids is None:
        return rows
    names = read_lines(ids)
    for language, path in paths.items():
        if len(names) != len(rows[language]):
            raise ValueError(f"{ids} names {len(names)} lines but {path.name} has {len(rows[language])}.")
        rows[language] = [(name or None, text) for name, (_, text) in zip(names, rows[language], strict=True)]
    return rows


def passage_of(text_field: str, row: Any) -> tuple[str | None, str]:
    """The document id and the text of a row."""
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise ValueError(f"no text in field {text_field!r}")
    if fault := fault_of(row[text_field]):
        raise ValueError(f"its text is {fault}")
    document = row.get("document")
    return None if document in (None, "") else str(document), row[text_field]


def read_hub(
    source: str, wanted: Sequence[str] | None, labels: Labels, text_field: str, split: str
) -> Mapping[str, Passages]:
    """A data set of the Hugging Face hub with one configuration per language."""
    from datasets import get_dataset_config_names, load_dataset

    with hub_errors(NO_DATA_SET.format(source)):
        configurations = wanted or get_dataset_config_names(source)
        tables: dict[str, Any] = {c: load_dataset(source, c, split=split) for c in configurations}
    rows: dict[str, Passages] = {}
    for language, table in tables.items():
        if text_field not in table.column_names:
            raise ValueError(f"{source} ({language}) has no column {text_field!r} among {table.column_names}.")
        documents = table["document"] if "document" in table.column_names else [None] * len(table)
        names = (None if document is None else str(document) for document in documents)
        rows[require_language(language, labels)] = list(zip(names, table[text_field], strict=True))
    return rows


def rows_of_passages(rows: Passages, sentences: int) -> list[list[int]]:
    """The rows of each passage: neighbours of one document; rows that name no document are one running text."""
    if sentences == 1:
        return [[i] for i in range(len(rows))]
    by_document: dict[str | None, list[int]] = defaultdict(list)
    for i, (document, _) in enumerate(rows):
        by_document[document].append(i)
    return [part[i : i + sentences] for part in by_document.values() for i in range(0, len(part), sentences)]


def joined_text(texts: Sequence[Any], language: str, labels: Labels) -> Document:
    """One passage of several rows, with spaces between them where the language has some."""
    if len(texts) == 1:
        return texts[0]
    unspaced = labels != "free" and expected_scripts(language) <= {"Hani", "Hira", "Kana"}
    return torch.cat(tuple(texts)) if isinstance(texts[0], Tensor) else ("" if unspaced else " ").join(texts)


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
