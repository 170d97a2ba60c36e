"""The settings of the experiments, as their functions and the command line take them; quick to import."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from ..settings import (
    COMMAS,
    DETECTION,
    FRACTIONS,
    LINES,
    NO_OPTION,
    DetectionSettings,
    Names,
    Positive,
    Reader,
    RecipeSettings,
    SavedDetection,
    Seeds,
    StageSettings,
    TextSettings,
    at_least,
    whole_numbers,
)

ENGLISH = "en"


# --- effects and the report ---


@dataclass(frozen=True)
class EffectsConfig(DetectionSettings, StageSettings):
    """What is ablated and measured, compared with each language's own neurons."""

    controls: Names = ()
    """Languages whose sets are compared with every control; in a report by default the first one."""
    seeds: Seeds = (0,)
    """Draws of each control."""
    stages: Names = ()
    """Languages of the stage grid, which reads these and English; in a report by default all but English."""
    folds: Annotated[int, Reader(int, at_least(2))] = 2
    """Detections, each on all other folds' documents; effects are measured on the fold's own."""
    passages: int | None = None
    """At most this many held-out passages per language and fold."""
    against_quorum: Annotated[float | None, NO_OPTION] = None
    """Share of other languages' documents that makes a neuron theirs; the quorum if None."""
    seed: Annotated[int, NO_OPTION] = 0
    """Of the division of documents."""

    def of_effects(self) -> dict[str, Any]:
        """These settings by name, without those of a larger run."""
        return {field.name: getattr(self, field.name) for field in fields(EffectsConfig)}


@dataclass(frozen=True)
class ReportConfig(EffectsConfig):
    """What a report measures; its effects are those of a single detection."""

    held_out: float = 0.25
    """Share of the documents that detection does not see and everything else is measured on."""
    prompts: Positive = 5
    """Held-out passages per language for the language ratio and the completions."""
    new_tokens: Annotated[Positive, "--max-new-tokens"] = 24
    """Of each completion."""
    cards: Positive = 6
    """Neurons shown per language."""
    identifier: str = "lingua"
    """lingua, script or cld3."""


# --- tasks ---

ALL_LAYERS = "all layers"
ARMS = ("random", "matched random", "specific", "random as active", "active")
"""``random`` and ``matched random`` are as many as ``specific``; ``random as active`` as many as ``active``."""
OVERLAP_ARMS = ("random as active", "active", "active but not English's")


@dataclass(frozen=True)
class TaskExperiment:
    """One of the paper's tables."""

    name: str
    item: str
    """What it is in the paper."""
    task: str
    by: Literal["all layers", "stage", "stage and structure"]
    """The parts of the model in which neurons are switched off, one at a time."""
    arms: Sequence[str] = ARMS


TASK_EXPERIMENTS: Mapping[str, TaskExperiment] = {
    experiment.name: experiment
    for experiment in (
        TaskExperiment("summarization", "Table 1, XL-Sum: all of a language's neurons off", "xlsum", ALL_LAYERS),
        TaskExperiment("understanding", "XQuAD, by stage", "xquad", "stage"),
        TaskExperiment("reasoning", "MGSM, by stage and structure", "mgsm", "stage and structure"),
        TaskExperiment("knowledge", "X-CSQA, by stage and structure", "xcsqa", "stage and structure"),
        TaskExperiment("generation", "XL-Sum, by stage and structure", "xlsum", "stage and structure"),
        TaskExperiment(
            "english-overlap",
            "appendix: all active neurons off, against those that are not English's too",
            "xlsum",
            ALL_LAYERS,
            OVERLAP_ARMS,
        ),
    )
}


@dataclass(frozen=True)
class TaskOptions:
    """What is asked, and whose neurons are switched off; everything here decides the result and is recorded."""

    data: str | None = None
    """A folder or file of the task; the hub by default."""
    languages: Annotated[Sequence[str] | None, COMMAS] = None
    """In which questions are asked; by default those that there are data and neurons for."""
    off: Annotated[Sequence[str] | None, COMMAS] = None
    """Whose neurons are switched off; by default those languages but English, or all detected ones but English."""
    limit: int | None = None
    """At most this many questions per language."""
    without: Annotated[Sequence[str], LINES] = ()
    """Ids of questions to leave out in every language, e.g. those that chose the stages; the option takes a file."""
    task: str | None = None
    """xquad, mgsm, xcsqa or xlsum; by default the experiment's own."""
    arms: Annotated[Sequence[str] | None, COMMAS] = None
    """Rows of the table, by default the experiment's own."""
    quorum: float = DetectionSettings.quorum
    understanding: int | None = StageSettings.understanding
    generation: int | None = StageSettings.generation
    chat: bool | None = None
    """Whether prompts are chats; by default if the tokenizer has a template."""
    max_new_tokens: Positive = 128
    """After which an answer ends."""
    max_tokens: Positive = 512
    """Articles are cut so that the prompt is no longer."""
    seed: int = 0
    """Of the random neurons."""
    batch_size: Positive = 16
    """Prompts at a time."""
    detection: Annotated[str | Path | None, DETECTION] = SavedDetection.detection
    corpus: str = TextSettings.corpus
    passages: int = 40
    """Passages per language to find neurons on."""
    sentences_per_passage: int = TextSettings.sentences_per_passage
    top: float = DetectionSettings.top
    shown: Annotated[bool, NO_OPTION] = True
    """Whether to show bars."""


