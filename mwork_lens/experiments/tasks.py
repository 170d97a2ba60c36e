"""The paper's tables on real tasks: one row of settings per experiment, one function for all of them."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from .. import plots
from ..detection import Detection, detect
from ..effects.overlap import documents_read, overlap_words, seen_finding, statuses_of, worst
from ..model import HookedModel
from ..report import Section
from ..settings import TaskOptions
from ..statistics import FEWEST, not_measurable
from ..store import write_text
from ..tasks.prompts import Prompt
from ..tasks.result import ENGLISH, GROUPS, LIKELIHOOD, ORIGINAL, TaskResult
from ..tasks.run import run_task
from ..tasks.task import Question, Task
from ..text import Corpus, check_arguments
from .asked import Asked, AskedOfModel, asked_of
from .folder import ResultsFolder, load_or_run

logger = logging.getLogger("mwork_lens")

EXAMPLES = 2
"""Questions of each language whose answers are written with the table."""

PAPER_VALUES = "Paper value: not available (the published numbers could not be verified)."


def run_task_experiment(
    model: HookedModel, name: str, path: str | Path, options: TaskOptions | None = None
) -> tuple[TaskResult, ResultsFolder]:
    """One of the paper's tables on any model and languages; the folder ``path`` resumes a killed run.

    Raises:
        ValueError: for options, data or languages that do not go together, before the questions are asked.
    """
    check_arguments(run_task_experiment, locals())
    return run_asked(model, asked_of(name, options or TaskOptions()), path)


def run_asked(model: HookedModel, asked: Asked, path: str | Path) -> tuple[TaskResult, ResultsFolder]:
    """As :func:`run_task_experiment`."""
    name, options, run = asked.name, asked.options, AskedOfModel(asked, model)
    folder = ResultsFolder.open(path, name, run.settings())
    detection, detecting = asked.source, {"top": options.top, "progress": options.shown}
    if not isinstance(detection, Detection):
        detection = load_or_run(folder.path / "detection", Detection, detect, model, detection, **detecting)
    conditions, empty = run.conditions(detection)
    prompts, answers = (folder.path / f"{name}.jsonl" for name in ("prompts", "rows"))
    write_text(prompts, "".join(map(_line, chain(*run.prompts.values()))))
    rows = run_task(
        model,
        asked.task,
        run.prompts,
        conditions,
        answers,
        max_new_tokens=asked.max_new_tokens,
        batch_size=options.batch_size,
        in_full=sum(len(asked.all_questions[read]) for condition in conditions for read in condition.reads),
        progress=options.shown,
    )
    result = TaskResult(asked.task, rows, asked.questions, empty)
    folder.written.extend([prompts, answers])
    sizes = [(c.arm, c.part, c.off, len(c.neurons), c.neurons.fraction) for c in conditions if c.neurons is not None]
    frame = pd.DataFrame(sizes, columns=["arm", "part", "off", "neurons", "share of all"])
    seen = seen_words(asked.task, asked.questions, detection)
    sections = [
        Section("What detection has seen", [seen]),
        *_write(folder, result, frame, examples(result, run.prompts)),
    ]
    folder.page(f"{name}: {asked.experiment.item}", sections)
    return result, folder


def seen_words(task: Task, questions: Mapping[str, Sequence[Question]], detection: Detection) -> str:
    """What of the questions' texts was read to find neurons, in a sentence; if any was, also as a warning."""
    documents = {tag: tuple(question.document for question in asked) for tag, asked in questions.items()}
    parallel, fields = task.parallel and len(set(documents.values())) == 1, next(iter(questions.values()))[0].fields
    by_field = []
    for field in fields:
        texts = {tag: tuple(question.fields[field] for question in asked) for tag, asked in questions.items()}
        by_field.append(statuses_of(Corpus(texts, documents, parallel), [detection.seen]))
    read = documents_read({tag: worst([each[tag] for each in by_field]) for tag in questions}, documents)
    if said := overlap_words(read):
        warnings.warn(said, stacklevel=3)
    return seen_finding(read)


