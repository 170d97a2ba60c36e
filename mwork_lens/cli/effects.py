"""``mwork-lens effects`` and ``experiment layer-sweep``: what switching neurons off does to every language's loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import (
    CorpusOptions,
    DetectionOption,
    LimitOption,
    ModelOptions,
    OutputOption,
    SelectionOptions,
    TokensOption,
    load_detection,
    new_folder,
    numbers,
    parts,
    say_written,
)


@dataclass(frozen=True)
class StudyOptions:
    """What is measured beside each language's own set."""

    controls: Annotated[str | None, Option("--controls", help="Languages whose sets get every control.")] = None
    seeds: Annotated[int, Option("--seeds", help="Draws of each control.")] = 1
    stages: Annotated[str | None, Option("--stages", help="Languages of the stage grid.")] = None
    understanding: Annotated[int | None, Option("--understanding", help="N1: first layers that understand.")] = None
    generation: Annotated[int | None, Option("--generation", help="N2: last layers that generate.")] = None
    folds: Annotated[int, Option("--folds", help="Detections, each with its own held-out documents.")] = 2
    passages: Annotated[int | None, Option("--passages", help="Held-out passages of each fold.")] = None

    def plan(self, selection: SelectionOptions, max_tokens: int) -> Any:
        """What the study does.

        Raises:
            ValueError: for too few draws or folds.
        """
        from ..experiments.effects import Plan

        if self.seeds < 1 or self.folds < 2:
            raise ValueError(f"--seeds {self.seeds} must be at least 1, --folds {self.folds} at least 2.")
        named = {"controls": tuple(parts(self.controls) or ()), "stages": tuple(parts(self.stages) or ())}
        layers = {"understanding": self.understanding, "generation": self.generation}
        rule = {"top": selection.top, "quorum": selection.quorum, "max_tokens": max_tokens}
        return Plan(folds=self.folds, passages=self.passages, seeds=tuple(range(self.seeds)), **named, **layers, **rule)


def effects(
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    study: StudyOptions,
    neurons: Annotated[list[Path] | None, Option("--neurons", help="A saved set; repeat the option.")] = None,
    detection: DetectionOption = None,
    limit: LimitOption = None,
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """Switch neurons off and measure every language's loss: saved sets, those of a detection, or detected here.

    With --neurons or --detection the whole corpus must be held out. With neither, the corpus is divided into folds and
    detection runs for each on the rest. A run that was stopped goes on when it is given the same --output and options.
    """
    from ..experiments.effects import run_study
    from ..neurons import NeuronSet

    if neurons and (detection or study.controls or study.stages):
        raise ValueError("--neurons goes without --detection, --controls and --stages.")
    selection.check()
    plan = study.plan(selection, max_tokens)
    begun = output is not None and not neurons and (output / "settings.json").is_file()
    path = output if output is not None and begun else new_folder(output, "effects")
    found = load_detection(detection)
    sets = {given.name: NeuronSet.load(given) for given in neurons or ()}
    corpus, hooked = text.load(limit), model.load()
    if sets:
        measured, folder = _of_sets(hooked, sets, corpus, path, max_tokens)
    else:
        result, folder = run_study(hooked, corpus, path, plan, detection=found)
        result.write(folder)
        measured = result.effects
    print(measured, "\n")
    if len(table := measured.selectivity()):
        print(table[["neurons", "own", "others", "difference", "low", "high", "ratio"]].round(3).to_string())
    say_written(folder.written)


def _of_sets(model: Any, sets: Mapping[str, Any], corpus: Any, path: Path, max_tokens: int) -> tuple[Any, Any]:
    """The effects of saved sets, and the results folder that they are written to."""
    from ..effects import effect_matrix
    from ..experiments.effects import write_effects
    from ..experiments.folder import ResultsFolder

    measured = effect_matrix(model, sets, corpus, max_tokens=max_tokens)
    folder = ResultsFolder.open(path, "effects of sets", measured.settings)
    measured.save(path / "effects")
    write_effects(folder, measured)
    return measured, folder


def layer_sweep(
    model: ModelOptions,
    text: CorpusOptions,
    selection: SelectionOptions,
    detection: DetectionOption = None,
    limit: LimitOption = None,
    passages: Annotated[int | None, Option("--passages", help="Development passages a language.")] = None,
    depths: Annotated[str | None, Option("--depths", help="Numbers of layers to try, with commas.")] = None,
    max_tokens: TokensOption = 512,
    output: OutputOption = None,
) -> None:
    """The paper's appendix: N1 and N2 from each language's neurons off in the first, and in the last, n layers.

    With --detection the whole corpus must be development text; without it, detection runs on three quarters.
    """
    from .. import effects as evaluation
    from ..detection import detect
    from ..experiments.effects import Plan

    selection.check()
    tried = None if depths is None else numbers("--depths", depths, least=1)
    folder = new_folder(output, "layer-sweep")
    found = load_detection(detection)
    corpus, hooked = text.load(limit), model.load()
    if found is None:
        train, corpus = corpus.split()
        found = detect(hooked, train, top=selection.top, max_tokens=max_tokens)
        found.save(folder / "detection")
    read = corpus if passages is None else corpus.limit(passages)
    own = Plan(quorum=selection.quorum).sets(found)
    sets = {language: neurons for language, neurons in own.items() if language in read and language != "en"}
    swept = evaluation.layer_sweep(hooked, sets, read, depths=tried, max_tokens=max_tokens)
    written = _write_sweep(folder, swept)
    print(swept.finding())
    say_written(written)


def _write_sweep(folder: Path, swept: Any) -> list[Path]:
    from .. import plots
    from ..report import write_figure

    swept.save(folder / "sweep")
    swept.to_frame().to_csv(folder / "sweep.csv", index=False)
    figure = write_figure(folder / "sweep-figure", plots.layer_sweep(swept))
    return [folder / "sweep", folder / "sweep.csv", *figure]