# --- enhancement ---

TUNED_ARMS: Mapping[str, str] = MappingProxyType(
    {
        "random": "as many uniformly random neurons",
        "matched": "as many neurons with equal scores",
        "specific": "the language's own neurons",
        "all": "all parameters",
        "english-text": "the language's own neurons, tuned on the same documents in English",
        "other-neurons": "another language's neurons, tuned on this language's documents",
    }
)
"""What is tuned, compared with the original model."""


@dataclass(frozen=True, kw_only=True)
class EnhancementConfig(DetectionSettings):
    """What is compared; by default the paper's recipe (section 5.1), with the controls that it lacks."""

    languages: Annotated[Names, "--tune"]
    """Languages to improve, one after the other."""
    documents: Annotated[Sequence[int], whole_numbers(2)] = (400,)
    """Passages to tune on; smaller numbers are parts of larger ones, and every arm sees the same."""
    arms: Annotated[Sequence[str], Reader(str, COMMAS.read, lambda _: None)] = tuple(TUNED_ARMS)
    """Of random, matched, specific, all, english-text, other-neurons; all by default."""
    seeds: Seeds = (0, 1)
    """Draws of the tuning passages, their order and the controls."""
    paper_rate: Annotated[float | None, Reader(float, lambda _, rate: rate or None)] = 2e-6
    """The learning rate at which every arm is tuned; 0 leaves it out."""
    rates: Annotated[Sequence[float], FRACTIONS] = (1e-5, 1e-4, 1e-3)
    """Every arm is tuned at its own rate too: that of these with the lowest development loss; none leaves it out."""
    batch_size: int = RecipeSettings.batch_size
    micro_batch_size: int | None = RecipeSettings.micro_batch_size
    epochs: int = RecipeSettings.epochs
    detection: Annotated[int, "--detection-passages"] = 40
    """Passages per language to find neurons on."""
    development: Annotated[int, "--development-passages"] = 20
    """Passages per language to choose rates on."""
    evaluation: Annotated[int, "--evaluation-passages"] = 40
    """Passages per language to measure the result on."""
    seed: Annotated[int, NO_OPTION] = 0
    """Of the division of documents."""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in TUNED_ARMS]
        if unknown or not self.arms:
            raise ValueError(f"arms={list(self.arms)}: they must be among {', '.join(TUNED_ARMS)}.")
        for name in ("languages", "documents", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: give at least one, and none twice.")
        rates = [rate for rate in (*self.rates, self.paper_rate) if rate is not None]
        if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"rates={list(self.rates)}, paper_rate={self.paper_rate}: rates must be above 0.")
        counts = {name: getattr(self, name) for name in ("detection", "development", "evaluation")}
        for name, value in {**counts, "documents": min(self.documents)}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    def arms_of(self, language: str) -> list[str]:
        """The arms that make sense for a language: English is its own English text."""
        return [arm for arm in self.arms if not (arm == "english-text" and language == ENGLISH)]

    def divide(self, corpus: Any) -> dict[str, Any]:
        """Disjoint parts of the corpus by whole documents: detection, development, evaluation, tuning.

        Raises:
            ValueError: for a language that the corpus lacks, or too few documents.
        """
        needed = [*self.languages, *([ENGLISH] if "english-text" in self.arms else [])]
        missing = [language for language in needed if language not in corpus]
        if missing:
            raise ValueError(f"The corpus has no {missing[0]!r}; it has {', '.join(corpus)}.")
        sizes = {name: getattr(self, name) for name in ("detection", "development", "evaluation")}
        return corpus.divide({**sizes, "tuning": max(self.documents)}, seed=self.seed)
