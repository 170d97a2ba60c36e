"""Floats of every analysis, written by one checkout and compared with those of another; a script, not a test.

    python tests/compare_floats.py --write a.json [--demo]
    python tests/compare_floats.py --compare a.json b.json [--tolerance 1e-12] [--demo-tolerance 1e-4]

With PYTHONPATH at the root of a checkout, ``--write`` computes them with the package there.
"""

import argparse
import copy
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mwork_lens as mw
from tests import analyses
from tests.analyses import QUIET, ids, tiny
from tests.tiny import FAMILIES

ROUNDING = 1e-15
"""Absolute differences up to this do not count as relative ones: of numbers that are zero but for rounding."""
DEMO = "demo: "


# --- what is computed ---


def refused(compute: Callable[[], Any]) -> Any:
    """What is computed, or that it is refused."""
    try:
        return compute()
    except ValueError:
        return "refused"


def importances() -> Any:
    """Every family and formulation, in the residual stream and in the structure's own output."""
    document = ids()["fr"][2]
    ways = [
        ("exact", "stream"),
        ("exact", "structure"),
        ("paper", "stream"),
        ("paper", "structure"),
        ("released", "stream"),
    ]
    return {
        f"{family} {formulation} {measure}": refused(
            lambda f=family, how=formulation, where=measure: mw.importance(
                tiny(f), document, formulation=how, measure=where
            )
        )
        for family in FAMILIES
        for formulation, measure in ways
    }


def mean_scores() -> Any:
    """Of detections of every kind."""
    kinds: Mapping[str, Mapping[str, Any]] = {
        "top": {},
        "exact": {"scores": "exact"},
        "threshold": {"threshold": 0.3},
        "model": {"scope": "model"},
        "paper": {"formulation": "paper"},
        "released": {"formulation": "released"},
    }
    return {
        f"{family} {name}": refused(lambda f=family, o=options: mw.detect(tiny(f), ids(), **o, **QUIET).mean_scores)
        for family in ("llama", "gemma2", "gemma3", "gpt2", "bloom")
        for name, options in kinds.items()
    }


def detection() -> Any:
    """What follows from one, and from another formulation."""
    found = analyses.detection()
    paper = mw.detect(analyses.reader(), analyses.corpus(), formulation="paper", top=0.3, **QUIET)
    return {
        "frame": found.to_frame(),
        "agreement": mw.agreement(found, paper),
        "overlap": mw.overlap(found, quorum=0.5),
        "counts": mw.neuron_counts(found, quorum=0.5),
        "gaps": {
            seed: mw.matched_control(analyses.sets()["ru"], found, seed=seed).origin["log_score_gap"] for seed in (0, 1)
        },
    }


def activations() -> Any:
    """Means and samples of every family."""
    means = {family: mw.collect_means(tiny(family), ids(), **QUIET) for family in FAMILIES}
    samples = mw.collect_samples(tiny("gemma3"), ids())
    parts = {
        name: [found.values, found.streams, found.overall()] for name, found in {**means, "samples": samples}.items()
    }
    return {**parts, "frame": analyses.means().to_frame()}


def of_effects(found: Any) -> Any:
    """All that an effect matrix says."""
    units = {"token": found, "passage": found.per("passage")}
    units |= {"byte": found.per("byte")}
    return {
        "nats": found.nats,
        "tokens": found.tokens,
        **{f"rises a {unit}": each.to_frame() for unit, each in units.items()},
        **{f"intervals a {unit}": each.intervals for unit, each in units.items()},
        **{f"selectivity among {among}": found.selectivity(among) for among in ("others", "other_script")},
        "baseline": found.baseline.to_dict(),
        "by fold": found.by_fold(),
        "findings": [found.finding(row) for row in found.rows],
    }


def modes() -> Any:
    """The effect of a set in every mode of switching it off."""
    model = tiny("gemma3")
    some = mw.NeuronSet.from_list(mw.NeuronSpace.of(model), [(1, "mlp", 3), (0, "q", 2), (1, "v", 4)], language="fr")
    means, samples = mw.collect_means(model, ids(), **QUIET), mw.collect_samples(model, ids())
    options: Mapping[str, Mapping[str, Any]] = {
        "zero": {},
        "mean": {"values": means},
        "language_mean": {"values": means},
        "set": {"values": means, "language": "ru"},
        "scale": {"factor": 2.0},
        "resample": {"values": samples},
    }
    found = {m: mw.effect_matrix(model, {"fr": some}, ids(1), mode=m, **o, **QUIET) for m, o in options.items()}
    return {mode: [effects.nats, effects.selectivity()] for mode, effects in found.items()}


