"""Settings of commands and experiments, each declared once, a field's docstring being the help of its option.

A field may be annotated with the name of its option where that is another one, and with a :class:`Reader` where the
option is of another type than the setting. A field whose default is another group's is the same setting, and has its
docstring. This module is quick to import.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

ENGLISH = "en"
Overlap = Literal["warn", "refuse"]
"""What to do where documents that are measured on were read when neurons were found."""
NO_OPTION = ""
"""Annotates a setting that the command line does not have."""


# --- from options to settings ---


@dataclass(frozen=True)
class Reader:
    """How the value of an option becomes a setting."""

    kind: Any
    """Type of the option."""
    read: Callable[[str, Any], Any]
    """The setting, from the option's name and value."""
    show: Callable[[Any], Any] = lambda default: default
    """The option's default, from the setting's."""


def split_commas(text: str) -> list[str]:
    """Comma-separated values, without duplicates, in order."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def join_commas(values: Sequence[Any] | None) -> str | None:
    """The inverse of :func:`split_commas`; None without values. Fractions are written as powers of ten."""
    texts = [f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) else str(value) for value in values or ()]
    return ",".join(texts) or None


def numbers(least: int) -> Reader:
    """Whole numbers from ``least`` on, separated by commas."""

    def read(option: str, text: str) -> list[int]:
        parts = split_commas(text)
        if not parts or not all(part.isdigit() and int(part) >= least for part in parts):
            raise ValueError(f"{option} {text}: give whole numbers from {least} on with commas, e.g. 64,128.")
        return [int(part) for part in parts]

    return Reader(str, read, join_commas)


def at_least(least: int) -> Reader:
    """A whole number from ``least`` on."""

    def read(option: str, number: int) -> int:
        if number < least:
            raise ValueError(f"{option} {number}: it must be at least {least}.")
        return number

    return Reader(int, read)


def _fractions(option: str, text: str) -> list[float]:
    try:
        return [float(number) for number in split_commas(text)]
    except ValueError:
        raise ValueError(f"{option} {text}: give numbers with commas, e.g. 1e-4,1e-3.") from None


def _lines(option: str, path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"{option}: there is no file {str(path)!r}.")
    from .text import read_lines  # takes long to import

    return tuple(line.strip() for line in read_lines(path) if line.strip())


def _detection(_: str, path: Path) -> Path:
    """A saved detection, or the one within a folder of ``mwork-lens detect``."""
    return path / "detection" if (path / "detection").is_dir() else path


def _shard(option: str, text: str | None) -> tuple[int, int] | None:
    """``0/8`` to ``7/8`` as numbers."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"{option} {text}: give a part and the number of parts, from 0/8 to 7/8.")
    return int(found[1]), int(found[2])


