"""Commands for any model and text: neurons, their effects, the layers' languages, tuning, costs, all on one page."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import mwork_lens as mw

from ..settings import (
    IDENTIFIERS,
    DetectionSettings,
    EffectsConfig,
    PartOf,
    PlanConfig,
    Rates,
    RecipeSettings,
    ReportConfig,
    SavedSets,
    StreamSettings,
    at_least,
    numbers,
)
from .options import DEMO_LANGUAGES, Paths, Resumable, Run, write

DETECT = "detect"
"""What the settings of a folder call the command that wrote it."""


@dataclass(frozen=True)
class DetectConfig:
    """How neurons are scored and selected."""

    threshold: float | None = None
    """Instead of --top: a least score."""
    formulation: str = "exact"
    """exact, paper or released."""
    scope: str = "layer"
    """Top fraction of each layer, or of the whole model."""
    held_out: float | None = None
    """Share of the documents to keep aside: effects --detection then measures on these."""

    def __post_init__(self) -> None:
        mw.text.choices.require_choice("formulation", self.formulation, mw.measures.FORMULATIONS)
        mw.text.choices.require_choice("scope", self.scope, get_args(mw.detection.detecting.Scope))


def detect(
    run: Resumable, selection: DetectionSettings, config: DetectConfig, text: StreamSettings, part: PartOf
) -> Paths:
    """Find each language's neurons; writes the detection, each language's specific set and their counts by layer.

    The same --output and options resume a run that was stopped, to the same bits.
    """
    from ..experiments.folder import ResultsFolder, load_or_run

    path, corpus = run.folder("detection"), run.load_text(**text.options())
    if config.held_out is not None:
        corpus, _ = corpus.split(config.held_out)
    scoring = {name: value for name, value in asdict(config).items() if name != "held_out"}
    options, hooked = {"top": selection.top, "max_tokens": selection.max_tokens, **scoring}, run.load_model()
    record = {**mw.model.model_record(hooked), **options, "quorum": selection.quorum, "corpus": corpus.describe()}
    folder = ResultsFolder.open(path, DETECT, {**record, **part.record})
    place = path / "detection"
    detection = load_or_run(place, mw.Detection, mw.detect, hooked, corpus, shard=part.shard, **options)
    if part.shard:
        print(detection)
        return [*folder.written, place]
    return [*folder.written, *write_detection(path, detection, selection.quorum)]


def write_detection(path: Path, detection: Any, quorum: float) -> Paths:
    """Each language's set and their counts by layer, beside the detection; prints all."""
    kind = "specific" if len(detection.languages) > 1 else "active"
    counts = mw.neuron_counts(detection, kind=kind, quorum=quorum)
    sets = {name: getattr(detection, kind)(name, quorum=quorum) for name in detection.languages}
    written = write(path, sets, {"counts": counts}, {"counts": lambda: mw.plots.neuron_counts(counts)})
    print(detection, *sets.values(), sep="\n")
    return [path / "detection", *written]


def effects(run: Resumable, config: EffectsConfig, source: SavedSets, part: PartOf) -> Paths:
    """Switch neurons off and measure every language's loss: saved sets, those of a detection, or detected here.

    With --detection of a run with --held-out, it measures on the documents that detection has not read; with any
    other, and with --neurons, on the whole corpus, which must be held out. With neither, the corpus is divided into
    folds and detection runs for each on the rest. The same --output and options resume a run that was stopped.
    """
    from ..experiments.effects import effects_of_sets, held_out_text, require_languages, run_effects

    if source.neurons and (source.detection or config.controls or config.stages):
        raise ValueError("--neurons goes without --detection, --controls and --stages.")
    require_saved(part, source)
    path = run.folder("effects")
    detection = load_detection(source)
    sets = {name: mw.NeuronSet.load(file) for name, file in by_name(source.neurons or (), "--neurons").items()}
    corpus = run.load_text()
    corpus = corpus if detection is None else held_out_text(corpus, detection)
    require_languages(config, corpus, detection)
    hooked = run.load_model()
    if sets:
        matrix, grid, folder = effects_of_sets(hooked, sets, corpus, path, config, shard=part.shard)
    else:
        matrix, grid, folder = run_effects(hooked, corpus, path, config, detection=detection, shard=part.shard)
    if part.shard:
        print(matrix)
        return [*folder.written, folder.path / "effects"]
    return finish_effects(folder, matrix, grid)


