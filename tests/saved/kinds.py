"""Each saved kind of result: its class, and what is checked of it when it is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mwork_lens as mw
from mwork_lens.lens import IdentifierAccuracy, LatentLanguages, LensGrid

# no public name: update these paths when the modules move
from mwork_lens.tuning import Enhancement

from ..compare_floats import plain

FOLDER = Path(__file__).parent
ROWS = 4


def _effects(found: Any) -> dict[str, Any]:
    derived = {"intervals": found.intervals, "selectivity": found.selectivity(), "by fold": found.by_fold()}
    return {
        "nats": found.nats,
        "tokens": found.tokens,
        "settings": found.settings,
        "frame": found.to_frame(),
        **derived,
    }


def _delta(found: Any) -> dict[str, Any]:
    return {"neurons": found.neurons, "old": found.old, "new": found.new, "size": len(found), "frame": found.to_frame()}


def _enhancement(found: Any) -> dict[str, Any]:
    matrix = found.matrix()
    of_matrix = {"matrix": matrix.to_frame(), "intervals": matrix.intervals, "table": found.table()}
    tables = {"runs": found.runs().drop(columns=_seconds(found)), "rates": found.rates(), "changes": found.changes}
    return {**tables, **of_matrix, "findings": found.findings()}


def _seconds(found: Any) -> list[str]:
    return [name for name in found.runs() if "second" in name]


KINDS: Mapping[str, tuple[Any, Callable[[Any], dict[str, Any]]]] = {
    "neuron_set": (mw.NeuronSet, lambda s: {"origin": s.origin, "size": len(s), "frame": s.to_frame()}),
    "detection": (
        mw.Detection,
        lambda d: {
            **{name: getattr(d, name) for name in ("counts", "mean_scores", "screened", "documents", "settings")},
            # a loaded one lists sites in another order
            "frame": d.to_frame().sort_values(["language", "layer", "site"], ignore_index=True),
            "specific": d.specific("fr", quorum=0.5).to_frame(),
        },
    ),
    "activations": (
        mw.Activations,
        lambda a: {"values": a.values, "streams": a.streams, "tokens": a.tokens, "frame": a.to_frame()},
    ),
    "effect_matrix": (mw.EffectMatrix, _effects),
    "folded_effects": (mw.EffectMatrix, _effects),
    "tuning_effects": (mw.EffectMatrix, _effects),
    "layer_sweep": (mw.LayerSweep, lambda s: {"frame": s.to_frame(), "finding": s.finding()}),
    "stage_grid": (
        mw.StageGrid,
        lambda g: {"frame": g.to_frame(), "equal": g.to_frame(equal=True), "means": g.means(), "layers": str(g.layers)},
    ),
    "workflow": (mw.Workflow, lambda w: {"frame": w.to_frame(), "layers": w.layers}),
    "language_ratio": (
        mw.LanguageRatio,
        lambda r: {
            **{name: getattr(r, name) for name in ("counts", "chance", "vocabulary", "names", "settings")},
            "frame": r.to_frame(),
            "verdict": r.verdict("en"),
        },
    ),
    "lens_grid": (LensGrid, lambda g: {"frame": g.to_frame(), "vocabulary": g.vocabulary}),
    "latent_languages": (LatentLanguages, lambda f: {"frame": f.to_frame(), "rank": f.rank, "finding": f.finding()}),
    "identifier_accuracy": (IdentifierAccuracy, lambda a: {"frame": a.to_frame(), "precision": a.precision}),
    "neuron_cards": (
        mw.NeuronCards,
        lambda c: {"frame": c.to_frame(), "contexts": c.contexts, "written": c.written(), "summary": c.summary("fr")},
    ),
    "generations": (mw.Generations, lambda g: {"frame": g.to_frame(), "summary": g.summary()}),
    "steering": (mw.Steering, lambda s: {"frame": s.to_frame(), "norms": s.norms}),
    "neuron_delta": (mw.NeuronDelta, _delta),
    "tuned": (
        mw.Tuned,
        lambda t: {"steps": t.steps, "held_out": t.held_out, "frame": t.to_frame(), **_delta(t.delta)},
    ),
    "enhancement": (Enhancement, _enhancement),
}


def facts(kind: str, result: Any) -> Any:
    """What is checked of a result, as JSON holds it."""
    return plain(_handful(KINDS[kind][1](result)))


def _handful(value: Any) -> Any:
    """Of a tensor its shape, sum and first values; of a table the first and last rows."""
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "sum": value.sum(), "first": value.flatten()[:3]}
    if isinstance(value, pd.DataFrame) and len(value) > 2 * ROWS:
        return pd.concat([value.iloc[:ROWS], value.iloc[-ROWS:]])
    return {key: _handful(item) for key, item in value.items()} if isinstance(value, Mapping) else value