def family_effects() -> Any:
    """Losses of every family, untouched and with random neurons off, by hooks and in the weights."""
    found = {}
    for family in FAMILIES:
        model = tiny(family)
        space = mw.NeuronSpace.of(model)
        some = mw.random_control(mw.NeuronSet.from_list(space, [(1, "mlp", 3), (0, "q", 2), (1, "v", 4)]), seed=1)
        with mw.edit_weights(model, some):
            edited = mw.language_losses(model, ids())
        effects = mw.effect_matrix(model, {"some": some}, ids(), **QUIET)
        found[family] = [mw.language_losses(model, ids()), edited, effects.nats]
    return found


def stages() -> Any:
    """The layer sweep, the stage grid and the workflow."""
    sweep, grid = analyses.sweep(), analyses.grid()
    return {
        "sweep": [sweep.effects.nats, sweep.to_frame(), sweep.finding()],
        "grid": [grid.effects.nats, grid.to_frame(), grid.to_frame(equal=True), grid.means(), grid.means(equal=True)],
        "workflow": [analyses.workflow().to_frame(), analyses.workflow().layers],
    }


def ratios() -> Any:
    """Shares, intervals and chance of every way to read."""
    ways: Mapping[str, Mapping[str, Any]] = {
        "count": {},
        "mass": {"by": "mass"},
        "raw": {"normalize": False},
        "new": {"new_tokens": 3},
        "last": {"positions": (-1,)},
    }
    found = {}
    for name, options in ways.items():
        ratio = analyses.ratio(**options)
        frames = [ratio.to_frame(), ratio.verdict("en"), ratio.two_way("en").to_frame(), ratio.finding("en")]
        found[name] = [ratio.counts, ratio.chance, ratio.vocabulary, *frames]
    return found


def lens() -> Any:
    """Probes, the lens of a text, and cards."""
    probes, grid, cards = analyses.probes(), analyses.lens_grid(), analyses.cards()
    return {
        "probes": [probes.probability, probes.rank, probes.entropy, probes.to_frame(), probes.finding()],
        "grid": [grid.ids, grid.probabilities, grid.to_frame()],
        "cards": [cards.to_frame(), cards.strongest, cards.promoted, cards.suppressed, cards.contexts],
        "written": [cards.written(), cards.summary("fr")],
        "accuracy": analyses.accuracy().to_frame(),
    }


def texts() -> Any:
    """Completions, greedy, sampled and under interventions."""
    found, steered = analyses.generations(), analyses.steering()
    prompts = [document for documents in ids().values() for document in documents]
    completions = {
        f"{family} {temperature}": mw.generate(tiny(family), prompts, max_new_tokens=6, temperature=temperature, seed=3)
        for family in FAMILIES
        for temperature in (0.0, 1.0)
    }
    return {
        "generate": completions,
        "generations": [found.rows, found.to_frame(), found.summary(), found.languages(), found.side_by_side()],
        "steering": [steered.to_frame(), steered.norms, steered.stream_norm, steered.generations.rows],
    }


def tuning() -> Any:
    """Losses of every step, what changed, and what that does."""
    found = {"neurons": analyses.tuned()}
    model = copy.deepcopy(analyses.reader("qwen3"))
    found["gate, decay, packed"] = analyses.tune(model, gate=True, weight_decay=0.1, layout="packed", max_tokens=16)
    whole = copy.deepcopy(analyses.reader())
    text = {"held_out": analyses.corpus(1)["fr"], "learning_rate": 1e-3, "batch_size": 7, **QUIET}
    every = mw.tune(whole, "all", analyses.corpus()["fr"], **text)
    steps = {"steps": every.steps, "held out": every.held_out, "after": mw.language_losses(whole, analyses.corpus(1))}
    for name, tuned in found.items():
        delta = [tuned.delta.neurons, tuned.delta.old, tuned.delta.new]
        steps[name] = [tuned.steps, tuned.held_out, tuned.changed, tuned.changes, delta, tuned.summary()]
    return steps


