"""Neurons off and what that does to losses: detections in folds, their sets and controls, as tables and figures."""

import contextlib
import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from .. import plots
from ..detection import Detection, detect, with_controls
from ..effects.joining import concat_passages, concat_rows
from ..effects.losses import Sets, effect_matrix
from ..effects.matrix import Among, EffectMatrix, Unit
from ..effects.overlap import DETECTION, SAID, check_overlap, statuses_of
from ..effects.parts import StageGrid, pool_grids, stage_grid
from ..effects.workflow import workflow
from ..model import HookedModel, model_record
from ..neurons import Stages
from ..settings import EffectsConfig
from ..store import digest
from ..text import Corpus
from ..text.choices import listed
from .folder import ResultsFolder, load_or_run, piece_name
from .sets import specific_sets


def effects_settings(config: EffectsConfig) -> dict[str, Any]:
    """Settings that decide the result by name, without those of a larger run."""
    return {field.name: getattr(config, field.name) for field in fields(EffectsConfig) if field.name != "overlap"}


def held_out_text(corpus: Corpus, detection: Detection) -> Corpus:
    """The documents that a detection has not read, where some were kept aside for this; else the whole corpus."""
    if detection.seen is None or "held_out" not in detection.settings["corpus"]:
        return corpus
    return corpus.without(detection.seen)


def require_languages(config: EffectsConfig, corpus: Corpus, detection: Detection | None = None) -> None:
    """Refuse controls or stages of a language that has no text, or none that was detected."""
    known = [language for language in corpus if detection is None or language in detection.languages]
    for name in ("controls", "stages"):
        for language in getattr(config, name):
            if language not in known:
                where = "the corpus has" if detection is None else "corpus and detection have"
                raise ValueError(f"{name}: there is no {language!r}; {where} {listed(known, language)}.")


def run_effects(
    model: HookedModel,
    corpus: Corpus,
    path: Path,
    config: EffectsConfig,
    *,
    detection: Detection | None = None,
    progress: bool = True,
) -> tuple[EffectMatrix, StageGrid | None, ResultsFolder]:
    """Run what is not at ``path`` yet, one piece per fold and kind, and put the folds together.

    With a detection, the whole corpus is held out, in a single fold.
    """
    require_languages(config, corpus, detection)
    if config.stages:
        stages_of(model, config)
    if detection is not None:
        check_overlap(corpus, statuses_of(corpus, [detection.seen]), config.overlap, stacklevel=3)
    saved = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    settings = {**effects_settings(config), "corpus": corpus.describe(), "detection": saved}
    folder = ResultsFolder.open(path, "effects", {**model_record(model), **settings})
    path, options = folder.path, {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
    measured = []
    if detection:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SAID.format(DETECTION))  # above, once for all pieces
            measured.append(_measure(model, config, path, detection, corpus, progress))
    for number, (train, held_out) in enumerate([] if detection else corpus.folds(config.folds, seed=config.seed)):
        place = path / f"fold-{number}"
        of_fold = load_or_run(place / "detection", Detection, detect, model, train, **options)
        measured.append(_measure(model, config, place, of_fold, held_out, progress))
    effects, grids = zip(*measured, strict=True)
    return concat_passages(effects, common_rows=True), pool_grids(grids) if config.stages else None, folder


def stages_of(model: HookedModel, config: EffectsConfig) -> Stages:
    """The layers of each stage; ValueError unless each has one."""
    return Stages(model, understanding=config.understanding, generation=config.generation)


def _measure(
    model: HookedModel, config: EffectsConfig, path: Path, detection: Detection, held_out: Corpus, progress: bool
) -> tuple[EffectMatrix, StageGrid | None]:
    """A fold's effects and stage grid, in one piece per language with controls: a killed run loses little."""
    sets = specific_sets(detection, config.quorum, config.against_quorum)
    read = held_out if config.passages is None else held_out.limit(config.passages)
    options: dict[str, Any] = {"max_tokens": config.max_tokens, "overlap": config.overlap, "progress": progress}
    rows: dict[str, Sets] = {"specific": sets}
    for language in config.controls:
        every = with_controls(sets, detection, languages=[language], seeds=config.seeds)
        rows[f"controls-{piece_name(language)}"] = {name: row for name, row in every.items() if name not in sets}
    effects = concat_rows(
        [
            load_or_run(path / f"effects/{name}", EffectMatrix, effect_matrix, model, row, read, **options)
            for name, row in rows.items()
        ]
    )
    if not config.stages:
        return effects, None
    of_stages = {language: sets[language] for language in config.stages}
    read = read.select({tag: range(len(texts)) for tag, texts in read.items() if tag in (*config.stages, "en")})
    stages = stages_of(model, config)
    return effects, load_or_run(path / "grid", StageGrid, stage_grid, model, of_stages, read, stages, **options)


def effects_of_sets(
    model: HookedModel, sets: Sets, corpus: Corpus, path: Path, config: EffectsConfig
) -> tuple[EffectMatrix, None, ResultsFolder]:
    """The effects of saved sets, saved at ``path``, and the folder for their tables."""
    options = {"max_tokens": config.max_tokens, "overlap": config.overlap}
    settings = {"max_tokens": config.max_tokens, "corpus": corpus.describe()}
    settings["sets"] = {name: digest(neurons) for name, neurons in sets.items()}
    folder = ResultsFolder.open(path, "effects of sets", {**model_record(model), **settings})
    place = folder.path / "effects"
    return load_or_run(place, EffectMatrix, effect_matrix, model, sets, corpus, **options), None, folder


def write_effects(folder: ResultsFolder, effects: EffectMatrix, grid: StageGrid | None = None) -> None:
    """The matrix, selectivity in every unit and among languages of either script, the folds, stages, and figures."""
    units: dict[Unit, EffectMatrix] = {}
    for unit in get_args(Unit):
        with contextlib.suppress(ValueError):  # not every corpus allows every unit
            units[unit] = effects.per(unit)
    compared = [
        matrix.selectivity(among).assign(unit=unit, among=among)
        for unit, matrix in units.items()
        for among in get_args(Among)
    ]
    intervals = pd.concat([matrix.intervals.assign(unit=unit) for unit, matrix in units.items()])
    tables = {
        "effects": effects.to_frame(),
        "documents": effects.documents_read,
        "intervals": intervals,
        "selectivity": pd.concat(compared),
    }
    folder.write(tables, {"effects": plots.effect_matrix(effects)})
    if len(effects.selectivity()):
        folder.write({"folds": effects.by_fold()}, {"selectivity": plots.selectivity(effects)})
    if grid:
        counts = {"all": False, "equal": True} if grid.has_equal else {"all": False}
        stages = pd.concat([grid.to_frame(equal=equal).assign(count=name) for name, equal in counts.items()])
        flow = workflow(grid)
        figures = {"stages": plots.stage_grid(grid), "workflow": plots.workflow(flow)}
        folder.write({"stages": stages, "workflow": flow.to_frame()}, figures)