def _line(prompt: Prompt) -> str:
    """A prompt as JSON."""
    question, row = prompt.question, {"language": prompt.question.language, "id": prompt.question.id}
    row |= {"prompt": prompt.text, "tokens": len(prompt.ids)}
    row |= {"references": question.references, "choices": question.choices}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(folder: ResultsFolder, result: TaskResult, sizes: pd.DataFrame, shown: pd.DataFrame) -> list[Section]:
    """Tables and figures; returns the page."""
    folder.write({"cells": result.cells, "sets": sizes, "examples": shown, "cut": result.cut})
    several = result.languages if len(result.languages) > 1 else ()
    name, first = result.task.title, result.metrics[0]
    files = {metric: metric.lower().replace(" ", "-") for metric in result.metrics}
    return [
        Section("How to read this", reading(result)),
        *(folder.section(f"{name}: {each}", f"table-{files[each]}", result.table(each)) for each in result.metrics),
        *(
            folder.section(f"Changes of {each}", f"figure-{files[each]}", plots.task_changes(result, metric=each))
            for each in (result.task.metrics[0], LIKELIHOOD)
        ),
        *(
            folder.section(f"Only {tag} and English: {first}", f"table-{tag}", result.table(scope=tag))
            for tag in several
        ),
        Section("Sets that were switched off", (), sizes),
        Section("Some answers as they are", (), shown),
    ]


def examples(result: TaskResult, prompts: Mapping[str, Sequence[Prompt]]) -> pd.DataFrame:
    """Raw outputs of a few questions under every condition, with the end of the prompt and the reference."""
    shown = {(language, prompt.question.id): prompt for language, some in prompts.items() for prompt in some[:EXAMPLES]}
    rows = [
        {
            **{key: row[key] for key in ("language", "id", "arm", "part", "off", "output")},
            **row["scores"],
            "reference": prompt.question.references[0],
            "end of the prompt": prompt.text[-200:],
        }
        for row in result.rows
        if (prompt := shown.get((row["language"], row["id"])))
    ]
    return pd.DataFrame(rows).sort_values(["language", "id"], kind="stable", ignore_index=True)


def reading(result: TaskResult) -> list[str]:
    """What the tables say and do not say, in words, from the run itself."""
    return [
        "English is asked with each other language's neurons off, each other language with its own off. Δ is English's "
        "change minus the others' mean change: positive where the damage is specific to them. Scores are in per cent, "
        f"the {LIKELIHOOD} is that of the reference answer, in nats per token. Brackets are 95 % intervals (Wilson for "
        "shares, else jackknife over documents, paired across conditions); n is distinct questions / documents that "
        "they are about; a star: q ≤ 0.05 after Benjamini and Hochberg over the cells of a table.",
        PAPER_VALUES,
        *gaps(result),
    ]


def gaps(result: TaskResult) -> list[str]:
    """Which of the cells say nothing, and why."""
    score, text = result.task.metrics[0], []
    few = {language: number for language, number in result.documents.items() if number < FEWEST}
    if few:
        text.append(f"Questions are of few documents: {', '.join(f'{k} {not_measurable(n)}' for k, n in few.items())}.")
    floor = [language for language, above in result.measurable(score).items() if not above and language not in few]
    if floor:
        text.append(
            f"In {', '.join(floor)} the original model's {score} is not above chance (what its answers get with other "
            f"questions' references, or a guess), so changes of it are not measurable there; read the {LIKELIHOOD}."
        )
    text += limits(result)
    if not result.languages:
        text.append("The data has English only: there is no Δ.")
    if ENGLISH not in result.questions:
        text.append("The data has no English: there is no Δ.")
    return text


def limits(result: TaskResult) -> list[str]:
    """How many answers the limit of new tokens ended, in a sentence, if it did."""
    cut = result.cut
    original = cut[cut["arm"] == ORIGINAL].query("cut > 0")
    if not len(original):
        return []
    listed = ", ".join(f"{row['language']} {row['cut']} of {row['answers']}" for row in original.to_dict("records"))
    others = cut[cut["arm"] != ORIGINAL][["cut", "answers"]].sum()
    return [
        f"The limit of new tokens cut off answers of the original model: {listed}; with neurons off, {others['cut']} "
        f"of {others['answers']}. Scores of cut answers may be too low: raise max_new_tokens (--max-new-tokens)."
    ]


def blocks(result: TaskResult, metric: str) -> str:
    """The table for a terminal: one block per group, one column per part."""
    table, text = result.table(metric), []
    for group in GROUPS:
        block = pd.DataFrame({str(part).replace("_", "-"): table[group, part] for part in table[group].columns})
        different = set(block.to_numpy().ravel())
        body = f"  {different.pop()}" if len(different) == 1 else block.to_string()
        text.append(f"{group}\n{body}")
    return "\n\n".join(text)