def load_detection(source: SavedSets) -> Any:
    """The saved detection, if one is named; a ValueError for a part of one."""
    detection = None if source.detection is None else mw.Detection.load(source.detection)
    if detection is not None and "part" in detection.settings:
        number, of = detection.settings["part"]["shard"]
        raise ValueError(f"{source.detection} is part {number}/{of} of a detection: mwork-lens merge makes one of all.")
    return detection


def require_saved(part: PartOf, source: SavedSets) -> None:
    """Refuse a part of what detects neurons too: all parts would do so, each on all documents."""
    if part.shard and not (source.detection or source.neurons):
        raise ValueError(
            "--shard {}/{} goes with saved neurons: first mwork-lens detect --shard and merge, then this with "
            "--detection.".format(*part.shard)
        )


def finish_effects(folder: Any, matrix: Any, grid: Any) -> Paths:
    """Tables and figures of effects and maybe of stages; prints them."""
    from ..effects.overlap import seen_finding
    from ..experiments.effects import write_effects

    write_effects(folder, matrix, grid)
    print(matrix, seen_finding(matrix.documents_read), "", sep="\n")
    if len(table := matrix.selectivity()):
        print(table[["neurons", "own", "others", "difference", "low", "high", "ratio"]].round(3).to_string())
    return folder.written


def by_name(files: Sequence[Path], option: str) -> dict[str, Path]:
    """What an option names, by the last part of each path; where several have the same, by the whole path."""
    if twice := [file for i, file in enumerate(files) if file in files[:i]]:
        raise ValueError(f"{option} {twice[0]} is given twice.")
    names = [file.name for file in files]
    return {str(file) if names.count(file.name) > 1 else file.name: file for file in files}


@dataclass(frozen=True)
class RatioConfig:
    """What is decoded and counted, how its language is identified, and what else is written."""

    top_k: int = 10
    """Tokens that each position decodes to."""
    identifier: str = ReportConfig.identifier
    every: Annotated[int, at_least(1)] = 1
    """Read every n-th token only, to save time."""
    by: str = "count"
    """count of the top k, or mass of probability."""
    new_tokens: int = 0
    """Tokens to generate after each prompt."""
    raw: bool = False
    """Without the final norm, as the paper's code reads."""
    grid: Annotated[str | None, "--text"] = None
    """Also a layer by token grid of this text."""
    validate: bool = False
    """Only score the identifier on the corpus."""

    def __post_init__(self) -> None:
        mw.text.choices.require_choice("identifier", self.identifier, IDENTIFIERS)
        mw.text.choices.require_choice("by", self.by, get_args(mw.lens.decoding.By))

    @property
    def decoding(self) -> dict[str, Any]:
        """How states become labels, for every call that decodes some."""
        return {"normalize": not self.raw, "identifier": self.identifier}


def ratio(run: Annotated[Resumable, {"limit": 5}], config: RatioConfig, part: PartOf) -> Paths:
    """Which language each layer speaks: decoded tokens by language and layer, compared with chance.

    The same --output and options resume a run that was stopped.
    """
    if config.validate and part.shard:
        raise ValueError("--validate goes without --shard: it only labels texts.")
    if config.validate:
        folder = run.new_folder("ratio")
        texts = replace(run, limit=None).load_prompts(config.identifier, pivot=())
        accuracy = mw.identifier_accuracy(run.load_model(), texts, name=config.identifier)
        print(accuracy)
        return write(folder, tables={"identifier": accuracy.to_frame()})
    return measure_ratio("ratio", run, config, part)


