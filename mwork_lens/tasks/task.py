"""One task, and its questions with their sources."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import user_path
from ..text import (
    as_names,
    check_arguments,
    files_of,
    hub_errors,
    identity,
    language_of,
    read_rows,
    require_language,
    spread,
    suffix_of,
)
from ..text.choices import listed

SUFFIXES = (".json", ".jsonl", ".tsv")

Row = Mapping[str, Any]
"""One question as a data set has it, by column."""


@dataclass(frozen=True)
class Question:
    """One question in one language."""

    id: str
    """The same in every language where the task is parallel."""
    language: str
    fields: Mapping[str, str]
    """What the prompt's places are filled with."""
    references: tuple[str, ...]
    """Right answers; the first is the one whose log-likelihood is measured."""
    choices: tuple[str, ...] = ()
    """The options of a multiple choice; empty where the answer is written."""
    document: str = ""
    """What it was asked about (a paragraph), or its id: intervals rest on these."""
    worked: str = ""
    """The answer with the steps to it, where the data has them: what a worked example shows."""


@dataclass(frozen=True)
class Answer:
    """What a model made of a question."""

    output: str
    """What it wrote, or the option that it finds likeliest."""
    cut: bool = False
    """Whether the token limit ended it."""


@dataclass(frozen=True)
class Hub:
    """Where a task's data is on the Hugging Face hub."""

    path: str
    configurations: Mapping[str, str]
    """By language."""
    split: str = "test"
    revision: str | None = None
    """``refs/convert/parquet`` where the repository itself holds a script, which ``datasets`` no longer runs."""


@dataclass(frozen=True)
class Task:
    """A benchmark. A new one is one more of these in ``catalogue.py`` and a file of prompts."""

    name: str
    """Also of the file with its prompts."""
    title: str
    hub: Hub
    question: Callable[[Row, str, int], Question]
    """From a row, its language and its number; a missing field raises KeyError."""
    score: Callable[[Question, Answer], Mapping[str, float]]
    """Every metric of one answer, between 0 and 1."""
    metrics: tuple[str, ...]
    """Names of the scores, the leading one first."""
    parallel: bool = True
    """Whether a question has the same id in every language."""
    columns: tuple[str, ...] = ()
    """Of local ``.tsv`` files without a header."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer (see :func:`mwork_lens.generate`)."""
    paragraph: str | None = None
    """The column with what a question is about; rows with the same text there have the same ``paragraph``."""
    cut: str | None = None
    """The field that may be shortened to fit a token limit."""
    max_new_tokens: int = 128
    """After which a written answer ends, by default."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the hub has it in."""
        return tuple(self.hub.configurations)


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
        source: a folder with one file per language (``xquad.zh.json.gz``, ``mgsm_zh.tsv``, ``x_csqa.en.dev.jsonl``:
            one part of the name is the language), one such file, a file whose rows say their language (``lang``), or
            None for the hub.
        languages: which; all that a folder has, or those of the task on the hub, by default.
        limit: at most this many questions per language, spread over the paragraphs that they are asked about.
        without: ids of questions to leave out in every language, e.g. those that chose a setting.

    Raises:
        FileNotFoundError: for a folder or file that is not there.
        ValueError: for a language that the data lacks, a malformed file or row (named), an id in ``without`` that no
            question has, or nothing left.
    """
    check_arguments(load_questions, locals())
    if not isinstance(task, Task):
        raise ValueError(f"task={task!r}: give a Task, e.g. one of mwork_lens.tasks.TASKS.")
    wanted = None if languages is None else [*map(require_language, as_names(languages, "languages"))]
    without = as_names(without, "without")
    rows = _hub_rows(task, wanted) if source is None else _local_rows(task, user_path(source), wanted)
    left_out, questions, ids = set(without), {}, set[str]()
    for language, (name, by_number) in rows.items():
        numbered = _with_paragraphs(by_number, task.paragraph)
        every = [_question(task, row, language, number, name) for number, row in enumerate(numbered)]
        if len({question.id for question in every}) < len(every):
            raise ValueError(f"{name} has several questions with one id.")
        ids |= {question.id for question in every}
        questions[language] = limited([question for question in every if question.id not in left_out], limit)
        if not questions[language]:
            raise ValueError(f"No question of {name} is left: all {len(every)} are to be left out.")
    if unknown := [name for name in without if name not in ids]:
        near = ", ".join(listed(sorted(ids), unknown[0]).split(", ")[:5])
        raise ValueError(f"without: {task.title} has no question {unknown[0]!r} here; there are e.g. {near}.")
    return questions


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most ``limit`` questions, from as many documents as possible, in order."""
    return [questions[place] for place in spread([question.document for question in questions], limit)]


