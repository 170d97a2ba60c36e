"""MWork's workflow against a model's own numbers: what was tested of each stage, and what that is consistent with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ..lens import LanguageRatio
from ..model import ModelRecord, of_one_model, shown_model
from ..neurons import STAGES
from ..settings import ENGLISH
from ..statistics import adjusted_verdict, benjamini_hochberg
from ..store import Result, require_record, storable
from ..text import check_arguments
from ..text.choices import require_choice
from .parts import StageGrid

Verdict = Literal["supported", "not supported", "not measured", "not measurable"]
_VERDICTS: Mapping[str, Verdict] = {"above": "supported", "not measurable": "not measurable"}
UNMEASURED = {"value": np.nan, "low": np.nan, "high": np.nan, "passages": 0, "documents": 0, "p_adjusted": np.nan}
TASK_PARTS = ("task_solving attention", "task_solving feed_forward")
HYPOTHESES = {
    "understanding": "turns a query in any language into a common form",
    "task_solving": "works in {}",
    "generation": "puts the answer back into the query’s language",
}
"""What MWork says of each stage. The measures are consistent with it or not; none of them tests it as such."""
OWN = "the language’s neurons here serve it more than the other languages"
BEYOND = "… and more than as many of its neurons in the task-solving layers do"


@storable
@dataclass(frozen=True)
class Evidence:
    """One claim about a stage that was tested, and what was measured."""

    stage: str
    claim: str
    """What is tested, in the words of the measure."""
    measure: str
    """What was measured, with its unit."""
    value: float
    low: float
    high: float
    """The 95 % interval, of this claim alone."""
    verdict: Verdict
    """Supported where the value is above zero and ``p_adjusted`` at most 0.05."""
    hypothesis: str = ""
    """What MWork says of this stage, which a supported claim is consistent with and does not show."""
    documents: int = 0
    """How many the value rests on; 0 where nothing was measured, or nothing is known of it."""
    p_adjusted: float = np.nan
    """Adjusted as in the table that the value is of: over the parts of :meth:`StageGrid.means`, or the stages."""
    passages: int = 0
    """Of these documents: passages that losses were read on, or prompts; 0 where that was not recorded."""


@dataclass(frozen=True)
class Workflow(Result, kind="workflow"):
    """The three stages with this model's evidence."""

    evidence: tuple[Evidence, ...]
    layers: Mapping[str, tuple[int, int]]
    """First and last layer of each stage."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    def _require_whole(self) -> None:
        require_record(self.settings, ModelRecord, "the settings")
        if lacking := [stage for stage in STAGES if stage not in self.layers]:
            raise ValueError(f"The layers of {lacking[0]} are missing.")

    def of(self, stage: str) -> list[Evidence]:
        """The evidence about one stage."""
        return [evidence for evidence in self.evidence if evidence.stage == stage]

    def to_frame(self) -> pd.DataFrame:
        """One row per claim: the fields of :class:`Evidence`."""
        return pd.DataFrame([asdict(evidence) for evidence in self.evidence])

    def __repr__(self) -> str:
        counted = {v: sum(e.verdict == v for e in self.evidence) for v in get_args(Verdict)}
        return (
            f"Workflow({shown_model(self.settings)}: claims {', '.join(f'{n} {v}' for v, n in counted.items() if n)})"
        )

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)


def workflow(grid: StageGrid, ratio: LanguageRatio | None = None, *, pivot: str = "en") -> Workflow:
    """What these results test of each stage, beside what the hypothesis says of it.

    Understanding and generation: the parts of the languages' sets there raise their own language's loss more than the
    others' (own minus others, mean over the languages other than the pivot), and do so more than as many neurons of
    the task-solving layers do. That is consistent with what MWork says of these stages, and less than it: a loss does
    not show what is computed. Task solving: its layers decode to the pivot more than random directions do. That
    attention reasons and the feed-forward structure recalls takes tasks, not loss, and stays ``not measured``.

    Args:
        grid: the stage grid, with its equal-count version.
        ratio: which language each layer speaks; without it the claim about decoding is not measured.
        pivot: the language that the hypothesis says the middle layers work in.

    Raises:
        ValueError: for a grid without its equal-count version, a ratio of another model, or a pivot that was neither
            read nor decoded to.
    """
    check_arguments(workflow, locals())
    records = {"the stage grid": grid.effects.settings, **({"the language ratio": ratio.settings} if ratio else {})}
    model = of_one_model(records)
    if not grid.has_equal:
        raise ValueError("The workflow compares parts of equal size: measure the stage grid with equal=True.")
    read = [*grid.effects.tokens, *(ratio.languages if ratio else ())]
    if pivot != ENGLISH:  # which a corpus need not have
        require_choice("pivot", pivot, dict.fromkeys(read))
    own, beyond = _own(grid, pivot), _beyond(grid, pivot)
    evidence = (
        *_of_layers("understanding", own, beyond),
        _of_pivot(grid, ratio, pivot),
        _evidence("task_solving", "attention reasons, feed-forward recalls", "score on tasks", UNMEASURED, ""),
        *_of_layers("generation", own, beyond),
    )
    layers = {stage: (layers.start, layers.stop - 1) for stage, layers in grid.layers.items()}
    return Workflow(evidence, layers, {**model, "pivot": pivot})


def _own(grid: StageGrid, pivot: str) -> pd.DataFrame:
    return grid.means(without=[pivot]).rename(columns={"difference": "value"})


def _beyond(grid: StageGrid, pivot: str) -> pd.DataFrame:
    """By stage: its part's difference minus the mean of both task-solving parts', all of equal size."""
    task = grid.difference(TASK_PARTS, equal=True, without=[pivot])
    stages = {
        stage: (grid.difference([stage], equal=True, without=[pivot]) - task).tested("value")
        for stage in ("understanding", "generation")
    }
    frame = pd.DataFrame.from_dict(stages, orient="index")
    return frame.assign(p_adjusted=benjamini_hochberg(frame["p"].to_numpy()))


def _of_layers(stage: str, own: pd.DataFrame, beyond: pd.DataFrame) -> list[Evidence]:
    """That the stage's neurons are the language's own, and more so than those of the task-solving layers."""
    unit = "own rise − others’, nats per token"
    compared = {
        OWN: (f"language’s neurons off: {unit}", own),
        BEYOND: (f"… minus as many task-solving ones’: {unit}", beyond),
    }
    return [
        _evidence(stage, claim, measure, frame.loc[stage].to_dict(), HYPOTHESES[stage])
        for claim, (measure, frame) in compared.items()
    ]


def _of_pivot(grid: StageGrid, ratio: LanguageRatio | None, pivot: str) -> Evidence:
    numbers: Mapping[Any, float] = UNMEASURED
    if ratio is not None:
        # the lens counts the embedding as layer 0
        layers = [layer + 1 for layer in grid.layers["task_solving"] if layer + 1 in ratio.layers]
        mean = ratio.verdict(pivot, layers).loc["mean"]
        numbers = {**mean, "value": mean["lift"]}
    measure, claim = f"share of tokens decoding to {pivot}, above chance", f"decodes to {pivot} more than chance does"
    return _evidence("task_solving", claim, measure, numbers, HYPOTHESES["task_solving"].format(pivot))


def _evidence(stage: str, claim: str, measure: str, numbers: Mapping[Any, float], hypothesis: str) -> Evidence:
    side = adjusted_verdict(numbers["value"], numbers["p_adjusted"])
    says = "not measured" if not numbers["documents"] else _VERDICTS.get(side, "not supported")
    value, low, high, p = (float(numbers[name]) for name in ("value", "low", "high", "p_adjusted"))
    passages, documents = (int(numbers[name]) for name in ("passages", "documents"))
    return Evidence(stage, claim, measure, value, low, high, says, hypothesis, documents, p, passages)
