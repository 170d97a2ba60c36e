"""Effects fold by fold: detection, effect matrix with controls, stage grid; what is on disk is not run again."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from .. import plots
from ..detection import Detection, detect, with_controls
from ..effects import (
    Among,
    EffectMatrix,
    Sets,
    StageGrid,
    Unit,
    Workflow,
    concat_passages,
    concat_rows,
    effect_matrix,
    pool_grids,
    stage_grid,
    workflow,
)
from ..model import HookedModel
from ..neurons import NeuronSet, Stages
from ..text import Corpus
from .folder import ResultsFolder, load_or_run
from .settings import EffectsConfig

NAME = "effects"


def specific_sets(detection: Detection, quorum: float, against_quorum: float | None = None) -> dict[str, NeuronSet]:
    """Each language's specific neurons; languages without any are left out."""
    sets = {
        language: detection.specific(language, quorum=quorum, against_quorum=against_quorum)
        for language in detection.languages
    }
    return {language: neurons for language, neurons in sets.items() if len(neurons)}


@dataclass(frozen=True)
class EffectsRun:
    """What a run measured."""

    effects: EffectMatrix
    grid: StageGrid | None = None

    def write(self, folder: ResultsFolder) -> None:
        """Tables and figures into a results folder."""
        write_effects(folder, self.effects)
        if self.grid:
            write_grid(folder, self.grid, workflow(self.grid))


def run_effects(
    model: HookedModel,
    corpus: Corpus,
    path: Path,
    config: EffectsConfig,
    *,
    detection: Detection | None = None,
    progress: bool = True,
) -> tuple[EffectsRun, ResultsFolder]:
    """Run what is not at ``path`` yet, one piece per fold and kind, and put the folds together.

    Args:
        model: a hooked model; it is as before afterwards.
        corpus: text by language.
        path: a directory for the pieces, new or of a run with the same settings.
        config: what to do.
        detection: instead of detecting: the whole corpus is held out, in a single fold.
        progress: whether to show bars.

    Raises:
        FileExistsError: for a directory with other things in it.
        ValueError: for languages that the settings name and the corpus lacks, or a run with other settings.
    """
    _require_languages(config, detection.languages if detection else list(corpus), corpus)
    saved = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    settings = {
        "model": str(model.cfg.model_name),
        **config.of_effects(),
        "corpus": corpus.describe(),
        "detection": saved,
    }
    folder = ResultsFolder.open(path, NAME, settings)
    if detection:
        folds = iter([_Fold(model, config, path, detection, corpus, progress)])
    else:
        folds = _detected(model, corpus, path, config, progress)
    effects, grids = zip(*((fold.effects(), fold.grid()) for fold in folds), strict=True)
    return EffectsRun(concat_passages(effects, common_rows=True), pool_grids(grids) if config.stages else None), folder


def _detected(
    model: HookedModel, corpus: Corpus, path: Path, config: EffectsConfig, progress: bool
) -> Iterator["_Fold"]:
    for number, (train, held_out) in enumerate(corpus.folds(config.folds, seed=config.seed)):
        place, options = path / f"fold-{number}", {"top": config.top, "max_tokens": config.max_tokens}
        detection = load_or_run(place / "detection", Detection, detect, model, train, progress=progress, **options)
        yield _Fold(model, config, place, detection, held_out, progress)


@dataclass(frozen=True)
class _Fold:
    """A detection, and the documents on which its effects are measured."""

    model: HookedModel
    config: EffectsConfig
    path: Path
    detection: Detection
    held_out: Corpus
    progress: bool

    @cached_property
    def sets(self) -> dict[str, NeuronSet]:
        return specific_sets(self.detection, self.config.quorum, self.config.against_quorum)

    @property
    def read(self) -> Corpus:
        return self.held_out if self.config.passages is None else self.held_out.limit(self.config.passages)

    def run(self, name: str, *arguments: Any) -> Any:
        options = {"max_tokens": self.config.max_tokens, "progress": self.progress}
        return load_or_run(self.path / name, *arguments, **options)

    def effects(self) -> EffectMatrix:
        # one piece per language with controls, so that little is lost when a run is killed
        rows: dict[str, Sets] = {"specific": self.sets}
        for language in self.config.controls:
            every = with_controls(self.sets, self.detection, languages=[language], seeds=self.config.seeds)
            rows[f"controls-{language}"] = {name: row for name, row in every.items() if name not in self.sets}
        pieces = [
            self.run(f"effects/{name}", EffectMatrix, effect_matrix, self.model, row, self.read)
            for name, row in rows.items()
        ]
        return concat_rows(pieces)

    def grid(self) -> StageGrid | None:
        config = self.config
        if not config.stages:
            return None
        sets = {language: self.sets[language] for language in config.stages}
        read = self.read.select(
            {language: range(len(self.read[language])) for language in self.read if language in (*config.stages, "en")}
        )
        stages = Stages(self.model, understanding=config.understanding, generation=config.generation)
        return self.run("grid", StageGrid, stage_grid, self.model, sets, read, stages)


def _require_languages(config: EffectsConfig, detected: Sequence[str], corpus: Corpus) -> None:
    for language in (*config.controls, *config.stages):
        if language not in corpus or language not in detected:
            raise ValueError(
                f"{language!r} must be in the corpus ({', '.join(corpus)}) and detected ({', '.join(detected)})."
            )


# --- tables and figures ---


def write_effects(folder: ResultsFolder, effects: EffectMatrix) -> None:
    """The matrix, selectivity in every unit and among languages of either script, the folds, and figures."""
    units = _units(effects)
    compared = [
        effects.per(unit).selectivity(among).assign(unit=unit, among=among)
        for unit in units
        for among in get_args(Among)
    ]
    folder.table("effects", effects.to_frame())
    folder.table("intervals", pd.concat([effects.per(unit).intervals.assign(unit=unit) for unit in units]))
    folder.table("selectivity", pd.concat(compared))
    folder.figure("effects", plots.effect_matrix(effects))
    if len(effects.selectivity()):
        folder.table("folds", effects.by_fold())
        folder.figure("selectivity", plots.selectivity(effects))


def _units(effects: EffectMatrix) -> list[Unit]:
    """Those that this corpus allows."""
    units: list[Unit] = []
    for unit in get_args(Unit):
        try:
            effects.per(unit)
        except ValueError:
            continue
        units.append(unit)
    return units


def write_grid(folder: ResultsFolder, grid: StageGrid, flow: Workflow) -> None:
    """The stage grid, the workflow's evidence, and figures of both."""
    versions = {False: "all", True: "equal"} if grid.has_equal else {False: "all"}
    folder.table("stages", pd.concat([grid.to_frame(equal=e).assign(count=name) for e, name in versions.items()]))
    folder.table("workflow", flow.to_frame())
    folder.figure("stages", plots.stage_grid(grid))
    folder.figure("workflow", plots.workflow(flow))
