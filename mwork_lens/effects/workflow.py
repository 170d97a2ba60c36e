"""MWork's workflow against a model's own numbers: each claim with its evidence, or "not supported"."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd

from ..lens import LanguageRatio
from ..statistics import Estimate
from ..statistics import verdict as interval_verdict
from ..store import Result, storable
from .parts import StageGrid

Verdict = Literal["supported", "not supported", "not measured"]
_VERDICTS: Mapping[str, Verdict] = {"above": "supported", "not measurable": "not measured"}
UNMEASURED = Estimate.nan().cells("value")
TASK_PARTS = ("task_solving attention", "task_solving feed_forward")


@storable
@dataclass(frozen=True)
class Evidence:
    """One claim about a stage, and what was measured."""

    stage: str
    claim: str
    """What the hypothesis says of this stage."""
    measure: str
    """What was measured, with its unit."""
    value: float
    low: float
    high: float
    """The 95 % interval; the claim is supported where all of it lies above zero."""
    verdict: Verdict


@dataclass(frozen=True)
class Workflow(Result, kind="workflow"):
    """The three stages with this model's evidence."""

    evidence: tuple[Evidence, ...]
    layers: Mapping[str, tuple[int, int]]
    """First and last layer of each stage."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    def of(self, stage: str) -> list[Evidence]:
        """The evidence about one stage."""
        return [evidence for evidence in self.evidence if evidence.stage == stage]

    def to_frame(self) -> pd.DataFrame:
        """One row per claim: stage, claim, measure, value, low, high, verdict."""
        return pd.DataFrame([asdict(evidence) for evidence in self.evidence])

    def __repr__(self) -> str:
        counted = {v: sum(e.verdict == v for e in self.evidence) for v in get_args(Verdict)}
        return f"Workflow({self.settings['model']}: claims {', '.join(f'{n} {v}' for v, n in counted.items())})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)


def workflow(grid: StageGrid, ratio: LanguageRatio | None = None, *, pivot: str = "en") -> Workflow:
    """Each claim of the hypothesis that these results can test.

    Understanding and generation: the parts of the languages' sets there raise their own language's loss more than the
    others' (own minus others, mean over the languages other than the pivot), and do so more than as many neurons of
    the task-solving layers do. Task solving: its layers decode to the pivot more than chance. That attention reasons
    and the feed-forward structure holds knowledge takes tasks, not loss, and stays ``not measured``.

    Args:
        grid: the stage grid, with its equal-count version.
        ratio: which language each layer speaks; without it the claims about decoding are not measured.
        pivot: the language that the hypothesis says the middle layers work in.

    Raises:
        ValueError: for a grid without its equal-count version.
    """
    if not grid.has_equal:
        raise ValueError("The workflow compares parts of equal size: measure the stage grid with equal=True.")
    evidence = (
        *_of_layers(grid, "understanding", "turns a query in any language into a common form", pivot),
        _of_pivot(grid, ratio, pivot),
        _evidence("task_solving", "attention reasons, feed-forward recalls", "score on tasks", UNMEASURED),
        *_of_layers(grid, "generation", "puts the answer back into the query's language", pivot),
    )
    layers = {stage: (layers.start, layers.stop - 1) for stage, layers in grid.layers.items()}
    return Workflow(evidence, layers, {"model": grid.effects.settings["model"], "pivot": pivot})


def _of_layers(grid: StageGrid, stage: str, claim: str, pivot: str) -> list[Evidence]:
    """That the stage's neurons are the language's own, and more so than those of the task-solving layers."""
    unit = "own rise − others’, nats per token"
    whole = grid.difference([stage], without=[pivot])
    equal = grid.difference([stage], equal=True, without=[pivot])
    task = grid.difference(TASK_PARTS, equal=True, without=[pivot])
    compared = {f"language’s neurons off: {unit}": whole, f"… minus as many task-solving ones’: {unit}": equal - task}
    return [_evidence(stage, claim, measure, estimate.cells("value")) for measure, estimate in compared.items()]


def _of_pivot(grid: StageGrid, ratio: LanguageRatio | None, pivot: str) -> Evidence:
    numbers = UNMEASURED
    if ratio is not None:
        # the lens counts the embedding as layer 0
        layers = [layer + 1 for layer in grid.layers["task_solving"] if layer + 1 in ratio.layers]
        mean = ratio.verdict(pivot, layers).loc["mean"]
        numbers = {"value": float(mean["lift"]), "low": float(mean["low"]), "high": float(mean["high"])}
    measure = f"share of tokens decoding to {pivot}, above chance"
    return _evidence("task_solving", f"works in {pivot}", measure, numbers)


def _evidence(stage: str, claim: str, measure: str, numbers: Mapping[str, float]) -> Evidence:
    side = interval_verdict(numbers["low"], numbers["high"])
    return Evidence(stage, claim, measure, **numbers, verdict=_VERDICTS.get(side, "not supported"))
