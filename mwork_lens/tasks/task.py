"""What a task is: questions, a prompt, a score. Plain data and functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """What it was asked about (a paragraph), or its id: intervals resample these."""


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
    cut: str | None = None
    """The field that may be shortened to fit a token limit."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the hub has it in."""
        return tuple(self.hub.configurations)

    def chance(self, question: Question) -> float | None:
        """The score of a guess among the options; None where the answer is written."""
        return 1 / len(question.choices) if question.choices else None


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most ``limit`` questions, from as many documents as possible, in order.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least one question a language, or none for all.")
    seen: dict[str, int] = {}
    turns = []
    for place, question in enumerate(questions):
        turns.append((seen.setdefault(question.document, 0), place))
        seen[question.document] += 1
    return [questions[place] for place in sorted(place for _, place in sorted(turns)[:limit])]
