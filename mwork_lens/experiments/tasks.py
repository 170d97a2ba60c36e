"""The paper's tables on real tasks: one row of settings per experiment, one function for all of them."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..detection import Detection, detect
from ..effects.overlap import documents_read, overlap_words, seen_finding, statuses_of, worst
from ..model import HookedModel, model_record
from ..neurons import MWORK_PARTS, STAGES, Stages
from ..report import Section
from ..settings import ALL_LAYERS, TASK_EXPERIMENTS, TaskExperiment, TaskOptions
from ..statistics import FEWEST, not_measurable
from ..store import write_text
from ..tasks.catalogue import TASKS
from ..tasks.chat import thinking, uses_chat
from ..tasks.exemplars import draw_exemplars, load_exemplars, without_exemplars
from ..tasks.prompts import Prompt, make_prompts, templates
from ..tasks.result import ENGLISH, GROUPS, LIKELIHOOD, ORIGINAL, TaskResult
from ..tasks.run import Condition, require_room, run_task
from ..tasks.task import Question, Task, limited, load_questions
from ..text import Corpus, check_arguments, load_corpus
from ..text.choices import listed, require_choice
from .folder import ResultsFolder, load_or_run
from .sets import arm_set

logger = logging.getLogger("mwork_lens")

EXAMPLES = 2
"""Questions of each language whose answers are written with the table."""

PARTS: Mapping[str, tuple[str, ...]] = {ALL_LAYERS: (ALL_LAYERS,), "stage": STAGES, "stage and structure": MWORK_PARTS}
"""Parts of the model in which neurons are switched off, one at a time."""
PAPER_VALUES = "Paper value: not available (the published numbers could not be verified)."


def task_of(name: str, options: TaskOptions) -> Task:
    """The task of an experiment; ValueError for an unknown one of either."""
    require_choice("name", name, TASK_EXPERIMENTS)
    task = options.task or TASK_EXPERIMENTS[name].task
    require_choice("task", task, TASKS)
    return TASKS[task]


def run_task_experiment(
    model: HookedModel, name: str, path: str | Path, options: TaskOptions | None = None
) -> tuple[TaskResult, ResultsFolder]:
    """One of the paper's tables on any model and languages; the folder ``path`` resumes a killed run.

    Raises:
        ValueError: for options, data or languages that do not go together, before the questions are asked.
    """
    check_arguments(run_task_experiment, locals())
    return run_asked(model, asked_of(name, options or TaskOptions()), path)


def asked_of(name: str, options: TaskOptions) -> "Asked":
    """What an experiment asks; a ValueError for data, languages or arms that are not there, without a model."""
    task = task_of(name, options)
    asked = Asked(name, TASK_EXPERIMENTS[name], task, options)
    _ = asked.off
    return asked


def run_asked(model: HookedModel, asked: "Asked", path: str | Path) -> tuple[TaskResult, ResultsFolder]:
    """As :func:`run_task_experiment`."""
    name, options = asked.name, asked.options
    run = _Run(name, asked.experiment, asked.task, options, model)
    vars(run).update({**vars(asked), "model": model})  # what was read is not read again
    folder = ResultsFolder.open(path, name, run.settings())
    detection, detecting = run.source, {"top": options.top, "progress": options.shown}
    if not isinstance(detection, Detection):
        detection = load_or_run(folder.path / "detection", Detection, detect, model, detection, **detecting)
    conditions, empty = run.conditions(detection)
    prompts, answers = (folder.path / f"{name}.jsonl" for name in ("prompts", "rows"))
    write_text(prompts, "".join(map(_line, chain(*run.prompts.values()))))
    rows = run_task(
        model,
        run.task,
        run.prompts,
        conditions,
        answers,
        max_new_tokens=run.max_new_tokens,
        batch_size=options.batch_size,
        in_full=sum(len(run.all_questions[read]) for condition in conditions for read in condition.reads),
        progress=options.shown,
    )
    result = TaskResult(run.task, rows, run.questions, empty)
    folder.written.extend([prompts, answers])
    sizes = [(c.arm, c.part, c.off, len(c.neurons), c.neurons.fraction) for c in conditions if c.neurons is not None]
    frame = pd.DataFrame(sizes, columns=["arm", "part", "off", "neurons", "share of all"])
    seen = seen_words(run.task, run.questions, detection)
    sections = [
        Section("What detection has seen", [seen]),
        *_write(folder, result, frame, examples(result, run.prompts)),
    ]
    folder.page(f"{name}: {run.experiment.item}", sections)
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


@dataclass(frozen=True)
class Asked:
    """What an experiment asks, and whose neurons are switched off, of any model; what is not there is refused."""

    name: str
    experiment: TaskExperiment
    task: Task
    options: TaskOptions

    @cached_property
    def source(self) -> Detection | Corpus:
        """A saved detection, or the text to detect neurons on."""
        options = self.options
        if options.detection is not None:
            return Detection.load(options.detection)
        joined, passages = options.sentences_per_passage, options.passages
        corpus = load_corpus(options.corpus, sentences_per_passage=joined, limit=passages)
        if len(corpus) < 2:
            raise ValueError(f"Sets need at least two languages to compare; {options.corpus} has {', '.join(corpus)}.")
        return corpus

    @cached_property
    def detected(self) -> list[str]:
        """The languages that there is a detection, or text, of."""
        return self.source.languages if isinstance(self.source, Detection) else list(self.source)

    @property
    def max_new_tokens(self) -> int:
        """After which an answer ends."""
        return self.options.max_new_tokens or self.task.max_new_tokens

    @cached_property
    def exemplars(self) -> dict[str, list[Question]]:
        """Worked examples by language."""
        options = self.options
        if not options.exemplars:
            return {}
        own = options.exemplars_from
        examples = self.loaded if own is None else load_exemplars(self.task, own, list(self.loaded))
        return draw_exemplars(self.task, examples, options.exemplars, options.seed)

    @cached_property
    def all_questions(self) -> dict[str, list[Question]]:
        """By language, without worked examples that were drawn from them."""
        return self.loaded if self.options.exemplars_from else without_exemplars(self.loaded, self.exemplars)

    @cached_property
    def loaded(self) -> dict[str, list[Question]]:
        """By language, of those with neurons; English needs none of its own."""
        options = self.options
        questions = load_questions(self.task, options.data, languages=options.languages, without=options.without)
        place, languages = options.detection or options.corpus, ", ".join(self.detected)
        lacking = [language for language in questions if language not in (*self.detected, ENGLISH)]
        if lacking and options.languages is not None:
            raise ValueError(
                f"There is no set of neurons for {lacking[0]!r}: {place} has "
                f"{listed(self.detected, lacking[0])}. Give a corpus or a detection "
                "with that language."
            )
        if lacking:
            logger.warning("Left out, as %s has no text of them: %s", place, ", ".join(lacking))
        if len(lacking) == len(questions):
            names = ", ".join(questions)
            raise ValueError(
                f"No language of the {self.task.title} data ({names}) is among those of {place} ({languages})."
            )
        return {language: rows for language, rows in questions.items() if language not in lacking}

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """Those that are asked."""
        return {language: limited(every, self.options.limit) for language, every in self.all_questions.items()}

    @cached_property
    def off(self) -> list[str]:
        """The languages whose neurons are switched off."""
        asked = [language for language in self.questions if language != ENGLISH]
        off = list(self.options.off or asked or [language for language in self.detected if language != ENGLISH])
        if absent := [language for language in off if language not in self.detected]:
            there = listed(self.detected, absent[0])
            raise ValueError(f"There is no set of neurons for {absent[0]!r}; there are {there}.")
        if idle := [language for language in asked if language not in off]:
            raise ValueError(
                f"{idle[0]!r} is asked, so its neurons must be among those switched off: {', '.join(off)}."
            )
        return off

    @property
    def arms(self) -> tuple[str, ...]:
        """The rows of the table."""
        return tuple(self.options.arms or self.experiment.arms)


@dataclass(frozen=True)
class _Run(Asked):
    """The same of one model; what does not go together is refused by :meth:`settings`."""

    model: HookedModel

    @cached_property
    def stages(self) -> Stages:
        return Stages(self.model, understanding=self.options.understanding, generation=self.options.generation)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        options = {name: getattr(self.options, name) for name in ("chat", "max_tokens", "wording")}
        options["exemplars"] = self.exemplars
        prompts = {tag: make_prompts(self.model, self.task, rows, **options) for tag, rows in self.questions.items()}
        require_room(self.model, prompts, self.max_new_tokens)
        return prompts

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result."""
        model, task, options, source = self.model, self.task, self.options, self.source
        saved = isinstance(source, Detection)
        of_weights = asdict(source.space)["fingerprint"] if saved else None
        detecting = (
            {"detection": {**source.settings, "fingerprint": of_weights}}
            if saved
            else {"corpus": source.describe(), "top": options.top}
        )
        return {
            **model_record(model),
            "task": {"name": task.name, "metrics": task.metrics, "data": options.data or task.hub.path},
            "ends": {"at": task.stop, "counted": "once the answer has begun"},
            "questions": {language: len(questions) for language, questions in self.questions.items()},
            "of": {language: len(questions) for language, questions in self.all_questions.items()},
            "templates": {language: templates(task.name, options.wording)[language] for language in self.prompts},
            "chat": uses_chat(model, options.chat),
            "thinking": thinking(model, options.chat),
            "item": self.experiment.item,
            "off": self.off,
            "arms": self.arms,
            "parts": PARTS[self.experiment.by],
            "stages": {stage: [layers.start, layers.stop - 1] for stage, layers in self.stages},
            "found_on": detecting,
            **{name: getattr(options, name) for name in _DECIDING},
            "max_new_tokens": self.max_new_tokens,
            **({"exemplars": self._exemplars_record()} if options.exemplars else {}),
        }

    def _exemplars_record(self) -> dict[str, Any]:
        ids = {language: [question.id for question in rows] for language, rows in self.exemplars.items()}
        return {"from": self.options.exemplars_from or "the questions", "ids": ids}

    def conditions(self, detection: Detection) -> tuple[list[Condition], frozenset[tuple[str, str, str]]]:
        """The original model, then every arm in every part for every language whose neurons are switched off.

        A language is asked with its own neurons off, English with each language's. Also returns the arm, part and
        language of sets that hold no neurons, which are not run.
        """
        asked, options = tuple(self.questions), self.options
        conditions, empty = [Condition(ORIGINAL, "", None, None, asked)], set()
        pairs = product(self.arms, self.off)
        sets = {pair: arm_set(pair[0], detection, pair[1], options.quorum, options.seed) for pair in pairs}
        for arm, part, language in product(self.arms, PARTS[self.experiment.by], self.off):
            neurons = sets[arm, language]
            neurons = neurons if part == ALL_LAYERS else self.stages.select(neurons, part)
            if len(neurons):
                reads = tuple(read for read in (language, ENGLISH) if read in asked)
                conditions.append(Condition(arm, part, language, neurons, reads))
            else:
                empty.add((arm, part, language))
        return conditions, frozenset(empty)


_DECIDING = ("limit", "without", "quorum", "max_tokens", "seed", "batch_size")


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
        "shares, else jackknife over documents, paired across conditions); n is distinct questions; a star: q ≤ 0.05 "
        "after Benjamini and Hochberg over the cells of a table.",
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
