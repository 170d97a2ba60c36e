"""What one run of tuning did, where it stands, and what deltas change in every language's loss."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..effects import TUNED, EffectMatrix, Intervention, losses_with
from ..model import MAX_TOKENS, HookedModel, ModelRecord, require_same_model, to_the_end
from ..store import Result, digest, require_record, storable
from ..text import Document, check_arguments
from .delta import NeuronDelta
from .masked import MaskedParameter


@storable
@dataclass(frozen=True)
class Step:
    """One step of the optimiser."""

    step: int
    """From 1."""
    loss: float
    """Nats per token of the step's texts, before the step."""
    tokens: int
    """Predicted tokens of the step."""
    learning_rate: float
    gradient_norm: float
    """Of the selected entries, before clipping."""


class _Recipe(TypedDict):
    learning_rate: float
    batch_size: int


class _Settings(ModelRecord):
    """What results are computed from and say, of all that the settings hold."""

    recipe: _Recipe
    trained_entries: int
    kept_step: int
    language: NotRequired[str | None]
    held_out_texts: NotRequired[Mapping[str, int]]


@dataclass(frozen=True)
class Tuned(Result, kind="tuned"):
    """Losses, how many stored weights changed, and the delta."""

    steps: Sequence[Step]
    held_out: Mapping[int, float]
    """Held-out loss in nats per token, by the number of steps taken before it."""
    delta: NeuronDelta | None
    """None where all parameters were tuned: their old values are not kept."""
    settings: Mapping[str, Any]
    """Everything that decided the result; ``kept_step`` says after how many steps the weights are (early stopping)."""
    others: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Held-out loss of other languages, by language and by the number of steps taken before it: none, and all."""

    def _require_whole(self) -> None:
        require_record(self.settings, _Settings, "the settings")

    @property
    def changed(self) -> float:
        """The share of the selected stored entries that differ from before; NaN where all were tuned."""
        frame = self.changes
        return float("nan") if frame.empty else float(frame["changed"].to_numpy().sum() / frame["entries"].sum())

    @property
    def changes(self) -> pd.DataFrame:
        """One row per weight: entries, how many changed and by how much; empty where all were tuned."""
        return pd.DataFrame() if self.delta is None else self.delta.to_frame()

    def to_frame(self) -> pd.DataFrame:
        """One row per step: step, loss, tokens, learning rate, gradient norm, held-out losses after it where measured.

        Step 0 is before the first, where held-out loss was measured; ``held_out fr`` is that of another language. The
        losses of steps are of different texts, each before its step: only held-out ones show what tuning did.
        """
        frame = pd.DataFrame([asdict(step) for step in self.steps], columns=[each.name for each in fields(Step)])
        if 0 in self.held_out or self.others:
            frame = pd.concat([pd.DataFrame({"step": [0]}), frame], ignore_index=True).reindex(columns=frame.columns)
        for name, losses in {"": self.held_out, **self.others}.items():
            frame[f"held_out {name}".strip()] = [losses.get(step) for step in frame["step"]]
        return frame

    @property
    def losses(self) -> pd.DataFrame:
        """One row per language with held-out texts: texts, loss before and after (nats per token), and its change.

        The tuned text's own language, first, is called as the set says, else ``held-out``. ``after`` is of the weights
        that were kept. :func:`tuning_effects` has the same with intervals.
        """
        own, kept = self.settings.get("language") or "held-out", self.settings["kept_step"]
        texts = self.settings.get("held_out_texts", {})
        rows = {
            own if name == "" else name: {"texts": texts.get(name), "before": losses.get(0), "after": losses.get(kept)}
            for name, losses in {"": self.held_out, **self.others}.items()
            if losses
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["texts", "before", "after"], dtype=float)
        return frame.rename_axis("language").assign(change=frame["after"] - frame["before"])

    def summary(self) -> str:
        """What changed, in a sentence: held-out losses, never those of steps, which are of different texts."""
        measured = [
            f"{name} {row['before']:.3f} to {row['after']:.3f}" + (f" on {row['texts']:.0f} texts" if i == 0 else "")
            for i, (name, row) in enumerate(self.losses.dropna(subset="change").iterrows())
        ]
        loss = f"held-out loss {', '.join(measured)} nats per token" if measured else "held-out loss was not measured"
        number = f"{len(self.steps)} step{'s' if len(self.steps) > 1 else ''}"
        if (frame := self.changes).empty:
            return f"{number}; {loss}; all parameters were tuned."
        return (
            f"{number}; {loss}; {frame['changed'].sum():,} of {frame['entries'].sum():,} selected weights changed, by "
            f"{frame['largest_change'].max():.2g} at most and {frame['relative_change'].mean():.2g} of their size on "
            "average."
        )

    def __repr__(self) -> str:
        return f"Tuned({self.summary()})"

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, na_rep="", float_format="{:.3g}".format)
        return f"<p>{escape(repr(self))}</p>{table}"


_STEP = re.compile(r"step-\d+")
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW knows of a weight."""


