"""Neurons off and what that does to losses: detections in folds, their sets and controls, as tables and figures."""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
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
from ..model import Encoded, HookedModel, model_record
from ..model.shards import part_of
from ..neurons import Stages
from ..settings import EffectsConfig, PartOf
from ..store import digest
from ..text import Corpus
from ..text.choices import listed
from .folder import ResultsFolder, load_or_run, piece_name
from .sets import specific_sets

EFFECTS, EFFECTS_OF_SETS = "effects", "effects of sets"
"""What the settings of a folder call them."""
GRID = "grid"


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
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> tuple[EffectMatrix, StageGrid | None, ResultsFolder]:
    """Run what is not at ``path`` yet, one piece per fold and kind, and put the folds together.

    With a detection, the whole corpus is held out, in a single fold; of that, with ``shard``, only a part is measured.
    """
    require_languages(config, corpus, detection)
    if config.stages:
        stages_of(model, config)
    if detection is not None:
        check_overlap(corpus, statuses_of(corpus, [detection.seen]), config.overlap, stacklevel=3)
    saved = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    settings = {**effects_settings(config), "corpus": corpus.describe(), "detection": saved}
    folder = ResultsFolder.open(path, EFFECTS, {**model_record(model), **settings, **PartOf(shard).record})
    path, options = folder.path, {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
    measured = []
    if detection:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SAID.format(DETECTION))  # above, once for all pieces
            measured.append(_measure(model, config, path, detection, corpus, progress, shard))
    for number, (train, held_out) in enumerate([] if detection else corpus.folds(config.folds, seed=config.seed)):
        place = path / f"fold-{number}"
        of_fold = load_or_run(place / "detection", Detection, detect, model, train, **options)
        measured.append(_measure(model, config, place, of_fold, held_out, progress))
    return *put_together(measured), folder


def pieces_of(settings: Mapping[str, Any]) -> dict[str, type[EffectMatrix] | type[StageGrid]]:
    """What is measured with one detection: its pieces by name, and of which kind each is."""
    rows = ["specific", *(f"controls-{piece_name(language)}" for language in settings["controls"])]
    return {**{f"effects/{name}": EffectMatrix for name in rows}, **({GRID: StageGrid} if settings["stages"] else {})}


def put_together(folds: Sequence[Mapping[str, Any]]) -> tuple[EffectMatrix, StageGrid | None]:
    """The effects and the stage grid of all folds, out of the pieces of each."""
    effects = [concat_rows([piece for name, piece in pieces.items() if name != GRID]) for pieces in folds]
    grids = [pieces[GRID] for pieces in folds if GRID in pieces]
    return concat_passages(effects, common_rows=True), pool_grids(grids) if grids else None


def stages_of(model: HookedModel, config: EffectsConfig) -> Stages:
    """The layers of each stage; ValueError unless each has one."""
    return Stages(model, understanding=config.understanding, generation=config.generation)


def _measure(
    model: HookedModel,
    config: EffectsConfig,
    path: Path,
    detection: Detection,
    held_out: Corpus,
    progress: bool,
    shard: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A fold's effects and stage grid, in one piece per language with controls: a killed run loses little."""
    sets = specific_sets(detection, config.quorum, config.against_quorum)
    if lacking := [language for language in config.stages if language not in sets]:
        raise ValueError(f"stages: {lacking[0]!r} has no specific neurons; there are {listed(sets, lacking[0])}.")
    read = held_out if config.passages is None else held_out.limit(config.passages)
    of_stages = {language: sets[language] for language in config.stages}
    of_grid = read.select({tag: range(len(texts)) for tag, texts in read.items() if tag in (*config.stages, "en")})
    if shard is not None and config.stages:  # refused before the work
        part_of(Encoded.of(model, of_grid, config.max_tokens).plan(), shard)
    options: dict[str, Any] = {"max_tokens": config.max_tokens, "overlap": config.overlap}
    options |= {"shard": shard, "progress": progress}
    rows: dict[str, Sets] = {"specific": sets}
    for language in config.controls:
        every = with_controls(sets, detection, languages=[language], seeds=config.seeds)
        rows[f"controls-{piece_name(language)}"] = {name: row for name, row in every.items() if name not in sets}
    pieces = {
        f"effects/{name}": load_or_run(
            path / "effects" / name, EffectMatrix, effect_matrix, model, row, read, **options
        )
        for name, row in rows.items()
    }
    if not config.stages:
        return pieces
    stages = stages_of(model, config)
    grid = load_or_run(path / GRID, StageGrid, stage_grid, model, of_stages, of_grid, stages, **options)
    return {**pieces, GRID: grid}


def effects_of_sets(
    model: HookedModel,
    sets: Sets,
    corpus: Corpus,
    path: Path,
    config: EffectsConfig,
    *,
    shard: tuple[int, int] | None = None,
) -> tuple[EffectMatrix, None, ResultsFolder]:
    """The effects of saved sets, saved at ``path``, and the folder for their tables."""
    options = {"max_tokens": config.max_tokens, "overlap": config.overlap, "shard": shard}
    settings = {"max_tokens": config.max_tokens, "corpus": corpus.describe()}
    settings["sets"] = {name: digest(neurons) for name, neurons in sets.items()}
    folder = ResultsFolder.open(path, EFFECTS_OF_SETS, {**model_record(model), **settings, **PartOf(shard).record})
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
