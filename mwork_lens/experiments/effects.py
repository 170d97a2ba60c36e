"""Effects fold by fold: detection, effect matrix with controls, stage grid; what is on disk is not run again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

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
    beside,
    effect_matrix,
    pool_common,
    pool_grids,
    stage_grid,
    workflow,
)
from ..model import HookedModel
from ..neurons import NeuronSet, Stages
from ..text import Corpus
from .folder import ResultsFolder, piece

NAME = "effects"


@dataclass(frozen=True)
class Plan:
    """What a study does."""

    folds: int = 2
    """Detection runs on all other folds' documents, effects are measured on the fold's own."""
    passages: int | None = None
    """At most this many held-out passages a language in each fold."""
    controls: Sequence[str] = ()
    """Languages whose sets are compared with every control."""
    seeds: Sequence[int] = (0,)
    """Of the controls: one draw each."""
    stages: Sequence[str] = ()
    """Languages of the stage grid, which reads these and English; none leaves it out."""
    understanding: int | None = None
    """The first layers; by default the share that the paper's authors chose, as for ``generation``."""
    generation: int | None = None
    """The last layers."""
    top: float = 0.2
    """Active: the top fraction of each layer and site."""
    quorum: float = 0.9
    """Share of documents on which a neuron must be active."""
    against_quorum: float | None = None
    """Share of other languages' documents that makes a neuron theirs; the quorum if None."""
    max_tokens: int = 512
    """Longer documents are cut there."""
    seed: int = 0
    """Of the division into folds."""

    def sets(self, detection: Detection) -> dict[str, NeuronSet]:
        """Each language's specific neurons; languages without any are left out."""
        quorums = {"quorum": self.quorum, "against_quorum": self.against_quorum}
        found = {language: detection.specific(language, **quorums) for language in detection.languages}
        return {language: neurons for language, neurons in found.items() if len(neurons)}


@dataclass(frozen=True)
class Study:
    """What a study found."""

    effects: EffectMatrix
    grid: StageGrid | None = None

    def write(self, folder: ResultsFolder) -> None:
        """Tables and figures into a results folder."""
        write_effects(folder, self.effects)
        if self.grid:
            write_grid(folder, self.grid, workflow(self.grid))


def run_study(
    model: HookedModel,
    corpus: Corpus,
    path: Path,
    plan: Plan,
    *,
    detection: Detection | None = None,
    progress: bool = True,
) -> tuple[Study, ResultsFolder]:
    """Run what is not at ``path`` yet, a piece a fold and kind, and pool the folds.

    Args:
        model: a hooked model; it is as before afterwards.
        corpus: text by language.
        path: a directory for the pieces, new or of a run with the same settings.
        plan: what to do.
        detection: instead of detecting: the whole corpus is held out, in a single fold.
        progress: whether to show bars.

    Raises:
        FileExistsError: for a directory with other things in it.
        ValueError: for languages that the plan names and the corpus lacks, or a run with other settings.
    """
    _require_languages(plan, detection.languages if detection else list(corpus), corpus)
    given = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    asked = {"model": str(model.cfg.model_name), **asdict(plan), "corpus": corpus.describe(), "detection": given}
    folder = ResultsFolder.open(path, NAME, asked)
    parts = _folds(model, corpus, path, plan, progress) if detection is None else [(path, detection, corpus)]
    effects, grids = [], []
    for part, found, held_out in parts:
        read = held_out if plan.passages is None else held_out.limit(plan.passages)
        effects.append(_effects(model, read, part, plan, found, progress))
        grids += [_grid(model, read, part, plan, plan.sets(found), progress)] if plan.stages else []
    return Study(pool_common(effects), pool_grids(grids) if grids else None), folder


def _folds(
    model: HookedModel, corpus: Corpus, path: Path, plan: Plan, progress: bool
) -> Iterator[tuple[Path, Detection, Corpus]]:
    for number, (train, held_out) in enumerate(corpus.folds(plan.folds, seed=plan.seed)):
        part, options = path / f"fold-{number}", {"top": plan.top, "max_tokens": plan.max_tokens}
        yield part, piece(part / "detection", Detection, detect, model, train, progress=progress, **options), held_out


def _effects(
    model: HookedModel, read: Corpus, part: Path, plan: Plan, found: Detection, progress: bool
) -> EffectMatrix:
    # a piece a language with controls, so that little is lost when a run is killed
    sets, options = plan.sets(found), {"max_tokens": plan.max_tokens, "progress": progress}
    rows: dict[str, Sets] = {"specific": sets}
    for language in plan.controls:
        every = with_controls(sets, found, languages=[language], seeds=plan.seeds)
        rows[f"controls-{language}"] = {name: row for name, row in every.items() if name not in sets}
    folder = part / "effects"
    return beside([piece(folder / n, EffectMatrix, effect_matrix, model, r, read, **options) for n, r in rows.items()])


def _grid(
    model: HookedModel, read: Corpus, part: Path, plan: Plan, sets: Mapping[str, NeuronSet], progress: bool
) -> StageGrid:
    divided = {language: sets[language] for language in plan.stages}
    kept = [language for language in read if language in (*plan.stages, "en")]
    few = read.select({language: range(len(read[language])) for language in kept})
    stages = Stages(model, understanding=plan.understanding, generation=plan.generation)
    options = {"max_tokens": plan.max_tokens, "progress": progress}
    return piece(part / "grid", StageGrid, stage_grid, model, divided, few, stages, **options)


def _require_languages(plan: Plan, detected: Sequence[str], corpus: Corpus) -> None:
    for language in (*plan.controls, *plan.stages):
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
    found: list[Unit] = []
    for unit in get_args(Unit):
        try:
            effects.per(unit)
        except ValueError:
            continue
        found.append(unit)
    return found


def write_grid(folder: ResultsFolder, grid: StageGrid, flow: Workflow) -> None:
    """The stage grid, the workflow's evidence, and figures of both."""
    versions = {False: "all", True: "equal"} if grid.has_equal else {False: "all"}
    folder.table("stages", pd.concat([grid.to_frame(equal=e).assign(count=name) for e, name in versions.items()]))
    folder.table("workflow", flow.to_frame())
    folder.figure("stages", plots.stage_grid(grid))
    folder.figure("workflow", plots.workflow(flow))