@dataclass(frozen=True, eq=False)
class Checkpoint(Result, kind="tuning_checkpoint"):
    """Where a run of tuning stands, so that a killed one goes on to the same weights, bit for bit."""

    identity: Mapping[str, Any]
    """What decides the run: model, settings and texts."""
    steps: Sequence[Step]
    measured: Mapping[int, float]
    """As ``Tuned.held_out``."""
    starting: Mapping[str, Tensor]
    """By weight: the values before tuning."""
    masters: Mapping[str, Tensor]
    """By weight: the values that the optimiser has reached."""
    optimiser: Mapping[str, Mapping[str, Tensor]]
    best: Mapping[str, Tensor] | None
    """By weight: the values with the lowest held-out loss so far (early stopping)."""
    others: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """As ``Tuned.others``."""

    def write(self, folder: Path) -> None:
        """Write ``folder/step-N`` and then remove the one before; a kill at any moment leaves one that is whole."""
        target = folder / f"step-{len(self.steps):06d}"
        if target.exists():
            return
        self.save(target)
        for older in checkpoints_in(folder)[:-1]:
            shutil.rmtree(older)

    @classmethod
    def resume(
        cls,
        folder: Path,
        parts: Sequence[MaskedParameter],
        optimiser: Optimizer,
        identity: Mapping[str, Any],
        record: Callable[[], Mapping[str, Any]],
    ) -> "Checkpoint | None":
        """The last checkpoint, with parts and optimiser put where it has them; None if there is none.

        Refuses other settings, another model (``record`` is what it is now), and weights that are neither those before
        tuning nor those of the checkpoint.
        """
        if not (paths := checkpoints_in(folder)):
            return None
        path, checkpoint = paths[-1], cls.load(paths[-1])
        for key, value in identity.items():
            if key not in ("dtype", "fingerprint") and (before := checkpoint.identity.get(key)) != value:
                advice = "choose another folder, or the same settings to go on with it"
                raise ValueError(f"{path} was written by a run with {key}={before!r}, not {value!r}: {advice}.")
        steps = all(isinstance(step, Step) and isinstance(step.loss, float) for step in checkpoint.steps)
        if not steps or not all(isinstance(loss, float) for loss in checkpoint.measured.values()):
            raise ValueError(f"{path} does not hold the steps of a run: it is damaged.")
        for part in parts:
            if not checkpoint._fits(part):
                raise ValueError(f"{path} does not hold the whole state of {part.name}: it is damaged.")
        checkpoint._require_its_model(parts, identity, record, path)
        for part in parts:
            current = part.entries.read().cpu()
            if not checkpoint._starts(part, current) and not checkpoint._reached(part, current):
                problem = f"{path} goes on from other weights than the model has (first in {part.name})"
                raise ValueError(f"{problem}: give it the model that the run started from.")
        for part in parts:
            part.master.data.copy_(checkpoint.masters[part.name])
            state, device = checkpoint.optimiser[part.name], part.master.device
            optimiser.state[part.master] = {k: v if k == "step" else v.to(device) for k, v in state.items()}
            part.write()
        return checkpoint

    def _starts(self, part: MaskedParameter, current: Tensor) -> bool:
        start = self.starting[part.name]
        return current.dtype == start.dtype and torch.equal(current, start)

    def _reached(self, part: MaskedParameter, current: Tensor) -> bool:
        return torch.equal(current, self.masters[part.name].to(current))

    def _require_its_model(
        self,
        parts: Sequence[MaskedParameter],
        identity: Mapping[str, Any],
        record: Callable[[], Mapping[str, Any]],
        path: Path,
    ) -> None:
        """Compare the model as it was before tuning: that may have brought it where the checkpoint is."""
        reached = {part: part.entries.read() for part in parts}
        if self.identity.get("fingerprint") != identity["fingerprint"] and all(
            self._reached(part, values.cpu()) for part, values in reached.items()
        ):
            try:
                for part in parts:
                    part.entries.write(self.starting[part.name])
                identity = record()
            finally:
                to_the_end(lambda: [part.entries.write(values) for part, values in reached.items()])
        require_same_model(self.identity, identity, path, stacklevel=7)

    def _fits(self, part: MaskedParameter) -> bool:
        """Whether all tensors of a part are there in its shape."""
        state = self.optimiser.get(part.name)
        state = state if isinstance(state, Mapping) else {}
        if not all(name in ("step", *_MOMENTS) and isinstance(value, Tensor) for name, value in state.items()):
            return False
        moments = [state.get(name) for name in _MOMENTS] if self.steps else []
        others = [] if self.best is None else [self.best.get(part.name)]
        values = [self.starting.get(part.name), self.masters.get(part.name), *moments, *others]
        return all(isinstance(value, Tensor) and value.shape == part.master.shape for value in values)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    paths = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)}
    return [paths[step] for step in sorted(paths)]