def on_demo() -> dict[str, Any]:
    """A few analyses of the demo model, in single precision."""
    model = mw.load_model("demo", device="cpu")
    corpus = mw.load_corpus("demo", languages=["en", "fr"], limit=24).limit(3)
    found = mw.detect(model, corpus, max_tokens=40, **QUIET)
    sets = {language: found.specific(language, quorum=0.6) for language in corpus}
    options = {"max_tokens": 40, **QUIET}
    return {
        "importance": mw.importance(model, corpus["fr"][0], max_tokens=40),
        "detection": [found.mean_scores, found.to_frame()],
        "effects": [(effects := mw.effect_matrix(model, sets, corpus, **options)).nats, effects.selectivity()],
        "losses": mw.language_losses(model, corpus, max_tokens=40),
        "means": mw.collect_means(model, corpus, **options).streams,
        "ratio": mw.language_ratio(
            model, corpus, identifier="script", languages=["en"], directions=8, **options
        ).counts,
        "generate": mw.generate(model, list(corpus["fr"][:2]), max_new_tokens=8),
    }


GROUPS: Mapping[str, Callable[[], Any]] = {
    "importance": importances,
    "mean scores": mean_scores,
    "detection": detection,
    "activations": activations,
    "effects": lambda: of_effects(analyses.effects()),
    "folded effects": lambda: of_effects(analyses.folded()),
    "modes": modes,
    "families": family_effects,
    "stages": stages,
    "language ratio": ratios,
    "lens": lens,
    "texts": texts,
    "tuning": tuning,
    "tuning effects": lambda: of_effects(analyses.tuning_effects()),
}


def plain(value: Any) -> Any:
    """Any result as JSON holds it, every number exactly."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return {str(i): plain(row) for i, row in enumerate(value.reset_index().to_dict("records"))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def write(path: Path, demo: bool) -> None:
    """Compute all groups into a file."""
    found = {}
    for name, compute in GROUPS.items():
        print(f"computing {name}", flush=True)
        found[name] = plain(compute())
    if demo:
        print("computing on the demo model", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found |= {f"{DEMO}{name}": plain(value) for name, value in on_demo().items()}
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


# --- comparing ---


def worded_as_before(text: str) -> str:
    """A sentence as version 0.1 worded it."""
    return re.sub(r"\bnats per (?=token|UTF-8 byte|passage)", "nats a ", text)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text by where it is; texts as before, and contexts of equal activations in one order."""
    if isinstance(value, list) and all(isinstance(item, dict) and "before" in item for item in value):
        value = sorted(value, key=json.dumps)
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    else:
        yield name, worded_as_before(value) if isinstance(value, str) else value


def distance(a: Any, b: Any) -> tuple[float, float]:
    """Relative and absolute difference; infinite where two things are not numbers that can be compared."""
    if a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)):
        return 0.0, 0.0
    whole = isinstance(a, int) and isinstance(b, int)
    if whole or not all(isinstance(x, int | float) and math.isfinite(x) for x in (a, b)):
        return math.inf, math.inf
    difference = abs(a - b)
    return (difference / max(abs(a), abs(b)) if difference > ROUNDING else 0.0), difference


def compare(one: Path, other: Path, tolerance: float, demo_tolerance: float) -> bool:
    """Print how far each group is apart; whether all are within their tolerance."""
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    fine = True
    for group in dict.fromkeys([*a, *b]):
        if group not in a or group not in b:
            print(f"{group}: only in {one if group in a else other}")
            fine = fine and group.startswith(DEMO)
            continue
        left, right = dict(leaves(a[group])), dict(leaves(b[group]))
        apart = {name: distance(left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])}
        worst = max(apart, key=lambda name: apart[name][0])
        relative, absolute = apart[worst][0], max(found for _, found in apart.values())
        differ = sum(left.get(name) != right.get(name) and apart[name][1] > 0 for name in apart)
        missing = len(left.keys() ^ right.keys())
        print(f"{group}: {differ} of {len(apart)} differ, at most {relative:.2g} relative, {absolute:.2g} absolute")
        if missing:
            print(f"    {missing} entries are in one file only")
        if relative > (demo_tolerance if group.startswith(DEMO) else tolerance) or missing:
            print(f"    above the tolerance, most at {worst}: {left.get(worst)!r} and {right.get(worst)!r}")
            fine = False
    return fine


def main() -> int:
    """Write or compare, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    parser.add_argument("--demo", action="store_true", help="also a few analyses of the demo model")
    parser.add_argument("--tolerance", type=float, default=1e-12, help="largest relative difference")
    parser.add_argument("--demo-tolerance", type=float, default=1e-4, help="likewise, in single precision")
    asked = parser.parse_args()
    if asked.write:
        write(asked.write, asked.demo)
        return 0
    return 0 if compare(*asked.compare, asked.tolerance, asked.demo_tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
