"""The options that commands share, in groups that load what they name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

ModelOption = Annotated[str, Option("--model", help="demo, a TransformerLens or hub name, a directory, a .gguf.")]
DeviceOption = Annotated[str | None, Option("--device", help="cpu, cuda, mps; by default CUDA if there is one.")]
DtypeOption = Annotated[str, Option("--dtype", help="float32, bfloat16, float16 or float64.")]
LanguagesOption = Annotated[str | None, Option("--languages", help="BCP 47 tags with commas, e.g. en,fr.")]
CorpusOption = Annotated[str, Option("--corpus", help="demo, a folder with a file a language, or a hub id.")]
SentencesOption = Annotated[int, Option("--sentences-per-passage", help="Neighbouring lines joined into one.")]
LimitOption = Annotated[int | None, Option("--limit", help="At most this many passages a language.")]
PassagesOption = Annotated[int, Option("--passages", help="Of each language, to find sets on.")]
OutputOption = Annotated[Path | None, Option("--output", help="A directory that is new or empty.")]
ResumedOption = Annotated[Path | None, Option("--output", help="A new directory, or one to resume.")]
TopOption = Annotated[float, Option("--top", help="Active: the top fraction of each layer and site.")]
QuorumOption = Annotated[float, Option("--quorum", help="Share of documents on which a neuron must be active.")]
TokensOption = Annotated[int, Option("--max-tokens", help="Longer documents are cut there.")]
DetectionOption = Annotated[Path | None, Option("--detection", help="A folder of mwork-lens detect.")]


@dataclass(frozen=True)
class ModelOptions:
    """A model and where it is computed."""

    model: ModelOption = "demo"
    device: DeviceOption = None
    dtype: DtypeOption = "float32"

    def load(self) -> Any:
        """The hooked model."""
        from ..model import load_model

        return load_model(self.model, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class CorpusOptions:
    """Text by language."""

    languages: LanguagesOption = None
    corpus: CorpusOption = "demo"
    sentences_per_passage: SentencesOption = 1

    def load(self, limit: int | None = None) -> Any:
        """The corpus, at most ``limit`` passages a language; loading warns of too few to find neurons on."""
        from ..text import load_corpus

        kept: dict[str, Any] = {"languages": parts(self.languages), "limit": limit}
        return load_corpus(self.corpus, sentences_per_passage=self.sentences_per_passage, **kept)

    def prompts(self, limit: int | None) -> Any:
        """A few passages to read: cut after loading, without that warning."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: it must be at least 1.")
        return self.load() if limit is None else self.load().limit(limit)


@dataclass(frozen=True)
class SelectionOptions:
    """When a neuron belongs to a language."""

    top: TopOption = 0.2
    quorum: QuorumOption = 0.9

    def check(self) -> None:
        """Refuse a fraction that is none, before anything is loaded."""
        from ..detection import selection_rule

        selection_rule(self.top, None)


def saved_detection(path: Path) -> Path:
    """A saved detection, or the one within a folder of ``mwork-lens detect``."""
    return path / "detection" if (path / "detection").is_dir() else path


def load_detection(path: Path | None) -> Any:
    """The detection there, None without a path."""
    from ..detection import Detection

    return None if path is None else Detection.load(saved_detection(path))


def parts(given: str | None) -> list[str] | None:
    """What stands between commas, each once and in order; None for an option that is not given."""
    if given is None:
        return None
    return list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))


def numbers(option: str, given: str, *, least: int = 2) -> list[int]:
    """Whole numbers with commas.

    Raises:
        ValueError: for anything else, or a number below ``least``.
    """
    found = parts(given)
    if not found or not all(part.isdigit() and int(part) >= least for part in found):
        raise ValueError(f"{option} {given}: give whole numbers from {least} on with commas, e.g. 64,128.")
    return [int(part) for part in found]


def positive(option: str, number: int) -> int:
    """The number.

    Raises:
        ValueError: if it is below 1.
    """
    if number < 1:
        raise ValueError(f"{option} {number}: it must be at least 1.")
    return number


def new_folder(output: Path | None, name: str) -> Path:
    """The directory to write to, made: as given, else the first free one named after the command.

    Raises:
        FileExistsError: if something is there already.
    """
    from ..store import require_free

    folder = require_free(output or unused(name))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unused(name: str) -> Path:
    """The first free directory named after the command."""
    candidates = (Path(f"mwork-lens-{name}" if i == 1 else f"mwork-lens-{name}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def say_written(paths: Sequence[Path]) -> None:
    """The last line of every command."""
    print("Written: " + ", ".join(map(str, paths)))