def _question(task: Task, row: Row, language: str, number: int, name: str) -> Question:
    try:
        question = task.question(row, language, number)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        what = f"has no field {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise ValueError(f"{name}: question {number + 1} {what}; {task.title} rows have {columns} here.") from error
    empty = [key for key, value in question.fields.items() if not (isinstance(value, str) and value.strip())]
    if empty or not question.references or not all(str(r).strip() for r in question.references):
        raise ValueError(f"{name}: question {number + 1} has nothing in its field {(empty or ['answer'])[0]!r}.")
    return question


def _local_rows(task: Task, source: Path, wanted: list[str] | None) -> dict[str, tuple[str, Sequence[Row]]]:
    if not source.exists():
        raise FileNotFoundError(f"There is no {task.title} file or folder {str(source)!r}.")
    files = [source] if source.is_file() else [file for file in files_of(source)[0] if suffix_of(file) in SUFFIXES]
    by_language: dict[str, Path] = {}
    for path in files:
        language = language_of(path, among=[*task.languages, *(wanted or [])])
        if language in by_language:
            raise ValueError(f"{by_language[language].name} and {path.name} are both {language!r}: keep one.")
        if language is not None:
            by_language[language] = path
    by_row = {} if by_language or source.is_dir() else _rows_by_language(task, source)
    present = by_language or by_row
    lacking = [language for language in wanted or [] if language not in present]
    if lacking or not present:
        there = f"it has {listed(present, *lacking[:1])}" if present else f"no name there has a language ({SUFFIXES})"
        raise ValueError(f"{task.title} in {source} has no {lacking[0] if lacking else 'question'!r}; {there}.")
    if by_row:
        return {language: (source.name, by_row[language]) for language in wanted or by_row}
    paths = {language: by_language[language] for language in wanted or by_language}
    return {language: (path.name, _read(task, path)) for language, path in paths.items()}


def _read(task: Task, path: Path) -> list[Row]:
    parse = _squad_rows if suffix_of(path) == ".json" else lambda row: [row]
    return [*itertools.chain(*read_rows(path, parse, columns=task.columns))]


def _rows_by_language(task: Task, path: Path) -> dict[str, list[Row]]:
    """Of a file in several languages, whose rows name theirs."""
    rows: dict[str, list[Row]] = {}
    for row in _read(task, path):
        tag = row.get("lang", row.get("language")) if isinstance(row, Mapping) else None
        if isinstance(tag, str):
            rows.setdefault(require_language(tag), []).append(row)
    return rows


def _squad_rows(content: Any) -> list[Row]:
    """SQuAD's nested JSON as the hub's flat rows, with the number of each paragraph."""
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    rows = []
    for number, paragraph in enumerate(paragraphs):
        for question in paragraph["qas"]:
            row = {**question, "context": paragraph["context"], "paragraph": number}
            if "answers" in question:
                row["answers"] = {"text": [answer["text"] for answer in question["answers"]]}
            rows.append(row)
    return rows


def _with_paragraphs(rows: Sequence[Row], column: str | None) -> Sequence[Row]:
    """Rows that do not say which paragraph they are about, with its number among the different texts of a column."""
    numbers: dict[str, int] = {}
    if column is None:
        return rows

    def numbered(row: Row) -> Row:
        text = row.get(column) if isinstance(row, Mapping) and "paragraph" not in row else None
        return {**row, "paragraph": numbers.setdefault(identity(text), len(numbers))} if isinstance(text, str) else row

    return [numbered(row) for row in rows]


def _hub_rows(task: Task, wanted: list[str] | None) -> dict[str, tuple[str, Sequence[Row]]]:
    from datasets import load_dataset

    hub, rows = task.hub, {}
    lacking = [language for language in wanted or [] if language not in hub.configurations]
    if lacking:
        raise ValueError(f"{task.title} has no {lacking[0]!r}; it has {listed(task.languages, lacking[0])}.")
    for language in wanted or task.languages:
        name = hub.configurations[language]
        problem = f"{task.title} ({name}) does not load from the hub as {hub.path}; give a local file or folder"
        with hub_errors(problem):
            table = load_dataset(hub.path, name, split=hub.split, revision=hub.revision)
        rows[language] = (f"{hub.path} ({name})", list(table))
    return rows
