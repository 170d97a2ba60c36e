"""Other text to measure on: what the questions of a task are asked about."""

from pathlib import Path

from ...tasks import TASKS, load_questions
from ...text import Corpus

FIELDS = {"xquad": "context", "mgsm": "question"}
"""Tasks with running text, and where it is."""


def task_text(name: str, source: str | Path | None, languages: list[str], *, limit: int | None = None) -> Corpus:
    """XQuAD's contexts or MGSM's questions, each once, in those of the languages that the task has.

    Args:
        name: ``"xquad"`` or ``"mgsm"``.
        source: a folder or file of the task; the hub if None.
        languages: those wanted.
        limit: at most this many passages a language, from as many documents as possible.

    Raises:
        ValueError: if the task has none of the languages.
    """
    task = TASKS[name]
    shared = [language for language in languages if language in task.languages]
    if not shared:
        raise ValueError(f"{task.title} has none of {', '.join(languages)}; it has {', '.join(task.languages)}.")
    texts, documents = {}, {}
    for language, asked in load_questions(task, source, languages=shared).items():
        passages = dict.fromkeys((question.document, question.fields[FIELDS[name]]) for question in asked)
        documents[language], texts[language] = zip(*passages, strict=True)
    parallel = len(set(documents.values())) == 1 and len(documents) > 1
    corpus = Corpus(texts, documents, parallel, f"{name}: {FIELDS[name]}s")
    return corpus if limit is None else corpus.limit(limit)
