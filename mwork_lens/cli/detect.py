"""``mwork-lens detect | tune | bench``: each language's neurons, tuning them alone, and what both cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from ..settings import (
    DetectionSettings,
    ModelSettings,
    OutputSettings,
    Reader,
    RecipeSettings,
    TextSettings,
    at_least,
    whole_numbers,
)
from .options import print_written, write


@dataclass(frozen=True)
class DetectConfig:
    """How neurons are scored and selected."""

    threshold: float | None = None
    """Instead of --top: a least score."""
    formulation: str = "exact"
    """exact, paper or released."""
    scope: str = "layer"
    """Top fraction of each layer, or of the whole model."""


def detect(
    model: ModelSettings,
    text: TextSettings,
    selection: DetectionSettings,
    config: DetectConfig,
    output: OutputSettings,
) -> None:
    """Find each language's neurons; writes the detection, each language's specific set and their counts by layer."""
    from .. import plots
    from ..detection import detect, neuron_counts, selection_rule

    selection_rule(selection.top, config.threshold)
    folder = output.new_folder("detection")
    corpus = text.load()
    how: dict[str, Any] = {**asdict(config), "top": selection.top, "max_tokens": selection.max_tokens}
    detection = detect(model.load(), corpus, **how)
    several = len(detection.languages) > 1
    counts = neuron_counts(detection, kind="specific" if several else "active", quorum=selection.quorum)
    sets = {
        language: detection.specific(language, quorum=selection.quorum) if several else detection.active(language)
        for language in detection.languages
    }
    results = {"detection": detection, **sets}
    written = write(folder, results=results, tables={"counts": counts}, figures={"counts": plots.neuron_counts(counts)})
    print(*sets.values(), sep="\n")
    print_written(written)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is tuned, and when it is measured and stopped."""

    language: str
    """Whose texts to tune on, and whose neurons to detect."""
    neurons: Path | None = None
    """A saved set; none: detect it on the corpus."""
    held_out: float = 0.2
    """Share of the corpus to measure on."""
    export: bool = False
    """Also write the tuned model for transformers."""
    evaluate_every: int | None = None
    """Steps between measurements."""
    patience: int | None = None
    """Stop after as many measurements without a new best."""
    checkpoint: Path | None = None
    """A killed run goes on from here."""


def tune(
    model: ModelSettings,
    text: TextSettings,
    selection: Annotated[DetectionSettings, "max_tokens"],
    config: TuneConfig,
    recipe: RecipeSettings,
    output: OutputSettings,
) -> None:
    """Tune only a language's neurons; writes what changed, the losses and, on request, the tuned model."""
    from .. import plots, tuning

    tuning.Recipe(**asdict(recipe))
    folder = output.new_folder("tuned")
    train, held_out = text.load().split(config.held_out)
    texts, measured = train[config.language], held_out[config.language]
    hooked = model.load()
    neurons = _neurons(config, hooked, train, selection, recipe.max_tokens)
    print(neurons)
    stopping = {name: getattr(config, name) for name in ("evaluate_every", "patience", "checkpoint")}
    tuned = tuning.tune(hooked, neurons, texts, held_out=measured, **asdict(recipe), **stopping)
    print(tuned.summary())
    assert tuned.delta is not None  # of a set there always is one
    results = {"neurons": neurons, "tuned": tuned, "delta": tuned.delta}
    tables = {"losses": tuned.to_frame(), "changes": tuned.changes}
    written = write(folder, results=results, tables=tables, figures={"losses": plots.tuning(tuned)})
    if config.export:
        written.append(tuning.export_tuned(hooked, tuned.delta, folder / "model", source=model.model))
    print_written(written)


def _neurons(config: TuneConfig, model: Any, train: Any, selection: DetectionSettings, max_tokens: int) -> Any:
    """The saved set, or the language's specific neurons, detected on all languages of ``train``."""
    from ..detection import detect
    from ..neurons import NeuronSet

    if config.neurons is not None:
        return NeuronSet.load(config.neurons)
    language = config.language
    if len(train) < 2:
        raise ValueError(
            f"{language!r} alone has no specific neurons: give --languages to compare it with, or --neurons."
        )
    return detect(model, train, top=selection.top, max_tokens=max_tokens).specific(language, quorum=selection.quorum)


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    lengths: Annotated[Sequence[int], whole_numbers(2)] = (64, 128, 256, 512, 1024)
    """Tokens per document, with commas."""
    parallel_up_to: int = 128
    """Longest document for the paper's form."""
    tuning: Annotated[int | None, Reader(int, at_least(2))] = None
    """Instead: tuning, on this many tokens."""


def bench(
    *,
    model: ModelSettings,
    text: Annotated[TextSettings, "sentences_per_passage", "limit"] = TextSettings(("en", "zh")),
    config: BenchConfig,
    output: OutputSettings,
) -> None:
    """What detection costs compared with the bare forward pass: exact scores of every neuron, and the paper's form.

    With --tuning: what tuning 0.5 % of the neurons costs compared with tuning all parameters.
    """
    folder = output.new_folder("bench")
    corpus, hooked = text.load(), model.load()
    written = (
        _bench_detection(hooked, corpus, config, folder)
        if config.tuning is None
        else _bench_tuning(hooked, corpus, config.tuning, folder)
    )
    print_written(written)


COLUMNS = {
    "ratio": ("Time over the bare forward pass through the blocks, by tokens of a document", 2),
    "megabytes_above_forward": ("Peak memory above it, MB", 0),
    "as_dense": ("Share of active neurons that exact scores of every neuron make active too", 4),
}


def _bench_detection(model: Any, corpus: Any, config: BenchConfig, folder: Path) -> list[Path]:
    from .. import plots
    from ..bench import benchmark

    costs = benchmark(model, corpus, lengths=config.lengths, parallel_up_to=config.parallel_up_to)
    for column, (title, digits) in COLUMNS.items():
        print(f"\n{title}\n\n" + costs.table(column).to_string(float_format=f"{{:.{digits}f}}".format, na_rep="–"))
    written = write(folder, tables={"bench": costs.to_frame()}, figures={"bench": plots.benchmark(costs)})
    return [*written, _write_settings(folder, costs.settings)]


def _bench_tuning(model: Any, corpus: Any, tokens: int, folder: Path) -> list[Path]:
    from ..bench import joined_text, tuning_cost

    language = next(iter(corpus))
    costs = tuning_cost(model, joined_text(model, corpus[language], language, tokens)[:tokens])
    print("\nTime per step, peak memory above the loaded model, optimiser state\n")
    print(costs.to_frame().to_string(float_format=lambda value: f"{value:.2f}"))
    print("\nTuning neurons over tuning all parameters\n")
    print(costs.ratios().to_string(float_format=lambda value: f"{value:.4f}"))
    return [*write(folder, tables={"tuning": costs.to_frame()}), _write_settings(folder, costs.settings)]


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(dict(settings), indent=2, ensure_ascii=False))
    return path