def measure_ratio(name: str, run: Run, config: RatioConfig, part: PartOf) -> Paths:
    """The result, its table and its figures, and a grid of one text; prints the verdict."""
    from ..experiments.folder import ResultsFolder, load_or_run

    path = run.folder(name)
    prompts, hooked = run.load_prompts(config.identifier), run.load_model()
    positions = None if config.every == 1 else slice(config.every // 2, None, config.every)
    counting: dict[str, Any] = {"by": config.by, "positions": positions, "new_tokens": config.new_tokens}
    record = {**mw.model.model_record(hooked), **asdict(config), "corpus": prompts.describe()}
    folder = ResultsFolder.open(path, name, {**record, **part.record})
    options = {"top_k": config.top_k, **counting, **config.decoding, "shard": part.shard}
    measured = load_or_run(path / "ratio", mw.LanguageRatio, mw.language_ratio, hooked, prompts, **options)
    if part.shard:
        print(measured)
        return [*folder.written, path / "ratio"]
    return [*folder.written, *write_ratio(path, measured, config, hooked)]


def write_ratio(path: Path, measured: Any, config: RatioConfig, hooked: Any) -> list[Path]:
    """Table and figures of a ratio, and a grid of one text, beside it; prints the verdict."""
    frame = measured.to_frame()
    figures = {
        "ratio": lambda: mw.plots.language_ratio(measured),
        "heatmap": lambda: mw.plots.language_heatmap(measured),
        "lift": lambda: mw.plots.language_heatmap(measured, value="lift"),
        "english": lambda: mw.plots.language_ratio(measured.two_way("en")),
    }
    written = [path / "ratio", *write(path, {}, {"ratio": frame}, figures), path / "ratio.json"]
    mw.store.write_text(written[-1], frame.to_json(orient="records", indent=1, force_ascii=False))
    if set(measured.counts) - {"en"}:
        print(measured.finding("en"))
    if config.grid is not None:
        grid = mw.lens_grid(hooked, config.grid, languages=measured.languages, **config.decoding)
        written += write(path, {}, {"grid": grid.to_frame()}, {"grid": lambda: mw.plots.lens_grid(grid)})
    return written


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is tuned, and when it is measured and stopped."""

    language: str
    """Whose texts to tune on, and whose neurons to detect."""
    neurons: Path | None = None
    """A saved set; none: detect it on the corpus."""
    held_out: float = ReportConfig.held_out
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
    run: Resumable, selection: Annotated[DetectionSettings, "max_tokens"], config: TuneConfig, recipe: RecipeSettings
) -> Paths:
    """Tune only a language's neurons; writes what changed, the losses and, on request, the tuned model.

    The same --output and options resume a run that was stopped.
    """
    from ..effects.overlap import check_overlap, statuses_of
    from ..experiments.folder import ResultsFolder, load_or_run
    from ..tuning.result import Tuned

    language, settings = config.language, asdict(recipe)
    mw.tuning.Recipe(**settings)
    path, corpus = run.folder("tuned"), run.load_text()
    train, held_out = corpus.split(config.held_out)
    texts, measured = train[language], held_out[language]
    hooked = run.load_model()
    neurons = None if config.neurons is None else mw.NeuronSet.load(config.neurons)
    if neurons is not None:
        measuring = held_out.select({language: range(len(measured))})
        check_overlap(measuring, statuses_of(measuring, [neurons.origin.seen]), "warn", stacklevel=2)
    elif len(train) < 2:
        raise ValueError(
            f"{language!r} alone has no specific neurons: give --languages to compare it with, or --neurons."
        )
    asked = {name: value for name, value in asdict(config).items() if name not in ("checkpoint", "export")}
    asked |= {"top": selection.top, "quorum": selection.quorum, "neurons": neurons and mw.store.digest(neurons)}
    record = {**mw.model.model_record(hooked), **asked, **settings, "corpus": corpus.describe()}
    folder = ResultsFolder.open(path, "tune", record)
    if neurons is None:
        limits = {"top": selection.top, "max_tokens": recipe.max_tokens}
        detection = load_or_run(path / "detection", mw.Detection, mw.detect, hooked, train, **limits)
        neurons = detection.specific(language, quorum=selection.quorum)
    print(neurons)
    stopping: dict[str, Any] = {"evaluate_every": config.evaluate_every, "patience": config.patience}
    others = {name: rows for name, rows in held_out.items() if name != language}
    checkpoint = config.checkpoint or path / "tuned.checkpoint"
    if (path / "tuned").exists():
        tuned = Tuned.load(path / "tuned")
        assert tuned.delta is not None  # of a set there always is one
        tuned.delta.apply(hooked)
    else:
        reading = {"held_out": measured, "others": others}
        tuned = mw.tune(hooked, neurons, texts, checkpoint=checkpoint, **reading, **settings, **stopping)
        assert tuned.delta is not None
    print(tuned.summary())
    results = {"neurons": neurons, "tuned": tuned, "delta": tuned.delta}
    tables = {"steps": tuned.to_frame(), "losses": tuned.losses, "changes": tuned.changes}
    written = [*folder.written, *write(path, results, tables, {"losses": lambda: mw.plots.tuning(tuned)})]
    if config.export and not (path / "model").exists():
        written.append(mw.export_tuned(hooked, tuned.delta, path / "model", source=run.model))
    if config.checkpoint is None:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return written


def demo(run: Annotated[Resumable, {"limit": 40}], selection: Annotated[DetectionSettings, "max_tokens"]) -> Paths:
    """The whole story: find each language's neurons, switch them off, measure every language, write a page.

    The same --output and options resume a run that was stopped.
    """
    from ..experiments.report import run_demo

    folder, corpus = run.folder("demo"), run.load_text(DEMO_LANGUAGES)
    config = ReportConfig(top=selection.top, quorum=selection.quorum, held_out=0.2)
    result = run_demo(run.load_model(), corpus, folder, config)
    written = result.write()
    print("\nRise of loss on held-out text, nats per token: neurons off (rows), language read (columns)\n")
    print(result.table().to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    print("\n" + "\n".join(result.findings()) + "\n")
    return written


@dataclass(frozen=True)
class PageConfig:
    """How a report is shown."""

    notebook: Path | None = None
    """Your own copy of the report's notebook."""


def report(
    run: Resumable,
    config: Annotated[ReportConfig, "folds"],
    source: Annotated[SavedSets, "neurons"],
    page: PageConfig,
) -> Paths:
    """Everything about one model on one corpus: results, an executed notebook, and one page that needs no network.

    With --detection of a run with --held-out (it may be merged of parts), the rest is measured on the documents that
    detection has not read, and --held-out is not used. The same --output and options resume a run that was stopped.
    The notebook only shows what is in the folder: copy OUTPUT/report.ipynb, edit it, and give it as --notebook for a
    page of your own.
    """
    mw.report.read_notebook(page.notebook)
    from ..experiments.effects import require_languages
    from ..experiments.report import measure

    output = replace(run, output=run.output or Path("mwork-lens-report")).folder("report")
    corpus = run.load_text(DEMO_LANGUAGES if run.corpus == "demo" else None)
    detection = load_detection(source)
    require_languages(config, corpus, detection)
    hooked = run.load_model()
    folder = measure(hooked, corpus, output, config, detection=detection)
    shown = mw.report.execute(page.notebook, folder.path / "report.ipynb", {"folder": str(folder.path.resolve())})
    title = f"Languages inside {hooked.cfg.model_name}"
    return [mw.report.render(shown, folder.path / "report.html", title=title), shown, folder.path]


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    lengths: Annotated[Sequence[int], numbers(2)] = (64, 128, 256, 512, 1024)
    """Tokens per document, with commas."""
    parallel_up_to: int = 128
    """Longest document for the paper's form."""
    tuning: Annotated[int | None, at_least(2)] = None
    """Instead: tuning, on this many tokens."""


def bench(
    run: Annotated[Run, "sentences_per_passage", "limit", {"languages": ("en", "zh")}], config: BenchConfig
) -> Paths:
    """What detection costs compared with the bare forward pass: exact scores of every neuron, and the paper's form.

    With --tuning: what tuning 0.5 % of the neurons costs compared with tuning all parameters.
    """
    folder, corpus, hooked = run.new_folder("bench"), run.load_text(), run.load_model()
    if config.tuning is None:
        costs = mw.bench.benchmark(hooked, corpus, lengths=config.lengths, parallel_up_to=config.parallel_up_to)
        written = write(folder, {}, {"bench": costs.to_frame()}, {"bench": lambda: mw.plots.benchmark(costs)})
        tables = {
            "Time over the bare forward pass through the blocks, by tokens of a document": (costs.table("ratio"), 2),
            "Peak memory above it, MB": (costs.table("megabytes_above_forward"), 0),
            "Share of active neurons that exact scores of every neuron make active too": (costs.table("as_dense"), 4),
        }
    else:
        language = next(iter(corpus))
        document = mw.bench.joined_text(hooked, corpus[language], language, config.tuning)[: config.tuning]
        costs = mw.bench.tuning_cost(hooked, document)
        written = write(folder, tables={"tuning": costs.to_frame()})
        tables = {
            "Time per step, peak memory above the loaded model, optimiser state": (costs.to_frame(), 2),
            "Tuning neurons over tuning all parameters": (costs.ratios(), 4),
        }
    for title, (table, digits) in tables.items():
        print(f"\n{title}\n\n{table.to_string(float_format=f'{{:.{digits}f}}'.format, na_rep='–')}")
    mw.store.write_text(folder / "settings.json", json.dumps(dict(costs.settings), indent=2, ensure_ascii=False))
    return [*written, folder / "settings.json"]


def plan(config: PlanConfig, rates: Rates) -> Paths:
    """What a long run will take, before it: hours, memory and the size of the result, and the rates that say so."""
    from ..experiments import planning

    planned = planning.plan(config, rates)
    print(planned, "", planned.to_frame().to_string(float_format="{:,.4g}".format), "", sep="\n")
    print(planned.rates_used().to_string(float_format="{:.3g}".format), "", planning.NOT_MEASURED, sep="\n")
    return []
