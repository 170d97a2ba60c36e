"""Neurons off and what that does to losses: sets and controls from a detection, run in folds, as tables."""

import contextlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch

from .. import plots
from ..detection import Detection, detect, matched_control, other_control, random_control, with_controls
from ..effects.losses import Sets, concat_passages, concat_rows, effect_matrix
from ..effects.matrix import Among, EffectMatrix, Unit
from ..effects.parts import StageGrid, pool_grids, stage_grid
from ..effects.workflow import workflow
from ..model import HookedModel
from ..neurons import NeuronSet, Stages
from ..settings import ENGLISH, EffectsConfig
from ..text import Corpus
from .folder import ResultsFolder, load_or_run


def specific_sets(detection: Detection, quorum: float, against_quorum: float | None = None) -> dict[str, NeuronSet]:
    """Each language's specific neurons; languages without any are left out."""
    options = {"quorum": quorum, "against_quorum": against_quorum}
    sets = {language: detection.specific(language, **options) for language in detection.languages}
    return {language: neurons for language, neurons in sets.items() if len(neurons)}


def most_specific(detection: Detection, neurons: NeuronSet, language: str, number: int) -> NeuronSet:
    """Of a language's neurons, those whose mean score there exceeds that of every other language by the largest factor.

    Of ``v`` and ``mlp`` where the set has any there, since only these write to the residual stream.
    """
    writing = neurons.restrict(sites=[site for site in neurons.masks if site in ("v", "mlp")])
    candidates = writing if len(writing) else neurons
    factors = []
    for site, mask in candidates.masks.items():
        scores = {name: by_site[site] for name, by_site in detection.mean_scores.items()}
        others = torch.stack([values for name, values in scores.items() if name != language]).amax(0)
        factor = scores[language] / others.clamp_min(1e-30)
        factors += [(float(factor[layer, i]), (layer, site, i)) for layer, i in mask.nonzero().tolist()]
    return NeuronSet.from_list(neurons.space, [place for _, place in sorted(factors, reverse=True)[:number]])


def arm_set(arm: str, detection: Detection, language: str, quorum: float, seed: int = 0) -> NeuronSet:
    """What an arm switches off or tunes: a language's active or (by default) specific neurons, or a control for them.

    ``seed`` is that of random ones. Raises a ValueError where no other language has neurons of its own to take.
    """
    if arm in ("active", "random as active"):
        neurons = detection.active(language, quorum=quorum)
    else:
        against = ENGLISH if arm == "active but not English's" else "others"
        neurons = detection.specific(language, against=against, quorum=quorum)
    if arm in ("random", "random as active"):
        return random_control(neurons, seed=seed)
    if arm in ("matched", "matched random"):
        return matched_control(neurons, detection, seed=seed)
    if arm in ("active", "active but not English's", "specific", "english-text"):
        return neurons
    if arm != "other-neurons":
        raise ValueError(f"There is no arm {arm!r}.")
    sets = [other for name, other in specific_sets(detection, quorum).items() if name not in (language, ENGLISH)]
    if not sets:
        raise ValueError(f"No language besides {language!r} and English has neurons of its own: leave out the arm.")
    return other_control(neurons, min(sets, key=lambda other: abs(len(other) - len(neurons))), seed=seed)


def effects_settings(config: EffectsConfig) -> dict[str, Any]:
    """Settings by name, without those of a larger run."""
    return {field.name: getattr(config, field.name) for field in fields(EffectsConfig)}


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
    detected = detection.languages if detection else list(corpus)
    for language in (*config.controls, *config.stages):
        if language not in corpus or language not in detected:
            raise ValueError(
                f"{language!r} must be in the corpus ({', '.join(corpus)}) and detected ({', '.join(detected)})."
            )
    saved = None if detection is None else {"space": asdict(detection.space), **detection.settings}
    settings = {**effects_settings(config), "corpus": corpus.describe(), "detection": saved}
    folder = ResultsFolder.open(path, "effects", {"model": str(model.cfg.model_name), **settings})
    options = {"top": config.top, "max_tokens": config.max_tokens, "progress": progress}
    measured = [_measure(model, config, path, detection, corpus, progress)] if detection else []
    for number, (train, held_out) in enumerate([] if detection else corpus.folds(config.folds, seed=config.seed)):
        place = path / f"fold-{number}"
        of_fold = load_or_run(place / "detection", Detection, detect, model, train, **options)
        measured.append(_measure(model, config, place, of_fold, held_out, progress))
    effects, grids = zip(*measured, strict=True)
    return concat_passages(effects, common_rows=True), pool_grids(grids) if config.stages else None, folder


def _measure(
    model: HookedModel, config: EffectsConfig, path: Path, detection: Detection, held_out: Corpus, progress: bool
) -> tuple[EffectMatrix, StageGrid | None]:
    """A fold's effects and stage grid, in one piece per language with controls: a killed run loses little."""
    sets = specific_sets(detection, config.quorum, config.against_quorum)
    read = held_out if config.passages is None else held_out.limit(config.passages)
    options: dict[str, Any] = {"max_tokens": config.max_tokens, "progress": progress}
    rows: dict[str, Sets] = {"specific": sets}
    for language in config.controls:
        every = with_controls(sets, detection, languages=[language], seeds=config.seeds)
        rows[f"controls-{language}"] = {name: row for name, row in every.items() if name not in sets}
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
    stages = Stages(model, understanding=config.understanding, generation=config.generation)
    return effects, load_or_run(path / "grid", StageGrid, stage_grid, model, of_stages, read, stages, **options)


def effects_of_sets(
    model: HookedModel, sets: Sets, corpus: Corpus, path: Path, max_tokens: int
) -> tuple[EffectMatrix, None, ResultsFolder]:
    """The effects of saved sets, saved at ``path``, and the folder for their tables."""
    effects = effect_matrix(model, sets, corpus, max_tokens=max_tokens)
    folder = ResultsFolder.open(path, "effects of sets", effects.settings)
    effects.save(path / "effects")
    return effects, None, folder


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
    tables = {"effects": effects.to_frame(), "intervals": intervals, "selectivity": pd.concat(compared)}
    folder.write(tables, {"effects": plots.effect_matrix(effects)})
    if len(effects.selectivity()):
        folder.write({"folds": effects.by_fold()}, {"selectivity": plots.selectivity(effects)})
    if grid:
        counts = {"all": False, "equal": True} if grid.has_equal else {"all": False}
        stages = pd.concat([grid.to_frame(equal=equal).assign(count=name) for name, equal in counts.items()])
        flow = workflow(grid)
        figures = {"stages": plots.stage_grid(grid), "workflow": plots.workflow(flow)}
        folder.write({"stages": stages, "workflow": flow.to_frame()}, figures)
