"""What an experiment on a task asks, and with which neurons off."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any

from ..detection import Detection
from ..model import HookedModel, model_record
from ..neurons import MWORK_PARTS, STAGES, Stages
from ..settings import ALL_LAYERS, TASK_EXPERIMENTS, TaskExperiment, TaskOptions
from ..tasks.catalogue import TASKS
from ..tasks.chat import thinking, uses_chat
from ..tasks.exemplars import draw_exemplars, load_exemplars, without_exemplars
from ..tasks.prompts import Prompt, make_prompts, templates
from ..tasks.result import ENGLISH, ORIGINAL
from ..tasks.run import Condition, require_room
from ..tasks.task import Question, Task, limited, load_questions
from ..text import Corpus, load_corpus
from ..text.choices import listed, require_choice
from .sets import arm_set

logger = logging.getLogger("mwork_lens")

PARTS: Mapping[str, tuple[str, ...]] = {ALL_LAYERS: (ALL_LAYERS,), "stage": STAGES, "stage and structure": MWORK_PARTS}
"""Parts of the model in which neurons are switched off, one at a time."""


def task_of(name: str, options: TaskOptions) -> Task:
    """The task of an experiment; ValueError for an unknown one of either."""
    require_choice("name", name, TASK_EXPERIMENTS)
    task = options.task or TASK_EXPERIMENTS[name].task
    require_choice("task", task, TASKS)
    return TASKS[task]


def asked_of(name: str, options: TaskOptions) -> "Asked":
    """What an experiment asks; a ValueError for data, languages or arms that are not there, without a model."""
    task = task_of(name, options)
    asked = Asked(name, TASK_EXPERIMENTS[name], task, options)
    _ = asked.off
    return asked


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
class AskedOfModel:
    """The same of one model; what does not go together is refused by :meth:`settings`."""

    asked: Asked
    model: HookedModel

    @cached_property
    def stages(self) -> Stages:
        """Which layers belong to which."""
        options = self.asked.options
        return Stages(self.model, understanding=options.understanding, generation=options.generation)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """By language, of the questions that are asked."""
        asked = self.asked
        options = {name: getattr(asked.options, name) for name in ("chat", "max_tokens", "wording")}
        options["exemplars"] = asked.exemplars
        prompts = {tag: make_prompts(self.model, asked.task, rows, **options) for tag, rows in asked.questions.items()}
        require_room(self.model, prompts, asked.max_new_tokens)
        return prompts

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result."""
        model, task, options, source = self.model, self.asked.task, self.asked.options, self.asked.source
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
            "questions": {language: len(questions) for language, questions in self.asked.questions.items()},
            "of": {language: len(questions) for language, questions in self.asked.all_questions.items()},
            "templates": {language: templates(task.name, options.wording)[language] for language in self.prompts},
            "chat": uses_chat(model, options.chat),
            "thinking": thinking(model, options.chat),
            "item": self.asked.experiment.item,
            "off": self.asked.off,
            "arms": self.asked.arms,
            "parts": PARTS[self.asked.experiment.by],
            "stages": {stage: [layers.start, layers.stop - 1] for stage, layers in self.stages},
            "found_on": detecting,
            **{name: getattr(options, name) for name in _DECIDING},
            "max_new_tokens": self.asked.max_new_tokens,
            **({"exemplars": self._exemplars_record()} if options.exemplars else {}),
        }

    def _exemplars_record(self) -> dict[str, Any]:
        ids = {language: [question.id for question in rows] for language, rows in self.asked.exemplars.items()}
        return {"from": self.asked.options.exemplars_from or "the questions", "ids": ids}

    def conditions(self, detection: Detection) -> tuple[list[Condition], frozenset[tuple[str, str, str]]]:
        """The original model, then every arm in every part for every language whose neurons are switched off.

        A language is asked with its own neurons off, English with each language's. Also returns the arm, part and
        language of sets that hold no neurons, which are not run.
        """
        asked, options = tuple(self.asked.questions), self.asked.options
        conditions, empty = [Condition(ORIGINAL, "", None, None, asked)], set()
        pairs = product(self.asked.arms, self.asked.off)
        sets = {pair: arm_set(pair[0], detection, pair[1], options.quorum, options.seed) for pair in pairs}
        for arm, part, language in product(self.asked.arms, PARTS[self.asked.experiment.by], self.asked.off):
            neurons = sets[arm, language]
            neurons = neurons if part == ALL_LAYERS else self.stages.select(neurons, part)
            if len(neurons):
                reads = tuple(read for read in (language, ENGLISH) if read in asked)
                conditions.append(Condition(arm, part, language, neurons, reads))
            else:
                empty.add((arm, part, language))
        return conditions, frozenset(empty)


_DECIDING = ("limit", "without", "quorum", "max_tokens", "seed", "batch_size")