def tuning_effects(
    model: HookedModel,
    deltas: Mapping[str, NeuronDelta | Sequence[NeuronDelta]],
    corpus: Mapping[str, Sequence[Document]],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> EffectMatrix:
    """Change of every language's loss with each delta applied: below zero is better.

    Args:
        model: the model as it was before tuning; it is so again afterwards, bit for bit.
        deltas: what to apply, by a name of your choice; a list is one row, e.g. one delta per seed, whose mean change
            counts. A row's language is its name where that is a language of the corpus, else the one recorded in the
            set that was tuned.
        corpus: held-out documents by language.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        shard: a part of the corpus, as in :func:`effect_matrix`.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.

    Raises:
        ValueError: for no deltas, empty documents, a model that does not hold a delta's old values, or a checkpoint of
            something else, before the work. Documents that were tuned on are said in a warning, see
            ``EffectMatrix.documents_read``.
    """
    check_arguments(tuning_effects, locals())
    rows = {name: [delta] if isinstance(delta, NeuronDelta) else list(delta) for name, delta in deltas.items()}
    if not rows or not all(rows.values()):
        raise ValueError(f"deltas={dict(deltas)}: name at least one delta, and give each row at least one.")

    def intervention(delta: NeuronDelta) -> Intervention:
        delta.require_fits(model)
        made_of = {"neurons": len(delta), "fraction": len(delta) / delta.space.total, "model": delta.space.model}
        return delta.applied(model), {**made_of, "origin": dict(delta.origin.get("set", {}))}

    interventions = {name: [intervention(delta) for delta in draws] for name, draws in rows.items()}
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "progress": progress}
    seen = [delta.seen for draws in rows.values() for delta in draws]

    def identity() -> dict[str, Any]:
        return {"deltas": {name: [*map(digest, draws)] for name, draws in rows.items()}}

    kept = {"shard": shard, "checkpoint": checkpoint, "identity": identity}
    return losses_with(model, interventions, corpus, mode=TUNED, seen=seen, **reading, **kept)
