"""Questions by language, from local files or the hub."""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from ..text import require_language
from .task import Question, Row, Task, spread

SUFFIXES = (".json", ".jsonl", ".tsv")


def load_questions(
    task: Task,
    source: str | Path | None = None,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    without: Sequence[str] = (),
) -> dict[str, list[Question]]:
    """Questions of a task by language.

    Args:
        task: which.
        source: a folder with a file a language (``xquad.zh.json.gz``, ``mgsm_zh.tsv``, ``x_csqa.en.dev.jsonl``: one
            part of the name is the language), one such file, or None for the hub.
        languages: which; all that a folder has, or those of the task on the hub, by default.
        limit: at most this many questions a language, spread over the paragraphs that they are asked about.
        without: ids of questions to leave out in every language, e.g. those that chose a setting.

    Raises:
        FileNotFoundError: for a folder or file that is not there.
        ValueError: for a language that the data lacks, a malformed file or row (named), or nothing left.
    """
    wanted = None if languages is None else [require_language(language) for language in languages]
    rows = _hub_rows(task, wanted) if source is None else _local_rows(task, Path(source).expanduser(), wanted)
    known = set(without)
    found = {}
    for language, (name, given) in rows.items():
        asked = [_question(task, row, language, number, name) for number, row in enumerate(given)]
        if len({question.id for question in asked}) < len(asked):
            raise ValueError(f"{name} has several questions with one id.")
        found[language] = spread([question for question in asked if question.id not in known], limit)
        if not found[language]:
            raise ValueError(f"No question of {name} is left: all {len(asked)} are to be left out.")
    return found


def _question(task: Task, row: Row, language: str, number: int, name: str) -> Question:
    try:
        question = task.question(row, language, number)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        there = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        what = f"has no field {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise ValueError(f"{name}: question {number + 1} {what}; {task.title} rows have {there} here.") from error
    empty = [key for key, value in question.fields.items() if not (isinstance(value, str) and value.strip())]
    if empty or not question.references or not all(str(r).strip() for r in question.references):
        raise ValueError(f"{name}: question {number + 1} has nothing in its field {(empty or ['answer'])[0]!r}.")
    return question


# --- local files ---


def _local_rows(task: Task, source: Path, wanted: list[str] | None) -> dict[str, tuple[str, Sequence[Row]]]:
    if not source.exists():
        raise FileNotFoundError(f"There is no {task.title} file or folder {str(source)!r}.")
    files = [source] if source.is_file() else sorted(p for p in source.iterdir() if _suffix(p) in SUFFIXES)
    by_language: dict[str, Path] = {}
    for path in files:
        for language in _languages_of(path, [*task.languages, *(wanted or [])]):
            if language in by_language:
                raise ValueError(f"{by_language[language].name} and {path.name} are both {language!r}: keep one.")
            by_language[language] = path
    missing = [language for language in wanted or [] if language not in by_language]
    if missing or not by_language:
        there = f"it has {', '.join(by_language)}" if by_language else f"no name there has a language ({SUFFIXES})"
        raise ValueError(f"{task.title} in {source} has no {missing[0] if missing else 'question'!r}; {there}.")
    return {
        language: (by_language[language].name, _read(by_language[language], task.columns))
        for language in wanted or by_language
    }


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _languages_of(path: Path, known: Sequence[str]) -> list[str]:
    """The known languages that are a part of the file's name; the last one where several are (``x_csqa.en.dev``)."""
    parts = regex.split(r"[._]", path.name.removesuffix(".gz").removesuffix(_suffix(path)))
    return [part for part in parts if part in known][-1:]


def _read(path: Path, columns: Sequence[str]) -> Sequence[Row]:
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()
        lines = [line for line in text.split("\n") if line.strip()]
        if _suffix(path) == ".json":
            rows = _squad_rows(json.loads(text))
        elif _suffix(path) == ".tsv":
            rows = [dict(zip(columns, line.split("\t"), strict=False)) for line in lines]
        else:
            rows = [json.loads(line) for line in lines]
    except (ValueError, KeyError, TypeError, OSError, EOFError, zlib.error) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} cannot be read: {what}.") from error
    if not rows:
        raise ValueError(f"{path} is empty.")
    return rows


def _squad_rows(content: Any) -> Sequence[Row]:
    """SQuAD's nested JSON as the hub's flat rows, with the number of each paragraph."""
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    return [
        {
            **{key: value for key, value in asked.items() if key != "answers"},
            **({"answers": {"text": [answer["text"] for answer in asked["answers"]]}} if "answers" in asked else {}),
            "context": paragraph["context"],
            "paragraph": number,
        }
        for number, paragraph in enumerate(paragraphs)
        for asked in paragraph["qas"]
    ]


# --- the hub ---


def _hub_rows(task: Task, wanted: list[str] | None) -> dict[str, tuple[str, Sequence[Row]]]:
    from datasets import load_dataset

    hub = task.hub
    lacking = [language for language in wanted or [] if language not in hub.configurations]
    if lacking:
        raise ValueError(f"{task.title} has no {lacking[0]!r}; it has {', '.join(task.languages)}.")
    rows = {}
    for language in wanted or task.languages:
        name = hub.configurations[language]
        try:
            table = load_dataset(hub.path, name, split=hub.split, revision=hub.revision)
        except Exception as error:  # whatever the hub client raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{task.title} ({name}) cannot be had from the hub as {hub.path}: {reason} Give a local file or folder."
            ) from error
        rows[language] = (f"{hub.path} ({name})", list(table))
    return rows
