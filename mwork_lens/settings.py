"""Settings that commands and experiments share, each declared once; a field's docstring is the help of its option.

A field may be annotated with the name of its option where that is another one, and with a :class:`Reader` where the
option is of another type than the setting. A field whose default is another group's is the same setting, and has its
docstring.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

DEMO_LANGUAGES = ("en", "fr", "zh", "ru", "th")
"""Of the demo text, where no languages are named."""
NO_OPTION = ""
"""Annotates a setting that the command line does not have."""


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


def whole_numbers(least: int) -> Reader:
    """Whole numbers from ``least`` on, separated by commas."""

    def read(option: str, text: str) -> list[int]:
        numbers = split_commas(text)
        if not numbers or not all(number.isdigit() and int(number) >= least for number in numbers):
            raise ValueError(f"{option} {text}: give whole numbers from {least} on with commas, e.g. 64,128.")
        return [int(number) for number in numbers]

    return Reader(str, read, join_commas)


def fractions(option: str, text: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(number) for number in split_commas(text)]
    except ValueError:
        raise ValueError(f"{option} {text}: give numbers with commas, e.g. 1e-4,1e-3.") from None


def at_least(least: int) -> Callable[[str, int], int]:
    """The number itself, unless it is smaller."""

    def read(option: str, number: int) -> int:
        if number < least:
            raise ValueError(f"{option} {number}: it must be at least {least}.")
        return number

    return read


def lines(option: str, path: Path) -> tuple[str, ...]:
    """The lines of a file that hold more than spaces."""
    if not path.is_file():
        raise FileNotFoundError(f"{option}: there is no file {str(path)!r}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def saved_detection(path: Path) -> Path:
    """A saved detection, or the one within a folder of ``mwork-lens detect``."""
    return path / "detection" if (path / "detection").is_dir() else path


COMMAS = Reader(str, lambda _, text: split_commas(text), join_commas)
FRACTIONS = Reader(str, fractions, join_commas)
DETECTION = Reader(Path, lambda _, path: saved_detection(path))
DETECTIONS = Reader(list[Path], lambda _, paths: [saved_detection(path) for path in paths])
LINES = Reader(Path, lines, lambda _: None)
POSITIVE = Reader(int, at_least(1))
DRAWS = Reader(int, lambda option, number: tuple(range(at_least(1)(option, number))), len)
"""Seeds, of which the command line has the number."""

Names = Annotated[Sequence[str], COMMAS]
Positive = Annotated[int, POSITIVE]
Seeds = Annotated[Sequence[int], DRAWS]


@dataclass(frozen=True)
class ModelSettings:
    """A model, and where it is computed."""

    model: str = "demo"
    """demo, a TransformerLens or hub name, a directory, a .gguf."""
    device: str | None = None
    """cpu, cuda, mps; by default CUDA if there is one."""
    dtype: str = "float32"
    """float32, bfloat16, float16 or float64."""

    def load(self) -> Any:
        """The hooked model."""
        from .model import load_model

        return load_model(self.model, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class TextSettings:
    """Text by language."""

    languages: Annotated[Sequence[str] | None, COMMAS] = None
    """BCP 47 tags with commas, e.g. en,fr."""
    corpus: str = "demo"
    """demo, a folder with one file per language, or a hub id."""
    sentences_per_passage: int = 1
    """Neighbouring lines joined into one."""
    limit: int | None = None
    """At most this many passages per language."""

    def load(self, languages: Sequence[str] | None = None) -> Any:
        """The corpus, in ``languages`` if none are set; warns of too few passages to find neurons on."""
        from .text import load_corpus

        wanted: Any = languages if self.languages is None else self.languages
        joined = self.sentences_per_passage
        return load_corpus(self.corpus, languages=wanted, sentences_per_passage=joined, limit=self.limit)

    def prompts(self) -> Any:
        """A few passages to read: cut after loading, without that warning."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: it must be at least 1.")
        corpus = replace(self, limit=None).load()
        return corpus if self.limit is None else corpus.limit(self.limit)


@dataclass(frozen=True)
class DetectionSettings:
    """When a neuron belongs to a language."""

    top: float = 0.2
    """Active: the top fraction of each layer and site."""
    quorum: float = 0.9
    """Share of documents on which a neuron must be active."""
    max_tokens: int = 512
    """Longer documents are cut there."""

    def check(self) -> None:
        """Refuse a fraction outside of 0 to 1 before anything is loaded."""
        from .detection import selection_rule

        selection_rule(self.top, None)


@dataclass(frozen=True)
class SavedDetection:
    """A detection that is there already."""

    detection: Annotated[Path | None, DETECTION] = None
    """A folder of mwork-lens detect, instead of detecting on the corpus."""


@dataclass(frozen=True)
class StageSettings:
    """Where the stages of the workflow begin and end."""

    understanding: int | None = None
    """N1: the first layers, which understand; by default a quarter of all."""
    generation: int | None = None
    """N2: the last layers, which generate; by default an eighth of all."""


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


@dataclass(frozen=True)
class OutputSettings:
    """Where results are written."""

    output: Path | None = None
    """A directory that is new or empty."""

    def path(self, name: str) -> Path:
        """As set, else the first free directory named after the command."""
        names = (f"mwork-lens-{name}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        return self.output or next(path for path in map(Path, names) if not path.exists())

    def new_folder(self, name: str) -> Path:
        """The directory, made.

        Raises:
            FileExistsError: if something is there already.
        """
        from .store import require_free

        folder = require_free(self.path(name))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class ResumedOutput(OutputSettings):
    """Where results are written, and a run that was stopped goes on."""

    output: Path | None = None
    """A new directory, or one to resume."""
