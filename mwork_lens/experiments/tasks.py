"""The paper's tables on real tasks: one row of settings an experiment, one function for all of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..detection import Detection, detect
from ..model import HookedModel, dtype_of
from ..neurons import MWORK_PARTS, STAGES, Stages
from ..report import Section
from ..tasks import (
    ALL,
    ENGLISH,
    GROUPS,
    LIKELIHOOD,
    TASKS,
    Prompt,
    Question,
    Task,
    TaskResult,
    limited,
    load_questions,
    make_prompts,
    require_room,
    run_task,
    templates,
    uses_chat,
)
from ..text import load_corpus
from .folder import ResultsFolder
from .set_builders import conditions
from .settings import ALL_LAYERS, TASK_EXPERIMENTS, TaskExperiment, TaskOptions

logger = logging.getLogger("mwork_lens")

EXAMPLES = 2
"""Questions of each language whose answers stand beside the table."""


PARTS: Mapping[str, tuple[str, ...]] = {
    ALL_LAYERS: (ALL_LAYERS,),
    "stage": STAGES,
    "stage and structure": MWORK_PARTS,
}
"""Parts of the model in which neurons are switched off, one at a time."""
PAPER_VALUES = "Paper value: not available (the published numbers could not be verified)."


def task_of(name: str, options: TaskOptions) -> Task:
    """The task of an experiment.

    Raises:
        ValueError: for an unknown one.
    """
    task = options.task or TASK_EXPERIMENTS[name].task
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    return TASKS[task]


def run_task_experiment(
    model: HookedModel, name: str, path: str | Path, options: TaskOptions | None = None
) -> tuple[TaskResult, ResultsFolder]:
    """One of the paper's tables on any model and languages; the folder ``path`` resumes a killed run.

    Raises:
        ValueError: for options, data or languages that do not go together, before the questions are asked.
    """
    options = options or TaskOptions()
    experiment = TASK_EXPERIMENTS[name]
    task = task_of(name, options)
    arms = tuple(options.arms or experiment.arms)
    uses_chat(model, options.chat)
    stages = Stages(model, understanding=options.understanding, generation=options.generation)
    saved = None if options.detection is None else Detection.load(options.detection)
    text = None if saved else _corpus(options)
    detected = saved.languages if saved else list(text or {})
    everything = load_questions(task, options.data, languages=options.languages, without=options.without)
    everything = _known(everything, detected, options, task)
    questions = {language: limited(asked, options.limit) for language, asked in everything.items()}
    off = _off(list(questions), detected, options)
    prompts = {
        language: make_prompts(model, task, asked, chat=options.chat, max_tokens=options.max_tokens)
        for language, asked in questions.items()
    }
    require_room(model, prompts, options.max_new_tokens)
    found_on = {"detection": dict(saved.settings)} if saved else {"corpus": text.describe(), "top": options.top}  # pyright: ignore[reportOptionalMemberAccess]
    settings = {
        **_asked(model, task, options, questions, everything),
        "item": experiment.item,
        "off": off,
        "arms": arms,
        "parts": PARTS[experiment.by],
        "stages": {stage: [layers.start, layers.stop - 1] for stage, layers in stages},
        "found_on": found_on,
        **{key: getattr(options, key) for key in _DECIDING},
    }
    folder = ResultsFolder.open(path, name, settings)
    detection = saved or _detection(model, text, folder, options)
    asking, empty = conditions(
        detection,
        stages,
        parts=PARTS[experiment.by],
        arms=arms,
        off=off,
        asked=list(questions),
        quorum=options.quorum,
        seed=options.seed,
    )
    _write_prompts(folder.path / "prompts.jsonl", prompts)
    rows = run_task(
        model,
        task,
        prompts,
        asking,
        folder.path / "rows.jsonl",
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        in_full=sum(len(everything[read]) for condition in asking for read in condition.reads),
        progress=options.shown,
    )
    result = TaskResult(task, rows, questions, empty)
    sizes = [(c.arm, c.part, c.off, len(c.neurons), c.neurons.fraction) for c in asking if c.neurons is not None]
    frame = pd.DataFrame(sizes, columns=["arm", "part", "off", "neurons", "share of all"])
    _write(folder, experiment, result, frame, prompts)
    return result, folder


_DECIDING = ("limit", "without", "quorum", "max_new_tokens", "max_tokens", "seed", "batch_size")


def _asked(
    model: HookedModel,
    task: Task,
    options: TaskOptions,
    questions: Mapping[str, Sequence[Question]],
    everything: Mapping[str, Sequence[Question]],
) -> dict[str, Any]:
    """What is recorded of the model and of its questions."""
    return {
        "model": str(model.cfg.model_name),
        "dtype": str(dtype_of(model)),
        "task": {"name": task.name, "metrics": task.metrics, "data": options.data or task.hub.path},
        "ends": {"at": task.stop, "counted": "once the answer has begun"},
        "questions": {language: len(asked) for language, asked in questions.items()},
        "of": {language: len(asked) for language, asked in everything.items()},
        "templates": {language: templates(task.name)[language] for language in questions},
        "chat": uses_chat(model, options.chat),
    }


def _corpus(options: TaskOptions) -> Any:
    corpus = load_corpus(options.corpus, sentences_per_passage=options.sentences_per_passage, limit=options.passages)
    if len(corpus) < 2:
        raise ValueError(f"Sets need at least two languages to compare; {options.corpus} has {', '.join(corpus)}.")
    return corpus


def _known(
    questions: dict[str, list[Question]], detected: Sequence[str], options: TaskOptions, task: Task
) -> dict[str, list[Question]]:
    """Languages that there are neurons and prompts for; English needs none of its own."""
    source = options.detection or options.corpus
    lacking = [lang for lang in questions if lang not in detected and lang != ENGLISH]
    if lacking and options.languages is not None:
        raise ValueError(
            f"There is no set of neurons for {lacking[0]!r}: {source} has {', '.join(detected)}. Give a corpus or a "
            "detection with that language."
        )
    kept = {language: asked for language, asked in questions.items() if language not in lacking}
    if lacking:
        logger.warning("Left out, as %s has no text of them: %s", source, ", ".join(lacking))
    if not kept:
        raise ValueError(
            f"No language of the {task.title} data ({', '.join(questions)}) is among those of {source} "
            f"({', '.join(detected)})."
        )
    return kept


def _off(asked: Sequence[str], detected: Sequence[str], options: TaskOptions) -> list[str]:
    own = [language for language in asked if language != ENGLISH]
    chosen = list(options.off or own or [language for language in detected if language != ENGLISH])
    missing = [language for language in chosen if language not in detected]
    if missing:
        raise ValueError(f"There is no set of neurons for {missing[0]!r}; there are {', '.join(detected)}.")
    idle = [language for language in own if language not in chosen]
    if idle:
        raise ValueError(f"{idle[0]!r} is asked, so its neurons must be among those switched off: {', '.join(chosen)}.")
    return chosen


def _detection(model: HookedModel, text: Any, folder: ResultsFolder, options: TaskOptions) -> Detection:
    place = folder.path / "detection"
    if place.exists():
        return Detection.load(place)
    found = detect(model, text, top=options.top, progress=options.shown)
    found.save(place)
    return found


# --- what is written ---


def _write_prompts(path: Path, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    lines = [
        {
            "language": prompt.question.language,
            "id": prompt.question.id,
            "prompt": prompt.text,
            "tokens": len(prompt.ids),
            "references": prompt.question.references,
            "choices": prompt.question.choices,
        }
        for given in prompts.values()
        for prompt in given
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _write(
    folder: ResultsFolder,
    experiment: TaskExperiment,
    result: TaskResult,
    sizes: pd.DataFrame,
    prompts: Mapping[str, Sequence[Prompt]],
) -> None:
    folder.written.extend([folder.path / "prompts.jsonl", folder.path / "rows.jsonl"])
    folder.table("cells", result.cells)
    folder.table("sets", sizes)
    sections = [Section("How to read this", reading(result))]
    for metric in result.metrics:
        table = result.table(metric)
        folder.table(f"table-{_slug(metric)}", flat(table))
        sections.append(Section(f"{result.task.title}: {metric}", (), table))
    for metric in (result.task.metrics[0], LIKELIHOOD):
        figure = plots.task_changes(result, metric=metric)
        folder.figure(f"figure-{_slug(metric)}", figure)
        sections.append(Section(f"Changes of {metric}", (), figure))
    for language in result.languages if len(result.languages) > 1 else ():
        table = result.table(scope=language)
        folder.table(f"table-{language}", flat(table))
        sections.append(Section(f"Only {language} and English: {result.metrics[0]}", (), table))
    shown = examples(result, prompts)
    folder.table("examples", shown)
    sections += [Section("Sets that were switched off", (), sizes), Section("Some answers as they are", (), shown)]
    folder.page(f"{experiment.name}: {experiment.item}", sections)


def _slug(metric: str) -> str:
    return metric.lower().replace(" ", "-")


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Columns with one name each, for files."""
    return table.set_axis([" / ".join(filter(None, column)) for column in table.columns], axis=1)