def _assignments(option: str, text: str, example: str) -> dict[str, str]:
    """``name=value`` with commas."""
    pairs = [part.partition("=") for part in split_commas(text)]
    if not pairs or not all(name and value for name, _, value in pairs):
        raise ValueError(f"{option} {text}: give {example}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _numbered(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _device_map(option: str, text: str) -> str | dict[str, int | str]:
    if text == "auto":
        return text
    places = _assignments(
        option, text, "auto, or where parts are, with * for all others, e.g. '*=cpu,model.layers.3=disk'"
    )
    return {"" if part == "*" else part: _numbered(place) for part, place in places.items()}


def _max_memory(option: str, text: str) -> dict[int | str, str]:
    sizes = _assignments(option, text, "sizes by device, e.g. 0=20GiB,1=20GiB")
    return {_numbered(device): size for device, size in sizes.items()}


COMMAS = Reader(str, lambda _, text: split_commas(text), join_commas)
DETECTION = Reader(Path, _detection)
DEVICE_MAP, MAX_MEMORY = Reader(str, _device_map), Reader(str, _max_memory)
SHARD = Reader(str, _shard)
"""Which part of how many."""
DETECTIONS = Reader(list[Path], lambda option, paths: [_detection(option, path) for path in paths])

Names = Annotated[Sequence[str], COMMAS]
OptionalNames = Annotated[Sequence[str] | None, COMMAS]
Positive = Annotated[int, at_least(1)]
Seeds = Annotated[
    Sequence[int], Reader(int, lambda option, number: tuple(range(at_least(1).read(option, number))), len)
]
"""Of which the command line has the number."""


# --- shared by commands ---


class Checked:
    """Base of settings whose values are compared with their annotations: a ValueError names the first that differs."""

    def __post_init__(self) -> None:
        from .text import check_settings  # takes long to import

        check_settings(self)


@dataclass(frozen=True)
class DetectionSettings(Checked):
    """When a neuron belongs to a language."""

    top: float = 0.2
    """Active: the top fraction of each layer and site."""
    quorum: float = 0.9
    """Share of documents on which a neuron must be active."""
    max_tokens: int = 512
    """Longer documents are cut there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top <= 1:
            raise ValueError(f"top={self.top} is outside (0, 1].")
        if not 0 < self.quorum <= 1:
            raise ValueError(f"quorum={self.quorum} is outside (0, 1].")


@dataclass(frozen=True)
class PartOf:
    """Which batches of the text are read."""

    shard: Annotated[tuple[int, int] | None, SHARD] = None
    """Only this part of the text, 0/8 to 7/8; mwork-lens merge makes a whole of all."""

    @property
    def record(self) -> dict[str, Any]:
        """What the settings of a folder say of it; nothing of a whole."""
        return {} if self.shard is None else {"shard": list(self.shard)}


@dataclass(frozen=True)
class StreamSettings(Checked):
    """How text is read that may be larger than memory."""

    streaming: bool = False
    """Read a window of the text at a time, also of .parquet files and hub data sets; memory does not grow with it."""
    window: Annotated[int | None, at_least(1)] = None
    """Passages of all languages that are read and planned together; by default 4096."""
    max_tokens_per_language: Annotated[int | None, at_least(1)] = None
    """A streamed language ends with the passage that reaches so many."""

    def options(self) -> dict[str, Any]:
        """Those of ``load_corpus``."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SavedSets:
    """Neurons that are there already."""

    detection: Annotated[Path | None, DETECTION] = None
    """A folder of mwork-lens detect, instead of detecting on the corpus."""
    neurons: list[Path] | None = None
    """A saved set; repeat the option."""


@dataclass(frozen=True)
class RecipeSettings:
    """What tuning does to the weights, by default the paper's recipe."""

    learning_rate: float = 2e-6
    """The highest, reached after warm-up."""
    weight_decay: float = 0.0
    """Decoupled (AdamW), on the selected weights only."""
    batch_size: int = 32
    """Texts per step."""
    micro_batch_size: int | None = None
    """Texts at a time; by default as many as 1024 tokens hold."""
    epochs: int = 1
    """Passes over the texts."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    max_tokens: int = DetectionSettings.max_tokens
    gate: bool = False
    """Columns of W_gate too."""
    seed: int = 0
    """Of the order of the texts."""


# --- effects and the report ---

IDENTIFIERS = ("lingua", "script", "cld3")


@dataclass(frozen=True)
class EffectsConfig(DetectionSettings):
    """What is ablated and measured, compared with each language's own neurons."""

    controls: Names = ()
    """Languages whose sets are compared with every control; in a report by default the first one."""
    seeds: Seeds = (0,)
    """Draws of each control."""
    stages: Names = ()
    """Languages of the stage grid, which reads these and English; in a report by default all but English."""
    understanding: int | None = None
    """N1: the first layers, which understand; by default a quarter of all."""
    generation: int | None = None
    """N2: the last layers, which generate; by default an eighth of all."""
    folds: Annotated[int, at_least(2)] = 2
    """Detections, each on all other folds' documents; effects are measured on the fold's own."""
    passages: int | None = None
    """At most this many passages to measure on, per language (and fold, where there are folds)."""
    against_quorum: Annotated[float | None, NO_OPTION] = None
    """Share of other languages' documents that makes a neuron theirs; the quorum if None."""
    seed: Annotated[int, NO_OPTION] = 0
    """Of the division of documents."""
    overlap: Annotated[Overlap, Reader(str, lambda _, text: text)] = "warn"
    """warn of documents that were read when neurons were found, or refuse them."""


@dataclass(frozen=True)
class ReportConfig(EffectsConfig):
    """What a report measures; its effects are those of a single detection."""

    held_out: float = 0.25
    """Share of the documents that detection does not see and everything else is measured on."""
    prompts: Positive = 6
    """Held-out passages per language for the language ratio and the completions."""
    new_tokens: Annotated[Positive, "--max-new-tokens"] = 24
    """Of each completion."""
    cards: Positive = 6
    """Neurons shown per language."""
    identifier: str = "lingua"
    """lingua, script or cld3."""

    def __post_init__(self) -> None:
        from .text.choices import require_choice  # takes long to import

        super().__post_init__()
        require_choice("identifier", self.identifier, IDENTIFIERS)


# --- tasks ---

WORDINGS = ("corrected", "paper")

ALL_LAYERS = "all layers"
ARMS = ("random", "matched random", "specific", "random as active", "active")
"""``random`` and ``matched random`` are as many as ``specific``; ``random as active`` as many as ``active``."""
NOT_ENGLISH, RANDOM_AS_NOT_ENGLISH = "active but not English's", "random as active but not English's"
FEWER_ACTIVE = "as few active as not English's"
"""Drawn at random among all active ones, as many in each layer and site as are not English's."""
OVERLAP_ARMS = ("random as active", "active", RANDOM_AS_NOT_ENGLISH, FEWER_ACTIVE, NOT_ENGLISH)
TASK_ARMS = tuple(dict.fromkeys((*ARMS, *OVERLAP_ARMS)))
"""All that a task's experiment may have."""


@dataclass(frozen=True)
class TaskExperiment:
    """One of the paper's tables."""

    item: str
    """What it is in the paper."""
    task: str
    by: Literal["all layers", "stage", "stage and structure"]
    """The parts of the model in which neurons are switched off, one at a time."""
    arms: Sequence[str] = ARMS


_OVERLAP = "appendix: all active neurons off, against those that are not English's too, and as many of all"
TASK_EXPERIMENTS: Mapping[str, TaskExperiment] = {
    "summarization": TaskExperiment("Table 1, XL-Sum: all of a language's neurons off", "xlsum", ALL_LAYERS),
    "understanding": TaskExperiment("XQuAD, by stage", "xquad", "stage"),
    "reasoning": TaskExperiment("MGSM, by stage and structure", "mgsm", "stage and structure"),
    "knowledge": TaskExperiment("X-CSQA, by stage and structure", "xcsqa", "stage and structure"),
    "generation": TaskExperiment("XL-Sum, by stage and structure", "xlsum", "stage and structure"),
    "english-overlap": TaskExperiment(_OVERLAP, "xlsum", ALL_LAYERS, OVERLAP_ARMS),
}


@dataclass(frozen=True)
class TaskOptions(Checked):
    """What is asked, and whose neurons are switched off; everything here decides the result and is recorded."""

    data: str | None = None
    """A folder or file of the task; the hub by default."""
    languages: OptionalNames = None
    """In which questions are asked; by default those that there are data and neurons for."""
    off: OptionalNames = None
    """Whose neurons are switched off; by default those languages but English, or all detected ones but English."""
    limit: int | None = None
    """At most this many questions per language."""
    without: Annotated[Sequence[str], Reader(Path, _lines, lambda _: None)] = ()
    """Ids of questions to leave out in every language, e.g. those that chose the stages; the option takes a file."""
    task: str | None = None
    """xquad, mgsm, xcsqa or xlsum; by default the experiment's own."""
    arms: OptionalNames = None
    """Rows of the table, by default the experiment's own."""
    quorum: float = DetectionSettings.quorum
    understanding: int | None = EffectsConfig.understanding
    generation: int | None = EffectsConfig.generation
    chat: bool | None = None
    """Whether prompts are chats; by default if the tokenizer has a template."""
    max_new_tokens: Annotated[int | None, at_least(1)] = None
    """After which an answer ends; by default the task's own limit."""
    max_tokens: Positive = 512
    """Articles are cut so that the prompt, without worked examples, is not longer."""
    seed: int = 0
    """Of the random neurons, and of the worked examples."""
    batch_size: Positive = 16
    """Prompts at a time."""
    detection: Annotated[str | Path | None, DETECTION] = SavedSets.detection
    corpus: str = "demo"
    """demo, a folder with one file per language, or a hub id."""
    passages: int = 40
    """Passages per language to find neurons on."""
    sentences_per_passage: int = 1
    """Neighbouring lines joined into one."""
    top: float = DetectionSettings.top
    shown: Annotated[bool, NO_OPTION] = True
    """Whether to show bars."""
    wording: str = "corrected"
    """corrected, or paper: with the slips of the paper's prompts (MGSM in English)."""
    exemplars: Annotated[int, at_least(0)] = 0
    """Worked examples before each question; they are drawn from the questions and then not asked."""
    exemplars_from: str | None = None
    """The data's own examples instead, a folder or file as --data, e.g. mgsm_exemplars.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        from .text.choices import require_choice  # takes long to import

        for arm in self.arms or ():
            require_choice("arms", arm, TASK_ARMS)
        require_choice("wording", self.wording, WORDINGS)
        if self.exemplars < 0 or (self.exemplars_from is not None and not self.exemplars):
            raise ValueError(f"exemplars={self.exemplars}: say how many worked examples stand before each question.")


# --- enhancement ---

TUNED_ARMS: Mapping[str, str] = {
    "random": "as many uniformly random neurons",
    "matched": "as many neurons with equal scores",
    "specific": "the language's own neurons",
    "all": "all parameters: a reference and not a control, which cannot be of this size",
    "english-text": "the language's own neurons, tuned on the same documents in English",
    "other-neurons": "another language's neurons, at most as many, tuned on this language's documents",
    "own-as-few": "the language's own neurons, cut at random to as many as other-neurons",
}
"""What is tuned, compared with the original model."""


@dataclass(frozen=True, kw_only=True)
class EnhancementConfig(DetectionSettings):
    """What is compared; by default the paper's recipe (section 5.1), with the controls that it lacks."""

    languages: Annotated[Names, "--tune"]
    """Languages to improve, one after the other."""
    documents: Annotated[Sequence[int], numbers(2)] = (400,)
    """Passages to tune on; smaller numbers are parts of larger ones, and every arm sees the same."""
    arms: Annotated[Sequence[str], Reader(str, COMMAS.read, lambda _: None)] = tuple(TUNED_ARMS)
    """Of random, matched, specific, all, english-text, other-neurons, own-as-few; all by default."""
    seeds: Seeds = (0, 1)
    """Draws of the tuning passages, their order and the controls."""
    paper_rate: Annotated[float | None, Reader(float, lambda _, rate: rate or None)] = 2e-6
    """The learning rate at which every arm is tuned; 0 leaves it out."""
    rates: Annotated[Sequence[float], Reader(str, _fractions, join_commas)] = (1e-5, 1e-4, 1e-3)
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
    seed: Annotated[int, NO_OPTION] = EffectsConfig.seed
    xquad: str | None = None
    """Also measure on XQuAD's contexts: its folder, or hub."""
    mgsm: str | None = None
    """Also measure on MGSM's questions: its folder, or hub."""
    domain_passages: int = 20
    """Passages per language, of these two."""

    def __post_init__(self) -> None:
        from .text.choices import require_choice  # takes long to import

        super().__post_init__()
        for arm in self.arms:
            require_choice("arms", arm, TUNED_ARMS)
        for name in ("arms", "languages", "documents", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: give at least one, and none twice.")
        rates = [rate for rate in (*self.rates, self.paper_rate) if rate is not None]
        if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"rates={list(self.rates)}, paper_rate={self.paper_rate}: rates must be above 0.")
        for name, value in {**self.part_sizes, "documents": min(self.documents)}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def part_sizes(self) -> dict[str, int]:
        """Passages per language of each part of the corpus, but for tuning."""
        return {"detection": self.detection, "development": self.development, "evaluation": self.evaluation}

    def arms_of(self, language: str) -> list[str]:
        """The arms that make sense for a language: English is its own English text."""
        return [arm for arm in self.arms if not (arm == "english-text" and language == ENGLISH)]

    def divide(self, corpus: Any) -> dict[str, Any]:
        """Detection, development, evaluation and tuning: parts of the corpus without a document in common.

        A ValueError for a language that it lacks, or too few documents.
        """
        from .text.choices import listed  # takes long to import

        needed = [*self.languages, *([ENGLISH] if "english-text" in self.arms else [])]
        if absent := [language for language in needed if language not in corpus]:
            raise ValueError(f"The corpus has no {absent[0]!r}; it has {listed(corpus, absent[0])}.")
        return corpus.divide({**self.part_sizes, "tuning": max(self.documents)}, seed=self.seed)


# --- plans ---

PLANNED_DTYPES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a weight."""


@dataclass(frozen=True)
class PlanConfig(Checked):
    """What is to be run, on how many devices."""

    shape: str = "8B"
    """8B, 70B, or a config.json of transformers or the folder that holds it."""
    n_languages: Positive = 32
    """How many."""
    tokens: Positive = 10_000_000
    """Per language."""
    tokens_per_document: Positive = DetectionSettings.max_tokens
    """On average; the cost of query and key scores grows with it."""
    effect_passages: Positive = 64
    """Per language, for an effect matrix of as many documents that switches off each language's neurons in turn."""
    devices: Positive = 1
    """GPUs in all."""
    dtype: str = "bfloat16"
    """bfloat16, float16 or float32."""

    def __post_init__(self) -> None:
        from .text.choices import require_choice  # takes long to import

        super().__post_init__()
        require_choice("dtype", self.dtype, PLANNED_DTYPES)


@dataclass(frozen=True)
class Rates(Checked):
    """What one device does, by default an H100; all but the memory per second."""

    flops: float | None = None
    """Operations of matrix products; by default 600e12, in float32 40e12."""
    bandwidth: float = 3e12
    """Bytes read or written."""
    exponentials: float = 3.6e12
    """Exponential functions."""
    lanes: float = 28e12
    """Other operations in float32."""
    memory: float = 80e9
    """Bytes of memory."""
    batch_tokens: Positive = 16384
    """Tokens of a batch at most, fewer where memory is short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value!r}: it must be above 0.")
