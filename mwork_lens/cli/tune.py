"""``mwork-lens tune``: tune only a language's neurons."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import (
    CorpusOptions,
    LimitOption,
    ModelOptions,
    OutputOption,
    SelectionOptions,
    TokensOption,
    new_folder,
    say_written,
)


@dataclass(frozen=True)
class RecipeOptions:
    """What tuning does to the weights."""

    learning_rate: Annotated[float, Option("--learning-rate", help="The highest, reached after warm-up.")] = 2e-6
    weight_decay: Annotated[float, Option("--weight-decay", help="On the selected weights only.")] = 0.0
    batch_size: Annotated[int, Option("--batch-size", help="Texts a step.")] = 32
    micro_batch_size: Annotated[int | None, Option("--micro-batch-size", help="Texts at a time.")] = None
    epochs: Annotated[int, Option("--epochs", help="Passes over the texts.")] = 1
    steps: Annotated[int | None, Option("--steps", help="Optimiser steps, instead of epochs.")] = None
    gate: Annotated[bool, Option("--gate", help="Columns of W_gate too.")] = False
    seed: Annotated[int, Option("--seed", help="Of the order of the texts.")] = 0
    max_tokens: TokensOption = 512


@dataclass(frozen=True)
class StoppingOptions:
    """When it is measured and stopped."""

    evaluate_every: Annotated[int | None, Option("--evaluate-every", help="Steps between measurements.")] = None
    patience: Annotated[int | None, Option("--patience", help="Stop after as many without a new best.")] = None
    checkpoint: Annotated[Path | None, Option("--checkpoint", help="A killed run goes on from here.")] = None


def tune(
    language: Annotated[str, Option("--language", help="Whose texts to tune on, and whose neurons to detect.")],
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    settings: RecipeOptions,
    stopping: StoppingOptions,
    neurons: Annotated[Path | None, Option("--neurons", help="A saved set; none: detect it on the corpus.")] = None,
    limit: LimitOption = None,
    held_out: Annotated[float, Option("--held-out", help="Share of the corpus to measure on.")] = 0.2,
    export: Annotated[bool, Option("--export", help="Also write the tuned model for transformers.")] = False,
    output: OutputOption = None,
) -> None:
    """Tune only a language's neurons; writes what changed, the losses and, on request, the tuned model."""
    from .. import tuning
    from ..tuning import export_tuned

    recipe = tuning.Recipe(**asdict(settings))
    folder = new_folder(output, "tuned")
    train, rest = text.load(limit).split(held_out)
    texts, measured = train[language], rest[language]
    hooked = model.load()
    chosen = _chosen(language, neurons, hooked, train, selection, recipe.max_tokens)
    print(chosen)
    tuned = tuning.tune(hooked, chosen, texts, held_out=measured, **asdict(recipe), **asdict(stopping))
    print(tuned.summary())
    written = _write(folder, chosen, tuned)
    if export:
        assert tuned.delta is not None  # of a set there always is one
        written.append(export_tuned(hooked, tuned.delta, folder / "model", source=model.model))
    say_written(written)


def _chosen(
    language: str, path: Path | None, model: Any, train: Any, selection: SelectionOptions, max_tokens: int
) -> Any:
    """The saved set, or the language's specific neurons, detected on all languages of ``train``."""
    from ..detection import detect
    from ..neurons import NeuronSet

    if path is not None:
        return NeuronSet.load(path)
    if len(train) < 2:
        raise ValueError(
            f"{language!r} alone has no specific neurons: give --languages to compare it with, or --neurons."
        )
    found = detect(model, train, top=selection.top, max_tokens=max_tokens)
    return found.specific(language, quorum=selection.quorum)


def _write(folder: Path, chosen: Any, tuned: Any) -> list[Path]:
    """The set, the result, its delta, its tables and its figure."""
    from .. import plots
    from ..report import write_figure

    chosen.save(folder / "neurons")
    tuned.save(folder / "tuned")
    tuned.delta.save(folder / "delta")
    tuned.to_frame().to_csv(folder / "losses.csv", index=False)
    tuned.changes.to_csv(folder / "changes.csv", index=False)
    written = [folder / name for name in ("neurons", "tuned", "delta", "losses.csv", "changes.csv")]
    return written + write_figure(folder / "losses", plots.tuning(tuned))
