"""The command line: ``mwork-lens demo | detect | effects | ratio | tune | experiment | bench``."""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer

app = typer.Typer(
    help="How a multilingual language model works inside.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

experiment = typer.Typer(help="The paper's items, one named experiment each.", no_args_is_help=True)
app.add_typer(experiment, name="experiment")

ModelOption = Annotated[str, typer.Option("--model", help="demo, a TransformerLens or hub name, a directory, a .gguf.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; by default CUDA if there is one.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
LanguagesOption = Annotated[str | None, typer.Option("--languages", help="BCP 47 tags with commas, e.g. en,fr.")]
CorpusOption = Annotated[str, typer.Option("--corpus", help="demo, a folder with a file a language, or a hub id.")]
SentencesOption = Annotated[int, typer.Option("--sentences-per-passage", help="Neighbouring lines joined into one.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most this many passages a language.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="A directory that is new or empty.")]
TopOption = Annotated[float, typer.Option("--top", help="Active: the top fraction of each layer and site.")]
QuorumOption = Annotated[float, typer.Option("--quorum", help="Share of documents on which a neuron must be active.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", help="Longer documents are cut there.")]

TopKOption = Annotated[int, typer.Option("--top-k", help="Tokens that each position decodes to.")]
IdentifierOption = Annotated[str, typer.Option("--identifier", help="lingua, script or cld3.")]
EveryOption = Annotated[int, typer.Option("--every", help="Read every n-th token only, to save time.")]

DetectionOption = Annotated[Path | None, typer.Option("--detection", help="A folder of mwork-lens detect.")]
UnderstandingOption = Annotated[int | None, typer.Option("--understanding", help="N1: first layers that understand.")]
GenerationOption = Annotated[int | None, typer.Option("--generation", help="N2: last layers that generate.")]

DEMO_LANGUAGES = "en,fr,zh,ru,th"
LIBRARY_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ImportError, KeyError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends in one clear line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mwork_lens").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    from . import cli_enhancement, cli_experiments  # noqa: F401  (add their commands)

    try:
        code = app(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit("Stopped.")
    except LIBRARY_ERRORS as error:
        logging.getLogger("mwork_lens").debug("", exc_info=error)
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"mwork-lens: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"Warning: {message}", file=sys.stderr)


@app.command()
def demo(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = 50,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    output: OutputOption = None,
) -> None:
    """The whole story: find each language's neurons, switch them off, measure every language, write a page."""
    from .demo import run_demo
    from .detection import selection_rule

    selection_rule(top, None)
    folder = _output(output, "mwork-lens-demo")
    text = _corpus(corpus, languages or DEMO_LANGUAGES, sentences_per_passage, limit)
    result = run_demo(_model(model, device, dtype), text, top=top, quorum=quorum)
    written = result.write(folder)
    print("\nRise of loss on held-out text, nats a token: neurons off (rows), language read (columns)\n")
    print(result.table().to_string(float_format=lambda value: f"{value:.2f}", na_rep="–"))
    print("\n" + "\n".join(result.findings()) + "\n")
    _say_written(written)


@app.command()
def detect(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = None,
    top: TopOption = 0.2,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Instead of --top: a least score.")] = None,
    quorum: QuorumOption = 0.9,
    formulation: Annotated[str, typer.Option("--formulation", help="exact, paper or released.")] = "exact",
    scope: Annotated[str, typer.Option("--scope", help="Top fraction of each layer, or of the whole model.")] = "layer",
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """Find each language's neurons; writes the detection, each language's specific set and their counts by layer."""
    from . import plots
    from .comparison import neuron_counts
    from .detection import detect, selection_rule
    from .report import write_figure

    selection_rule(top, threshold)
    folder = _output(output, "mwork-lens-detection")
    text = _corpus(corpus, languages, sentences_per_passage, limit)
    hooked = _model(model, device, dtype)
    how: dict[str, Any] = {"formulation": formulation, "scope": scope, "max_tokens": max_tokens}
    found = detect(hooked, text, top=top, threshold=threshold, **how)
    found.save(folder / "detection")
    counted = neuron_counts(found, kind="specific" if len(found.languages) > 1 else "active", quorum=quorum)
    counted.to_csv(folder / "counts.csv", index=False)
    written = [folder / "detection", folder / "counts.csv"]
    written += write_figure(folder / "counts", plots.neuron_counts(counted))
    for language in found.languages:
        neurons = found.specific(language, quorum=quorum) if len(found.languages) > 1 else found.active(language)
        neurons.save(folder / language)
        written.append(folder / language)
        print(neurons)
    _say_written(written)


@app.command()
def effects(
    neurons: Annotated[list[Path] | None, typer.Option("--neurons", help="A saved set; repeat the option.")] = None,
    detection: DetectionOption = None,
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = None,
    controls: Annotated[str | None, typer.Option("--controls", help="Languages whose sets get every control.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Draws of each control.")] = 1,
    stages: Annotated[str | None, typer.Option("--stages", help="Languages of the stage grid.")] = None,
    understanding: UnderstandingOption = None,
    generation: GenerationOption = None,
    folds: Annotated[int, typer.Option("--folds", help="Detections, each with its own held-out documents.")] = 2,
    passages: Annotated[int | None, typer.Option("--passages", help="Held-out passages of each fold.")] = None,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """Switch neurons off and measure every language's loss: saved sets, those of a detection, or detected here.

    With --neurons or --detection the whole corpus must be held out. With neither, the corpus is divided into folds and
    detection runs for each on the rest. A run that was stopped goes on when it is given the same --output and options.
    """
    from .detection import Detection, selection_rule
    from .evaluation import effect_matrix
    from .experiments.effects import Plan, run_study, write_effects
    from .experiments.folder import ResultsFolder
    from .neurons import NeuronSet

    if neurons and (detection or controls or stages):
        raise ValueError("--neurons goes without --detection, --controls and --stages.")
    selection_rule(top, None)
    if seeds < 1 or folds < 2:
        raise ValueError(f"--seeds {seeds} must be at least 1, --folds {folds} at least 2.")
    begun = output is not None and not neurons and (output / "settings.json").is_file()
    path = output if output is not None and begun else _output(output, "mwork-lens-effects")
    found = None if detection is None else Detection.load(_detection(detection))
    sets = {given.name: NeuronSet.load(given) for given in neurons or ()}
    text = _corpus(corpus, languages, sentences_per_passage, limit)
    hooked = _model(model, device, dtype)
    if sets:
        measured = effect_matrix(hooked, sets, text, max_tokens=max_tokens)
        folder = ResultsFolder.open(path, "effects of sets", measured.settings)
        measured.save(path / "effects")
        write_effects(folder, measured)
    else:
        named = {"controls": _tags(controls), "stages": _tags(stages), "seeds": tuple(range(seeds))}
        layers = {"understanding": understanding, "generation": generation}
        rule = {"top": top, "quorum": quorum, "max_tokens": max_tokens}
        plan = Plan(folds=folds, passages=passages, **named, **layers, **rule)
        study, folder = run_study(hooked, text, path, plan, detection=found)
        measured = study.effects
        study.write(folder)
    print(measured, "\n")
    if len(table := measured.selectivity()):
        print(table[["neurons", "own", "others", "difference", "low", "high", "ratio"]].round(3))
    _say_written(folder.written)


@app.command()
def ratio(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = 5,
    top_k: TopKOption = 10,
    by: Annotated[str, typer.Option("--by", help="count of the top k, or probability mass.")] = "count",
    identifier: IdentifierOption = "lingua",
    every: EveryOption = 1,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate after each prompt.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Without the final norm, as the paper's code reads.")] = False,
    text: Annotated[str | None, typer.Option("--text", help="Also a layer by token grid of this text.")] = None,
    validate: Annotated[bool, typer.Option("--validate", help="Only score the identifier on the corpus.")] = False,
    output: OutputOption = None,
) -> None:
    """Which language each layer speaks: decoded tokens by language and layer, beside chance."""
    from . import plots
    from .lens import identifier_accuracy, language_ratio, lens_grid
    from .report import write_figure

    positions = _every(every)
    folder = _output(output, "mwork-lens-ratio")
    prompts = _prompts(corpus, languages, sentences_per_passage, None if validate else limit)
    _require_identifier(identifier, list(prompts) if validate else ["en", *prompts])
    hooked = _model(model, device, dtype)
    if validate:
        accuracy = identifier_accuracy(hooked, prompts, name=identifier)
        accuracy.to_frame().to_csv(folder / "identifier.csv")
        print(accuracy)
        return _say_written([folder / "identifier.csv"])
    reading: dict[str, Any] = {"normalize": not raw, "identifier": identifier}
    counting: dict[str, Any] = {"by": by, "positions": positions, "new_tokens": new_tokens}
    measured = language_ratio(hooked, prompts, top_k=top_k, **counting, **reading)
    written = _write_ratio(folder, measured)
    if text is not None:
        grid = lens_grid(hooked, text, languages=measured.languages, **reading)
        grid.to_frame().to_csv(folder / "grid.csv", index=False)
        written += [folder / "grid.csv", *write_figure(folder / "grid", plots.lens_grid(grid))]
    _say_written(written)


@experiment.command("language-ratio")
def experiment_language_ratio(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = 20,
    top_k: TopKOption = 10,
    identifier: IdentifierOption = "lingua",
    every: EveryOption = 4,
    output: OutputOption = None,
) -> None:
    """The paper's Fig. 1 and 5: English and non-English tokens by layer, and each language, beside chance."""
    from .lens import language_ratio

    positions = _every(every)
    folder = _output(output, "mwork-lens-language-ratio")
    prompts = _prompts(corpus, languages, sentences_per_passage, limit)
    _require_identifier(identifier, ["en", *prompts])
    hooked = _model(model, device, dtype)
    measured = language_ratio(hooked, prompts, top_k=top_k, positions=positions, identifier=identifier)
    _say_written(_write_ratio(folder, measured))


@experiment.command("layer-sweep")
def experiment_layer_sweep(
    detection: DetectionOption = None,
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = None,
    passages: Annotated[int | None, typer.Option("--passages", help="Development passages a language.")] = None,
    depths: Annotated[str | None, typer.Option("--depths", help="Numbers of layers to try, with commas.")] = None,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """The paper's appendix: N1 and N2 from each language's neurons off in the first, and in the last, n layers.

    With --detection the whole corpus must be development text; without it, detection runs on three quarters.
    """
    from . import plots
    from .detection import Detection, detect, selection_rule
    from .evaluation import layer_sweep
    from .experiments.effects import Plan
    from .report import write_figure

    selection_rule(top, None)
    tried = None if depths is None else _numbers("--depths", depths, least=1)
    folder = _output(output, "mwork-lens-layer-sweep")
    found = None if detection is None else Detection.load(_detection(detection))
    text = _corpus(corpus, languages, sentences_per_passage, limit)
    hooked = _model(model, device, dtype)
    if found is None:
        train, text = text.split()
        found = detect(hooked, train, top=top, max_tokens=max_tokens)
        found.save(folder / "detection")
    read = text if passages is None else text.limit(passages)
    sets = {lang: neurons for lang, neurons in Plan(quorum=quorum).sets(found).items() if lang in read and lang != "en"}
    swept = layer_sweep(hooked, sets, read, depths=tried, max_tokens=max_tokens)
    swept.save(folder / "sweep")
    swept.to_frame().to_csv(folder / "sweep.csv", index=False)
    figure = write_figure(folder / "sweep-figure", plots.layer_sweep(swept))
    print(swept.finding())
    _say_written([folder / "sweep", folder / "sweep.csv", *figure])


def _detection(path: Path) -> Path:
    """A saved detection, or the folder of ``mwork-lens detect`` that holds one."""
    return path / "detection" if (path / "detection").is_dir() else path


def _tags(given: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())


def _write_ratio(folder: Path, measured: Any) -> list[Path]:
    """The result, its table and its figures; prints the verdict."""
    from . import plots
    from .report import write_figure

    measured.save(folder / "ratio")
    frame = measured.to_frame()
    frame.to_csv(folder / "ratio.csv", index=False)
    frame.to_json(folder / "ratio.json", orient="records", indent=1, force_ascii=False)
    figures = {
        "ratio": plots.language_ratio(measured),
        "heatmap": plots.language_heatmap(measured),
        "lift": plots.language_heatmap(measured, value="lift"),
        "english": plots.language_ratio(measured.two_way("en")),
    }
    written = [path for name, figure in figures.items() for path in write_figure(folder / name, figure)]
    if set(measured.counts) - {"en"}:
        print(measured.finding("en"))
    return [folder / "ratio", folder / "ratio.csv", folder / "ratio.json", *written]


def _require_identifier(name: str, languages: Sequence[str]) -> None:
    """Refuse what the identifier does not know before the model is loaded."""
    from .languages import identifier

    identifier(name, list(dict.fromkeys(languages)))


def _every(every: int) -> slice | None:
    if every < 1:
        raise ValueError(f"--every {every}: it must be at least 1.")
    return None if every == 1 else slice(every // 2, None, every)


@app.command()
def tune(
    language: Annotated[str, typer.Option("--language", help="Whose texts to tune on, and whose neurons to detect.")],
    neurons: Annotated[
        Path | None, typer.Option("--neurons", help="A saved set; none: detect it on the corpus.")
    ] = None,
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = None,
    corpus: CorpusOption = "demo",
    sentences_per_passage: SentencesOption = 1,
    limit: LimitOption = None,
    top: TopOption = 0.2,
    quorum: QuorumOption = 0.9,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest, reached after warm-up.")] = 2e-6,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="On the selected weights only.")] = 0.0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Texts a step.")] = 32,
    micro_batch_size: Annotated[int | None, typer.Option("--micro-batch-size", help="Texts at a time.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the texts.")] = 1,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps, instead of epochs.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Columns of W_gate too.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the texts.")] = 0,
    max_tokens: TokensOption = 512,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the corpus to measure on.")] = 0.2,
    evaluate_every: Annotated[int | None, typer.Option("--evaluate-every", help="Steps between measurements.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Stop after as many without a new best.")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="A killed run goes on from here.")] = None,
    export: Annotated[bool, typer.Option("--export", help="Also write the tuned model for transformers.")] = False,
    output: OutputOption = None,
) -> None:
    """Tune only a language's neurons; writes what changed, the losses and, on request, the tuned model."""
    from . import plots
    from .export import export_tuned
    from .report import write_figure
    from .tuning import Recipe
    from .tuning import tune as tune_neurons

    recipe = Recipe(
        learning_rate=learning_rate, weight_decay=weight_decay, batch_size=batch_size, epochs=epochs, steps=steps,
        micro_batch_size=micro_batch_size, max_tokens=max_tokens, gate=gate, seed=seed,
    )  # fmt: skip
    folder = _output(output, "mwork-lens-tuned")
    train, rest = _corpus(corpus, languages, sentences_per_passage, limit).split(held_out)
    texts, measured = train[language], rest[language]
    hooked = _model(model, device, dtype)
    chosen = _set_of(language, neurons, hooked, train, top=top, quorum=quorum, max_tokens=max_tokens)
    print(chosen)
    stopping: dict[str, Any] = {"evaluate_every": evaluate_every, "patience": patience, "checkpoint": checkpoint}
    tuned = tune_neurons(hooked, chosen, texts, held_out=measured, **asdict(recipe), **stopping)
    print(tuned.summary())
    assert tuned.delta is not None  # of a set there always is one
    chosen.save(folder / "neurons")
    tuned.save(folder / "tuned")
    tuned.delta.save(folder / "delta")
    tuned.to_frame().to_csv(folder / "losses.csv", index=False)
    tuned.changes.to_csv(folder / "changes.csv", index=False)
    written = [folder / name for name in ("neurons", "tuned", "delta", "losses.csv", "changes.csv")]
    written += write_figure(folder / "losses", plots.tuning(tuned))
    if export:
        written.append(export_tuned(hooked, tuned.delta, folder / "model", source=model))
    _say_written(written)


def _set_of(
    language: str, path: Path | None, model: Any, train: Any, *, top: float, quorum: float, max_tokens: int
) -> Any:
    """The saved set, or the language's specific neurons, detected on all languages of ``train``."""
    from .detection import detect
    from .neurons import NeuronSet

    if path is not None:
        return NeuronSet.load(path)
    if len(train) < 2:
        raise ValueError(
            f"{language!r} alone has no specific neurons: give --languages to compare it with, or --neurons."
        )
    return detect(model, train, top=top, max_tokens=max_tokens).specific(language, quorum=quorum)


@app.command()
def bench(
    model: ModelOption = "demo",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    languages: LanguagesOption = "en,zh",
    corpus: CorpusOption = "demo",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens a document, with commas.")] = "64,128,256,512,1024",
    dense_up_to: Annotated[int, typer.Option("--dense-up-to", help="Longest document for the dense forms.")] = 128,
    tuning: Annotated[int | None, typer.Option("--tuning", help="Instead: tuning, on this many tokens.")] = None,
    output: OutputOption = None,
) -> None:
    """What detection costs beside the bare forward pass, the dense exact form and the paper's parallel form.

    With --tuning: what tuning 0.5 % of the neurons costs beside tuning all parameters.
    """
    from .bench import benchmark

    tokens = _numbers("--lengths", lengths if tuning is None else str(tuning))
    folder = _output(output, "mwork-lens-bench")
    text = _corpus(corpus, languages, 1, None)
    if tuning is not None:
        return _bench_tuning(_model(model, device, dtype), text, tuning, folder)
    found = benchmark(_model(model, device, dtype), text, lengths=tokens, dense_up_to=dense_up_to)
    found.to_frame().to_csv(folder / "bench.csv", index=False)
    folder.joinpath("settings.json").write_text(json.dumps(dict(found.settings), indent=2, ensure_ascii=False))
    print("\nTime over the bare forward pass through the blocks, by tokens of a document\n")
    print(found.table().to_string(float_format=lambda value: f"{value:.1f}", na_rep="–"))
    print("\nPeak memory above it, MB\n")
    memory = found.to_frame().pivot(index="method", columns="tokens", values="megabytes_above_forward")
    print(memory.to_string(float_format=lambda value: f"{value:.0f}", na_rep="–"))
    _say_written([folder / "bench.csv", folder / "settings.json"])


def _bench_tuning(model: Any, text: Any, tokens: int, folder: Path) -> None:
    from .bench import joined_text
    from .bench_tuning import tuning_cost

    language = next(iter(text))
    found = tuning_cost(model, joined_text(model, text[language], language, tokens)[:tokens])
    found.to_frame().to_csv(folder / "tuning.csv")
    folder.joinpath("settings.json").write_text(json.dumps(dict(found.settings), indent=2, ensure_ascii=False))
    print("\nTime a step, peak memory above the loaded model, optimiser state\n")
    print(found.to_frame().to_string(float_format=lambda value: f"{value:.2f}"))
    print("\nTuning neurons over tuning all parameters\n")
    print(found.ratios().to_string(float_format=lambda value: f"{value:.4f}"))
    _say_written([folder / "tuning.csv", folder / "settings.json"])


def _numbers(option: str, given: str, *, least: int = 2) -> list[int]:
    parts = _tags(given)
    if not parts or not all(part.isdigit() and int(part) >= least for part in parts):
        raise ValueError(f"{option} {given}: give whole numbers from {least} on with commas, e.g. 64,128.")
    return [int(part) for part in parts]


def _model(source: str, device: str | None, dtype: str) -> Any:
    from .models import load_model

    return load_model(source, device=device, dtype=dtype)


def _corpus(source: str, languages: str | None, sentences_per_passage: int, limit: int | None) -> Any:
    from .corpora import load_corpus

    chosen = None if languages is None else list(_tags(languages))
    return load_corpus(source, languages=chosen, sentences_per_passage=sentences_per_passage, limit=limit)


def _prompts(source: str, languages: str | None, sentences_per_passage: int, limit: int | None) -> Any:
    """Some passages to read; cut after loading, which warns of too few to find neurons on."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: it must be at least 1.")
    whole = _corpus(source, languages, sentences_per_passage, None)
    return whole if limit is None else whole.limit(limit)


def _output(output: Path | None, default: str) -> Path:
    """The directory to write to: as given, else the first free one named after the command."""
    from .store import require_free

    if output is None:
        candidates = (Path(default if i == 1 else f"{default}-{i}") for i in range(1, 10_000))
        output = next(path for path in candidates if not path.exists())
    folder = require_free(output)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _say_written(paths: Sequence[Path]) -> None:
    print("Written: " + ", ".join(map(str, paths)))
