"""Worked examples for prompts: drawn from the questions, which are then not asked, or from the data's own."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import regex

from .task import Question, Task, load_questions

_LABEL = regex.compile(r"[^:：]{1,40}[:：]\s*")
"""What a question or an answer of a file of examples begins with, e.g. ``Question : ``."""

Questions = Mapping[str, Sequence[Question]]


def draw_exemplars(task: Task, questions: Questions, number: int, seed: int) -> dict[str, list[Question]]:
    """``number`` questions by language, each about another document; the same in every language of a parallel task.

    Raises:
        ValueError: where there are fewer documents.
    """
    of = {tag: list(dict.fromkeys(question.document for question in rows)) for tag, rows in questions.items()}
    common = [document for document in next(iter(of.values())) if all(document in each for each in of.values())]
    drawn = {}
    for language, rows in questions.items():
        documents = common if task.parallel else of[language]
        if number > len(documents):
            raise ValueError(f"exemplars={number}: there are {len(documents)} documents to draw them from.")
        first = {question.document: question for question in reversed(rows)}
        drawn[language] = [first[document] for document in random.Random(int(seed)).sample(documents, number)]
    return drawn


def without_exemplars(questions: Questions, exemplars: Questions) -> dict[str, list[Question]]:
    """The questions about other documents than the examples'; a ValueError if none is left."""
    left = {}
    for language, rows in questions.items():
        documents = {question.document for question in exemplars.get(language, ())}
        left[language] = [question for question in rows if question.document not in documents]
        if not left[language]:
            raise ValueError(f"exemplars={len(documents)} leave no question of {language!r}: give fewer.")
    return left


def load_exemplars(task: Task, source: str | Path, languages: Sequence[str]) -> dict[str, list[Question]]:
    """The data's own examples, out of a folder or file like that of the questions, without their labels.

    Raises:
        FileNotFoundError: for a folder or file that is not there.
        ValueError: for a language that it lacks, or malformed rows.
    """
    loaded = load_questions(task, source, languages=languages)
    return {language: _without_labels(rows) for language, rows in loaded.items()}


def _without_labels(rows: Sequence[Question]) -> list[Question]:
    """Without what all questions, and all worked answers, begin with: the template has labels of its own."""
    fields = {name: _without_label([row.fields[name] for row in rows]) for name in rows[0].fields}
    worked = _without_label([row.worked for row in rows])
    return [
        replace(row, fields={name: texts[i] for name, texts in fields.items()}, worked=worked[i])
        for i, row in enumerate(rows)
    ]


def _without_label(texts: Sequence[str]) -> Sequence[str]:
    first, last = min(texts), max(texts)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    label = _LABEL.match("".join(one for one, _ in common)) if len(texts) > 1 else None
    return [text[label.end() :] for text in texts] if label else texts