def examples(result: TaskResult, prompts: Mapping[str, Sequence[Prompt]], number: int = EXAMPLES) -> pd.DataFrame:
    """Raw outputs of a few questions under every condition, with the end of the prompt and the reference."""
    by_key = {(p.question.language, p.question.id): p for given in prompts.values() for p in given}
    chosen = {(lang, p.question.id) for lang, given in prompts.items() for p in given[:number]}
    rows = [row for row in result.rows if (row["language"], row["id"]) in chosen]
    frame = pd.DataFrame(
        [
            {
                **{key: row[key] for key in ("language", "id", "arm", "part", "off")},
                "output": row["output"],
                **row["scores"],
                "reference": by_key[row["language"], row["id"]].question.references[0],
                "end of the prompt": by_key[row["language"], row["id"]].text[-200:],
            }
            for row in rows
        ]
    )
    return frame.sort_values(["language", "id"], kind="stable", ignore_index=True)


def reading(result: TaskResult) -> list[str]:
    """What the tables say and do not say, in words, from the run itself."""
    return [
        "English is asked with each other language's neurons off, each other language with its own off. Δ is English's "
        "change minus the others' mean change: positive where the damage is specific to them. Scores are in per cent, "
        f"the {LIKELIHOOD} is that of the reference answer, in nats a token. Brackets are 95 % intervals (Wilson for "
        "shares, else bootstrap over documents, paired across conditions); n is distinct questions; a star: q ≤ 0.05 "
        "after Benjamini and Hochberg over the cells of a table.",
        PAPER_VALUES,
        *gaps(result),
    ]


def gaps(result: TaskResult) -> list[str]:
    """Which of the cells say nothing, and why."""
    score, text = result.task.metrics[0], []
    floor = [language for language, above in result.measurable(score).items() if not above]
    if floor:
        text.append(
            f"In {', '.join(floor)} the original model's {score} is not above chance (what its answers get with other "
            f"questions' references, or a guess), so changes of it are not measurable there; read the {LIKELIHOOD}."
        )
    if not result.languages:
        text.append("The data has English only: there is no Δ.")
    if ENGLISH not in result.questions:
        text.append("The data has no English: there is no Δ.")
    return text


def blocks(result: TaskResult, metric: str, *, scope: str = ALL) -> str:
    """The table for a terminal: a block a group, a column a part."""
    table = result.table(metric, scope=scope)
    text = []
    for group in GROUPS:
        block = pd.DataFrame({str(part).replace("_", "-"): table[group, part] for part in table[group].columns})
        different = set(block.to_numpy().ravel())
        body = f"  {different.pop()}" if len(different) == 1 else block.to_string()
        text.append(f"{group}\n{body}")
    return "\n\n".join(text)
