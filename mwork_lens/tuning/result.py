"""What one run of tuning did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ..store import Result, storable
from .delta import NeuronDelta


@storable
@dataclass(frozen=True)
class Step:
    """One step of the optimiser."""

    step: int
    """From 1."""
    loss: float
    """Nats a token of the step's texts, before the step."""
    tokens: int
    """Predicted tokens of the step."""
    learning_rate: float
    gradient_norm: float
    """Of the selected entries, before clipping."""


@dataclass(frozen=True)
class Tuned(Result, kind="tuned"):
    """Losses, how many stored weights changed, and the delta."""

    steps: Sequence[Step]
    held_out: Mapping[int, float]
    """Held-out loss in nats a token, by the number of steps taken before it."""
    delta: NeuronDelta | None
    """None where all parameters were tuned: their old values are not kept."""
    settings: Mapping[str, Any]
    """Everything that decided the result; ``kept_step`` says after how many steps the weights are (early stopping)."""

    @property
    def changed(self) -> float:
        """The share of the selected stored entries that differ from before; missing where all were tuned."""
        if self.delta is None:
            return float("nan")
        frame = self.delta.to_frame()
        return int(frame["changed"].to_numpy().sum()) / int(frame["entries"].to_numpy().sum())

    @property
    def changes(self) -> pd.DataFrame:
        """One row a weight: entries, how many changed and by how much; empty where all were tuned."""
        return pd.DataFrame() if self.delta is None else self.delta.to_frame()

    def to_frame(self) -> pd.DataFrame:
        """One row a step: step, loss, tokens, learning rate, gradient norm, held-out loss after it where measured."""
        frame = pd.DataFrame([asdict(step) for step in self.steps])
        frame["held_out"] = [self.held_out.get(step.step) for step in self.steps]
        return frame

    def summary(self) -> str:
        """What changed, in a sentence."""
        losses = f"{len(self.steps)} steps, loss {self.steps[0].loss:.3f} to {self.steps[-1].loss:.3f} nats a token"
        if self.delta is None:
            return f"{losses}; all parameters were tuned."
        frame = self.delta.to_frame()
        return (
            f"{losses}; {frame['changed'].sum():,} of {frame['entries'].sum():,} selected weights changed, by "
            f"{frame['largest_change'].max():.2g} at most and {frame['relative_change'].mean():.2g} of their size on "
            "average."
        )

    def __repr__(self) -> str:
        return f"Tuned({self.summary()})"

    def _repr_html_(self) -> str:
        from html import escape

        table = self.to_frame().to_html(index=False, na_rep="", float_format="{:.3g}".format)
        return f"<p>{escape(repr(self))}</p>{table}"
