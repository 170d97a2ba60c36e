"""``mwork-lens effects`` and ``experiment layer-sweep``: what ablating neurons does to every language's loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..experiments.settings import EffectsConfig
from ..settings import (
    DetectionSettings,
    ModelSettings,
    OutputSettings,
    SavedDetection,
    TextSettings,
    whole_numbers,
)
from .options import print_written, write


@dataclass(frozen=True)
class SetSettings(SavedDetection):
    """Which neurons are switched off."""

    neurons: list[Path] | None = None
    """A saved set; repeat the option."""

    def load_detection(self) -> Any:
        """The saved detection, if any."""
        from ..detection import Detection

        return None if self.detection is None else Detection.load(self.detection)


def effects(
    model: ModelSettings, text: TextSettings, config: EffectsConfig, source: SetSettings, output: OutputSettings
) -> None:
    """Switch neurons off and measure every language's loss: saved sets, those of a detection, or detected here.

    With --neurons or --detection the whole corpus must be held out. With neither, the corpus is divided into folds and
    detection runs for each on the rest. The same --output and options resume a run that was stopped.
    """
    from ..experiments.effects import run_effects
    from ..neurons import NeuronSet

    if source.neurons and (source.detection or config.controls or config.stages):
        raise ValueError("--neurons goes without --detection, --controls and --stages.")
    config.check()
    resumed = output.output is not None and not source.neurons and (output.output / "settings.json").is_file()
    path = output.path("effects") if resumed else output.new_folder("effects")
    detection = source.load_detection()
    sets = {file.name: NeuronSet.load(file) for file in source.neurons or ()}
    corpus, hooked = text.load(), model.load()
    if sets:
        matrix, folder = _effects_of_sets(hooked, sets, corpus, path, config.max_tokens)
    else:
        run, folder = run_effects(hooked, corpus, path, config, detection=detection)
        run.write(folder)
        matrix = run.effects
    print(matrix, "\n")
    if len(table := matrix.selectivity()):
        print(table[["neurons", "own", "others", "difference", "low", "high", "ratio"]].round(3).to_string())
    print_written(folder.written)


def _effects_of_sets(model: Any, sets: Mapping[str, Any], corpus: Any, path: Path, max_tokens: int) -> tuple[Any, Any]:
    """The effects of saved sets, and the results folder that they are written to."""
    from ..effects import effect_matrix
    from ..experiments.effects import write_effects
    from ..experiments.folder import ResultsFolder

    matrix = effect_matrix(model, sets, corpus, max_tokens=max_tokens)
    folder = ResultsFolder.open(path, "effects of sets", matrix.settings)
    matrix.save(path / "effects")
    write_effects(folder, matrix)
    return matrix, folder


@dataclass(frozen=True)
class SweepConfig:
    """How many layers are switched off, and what is read."""

    passages: int | None = EffectsConfig.passages
    depths: Annotated[Sequence[int] | None, whole_numbers(1)] = None
    """Numbers of layers to try, with commas."""


def layer_sweep(
    model: ModelSettings,
    text: TextSettings,
    selection: DetectionSettings,
    config: SweepConfig,
    source: Annotated[SetSettings, "neurons"],
    output: OutputSettings,
) -> None:
    """The paper's appendix: N1 and N2 from each language's neurons off in the first, and in the last, n layers.

    With --detection the whole corpus must be development text; without it, detection runs on three quarters.
    """
    from .. import plots
    from ..detection import detect
    from ..effects import layer_sweep
    from ..experiments.effects import specific_sets

    selection.check()
    folder = output.new_folder("layer-sweep")
    detection = source.load_detection()
    corpus, hooked = text.load(), model.load()
    if detection is None:
        train, corpus = corpus.split()
        detection = detect(hooked, train, top=selection.top, max_tokens=selection.max_tokens)
        detection.save(folder / "detection")
    read = corpus if config.passages is None else corpus.limit(config.passages)
    own = specific_sets(detection, quorum=selection.quorum)
    sets = {language: neurons for language, neurons in own.items() if language in read and language != "en"}
    sweep = layer_sweep(hooked, sets, read, depths=config.depths, max_tokens=selection.max_tokens)
    figures = {"sweep-figure": plots.layer_sweep(sweep)}
    written = write(folder, results={"sweep": sweep}, tables={"sweep": sweep.to_frame()}, figures=figures)
    print(sweep.finding())
    print_written(written)
