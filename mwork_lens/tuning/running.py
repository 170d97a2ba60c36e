"""One run of tuning: its steps, what is measured on the way, and its checkpoints."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..effects import passage_nats
from ..model import HookedModel, batches, model_record, recorded_fingerprint, to_the_end
from ..model.fingerprint import UNKNOWN
from ..neurons import NeuronSet, NeuronSpace, selected_entries
from ..store import processes
from ..store.processes import hidden
from ..text import SeenDocuments
from .delta import NeuronDelta
from .masked import MaskedParameter, TiedWeights, training, whole_model
from .recipe import Recipe, accumulate_gradient, predicted
from .result import Checkpoint, Step, Tuned, checkpoints_in

TOKENS_AT_ONCE = 1024
"""Tokens of a micro-batch whose size is not given: backward keeps every activation, so fewer than in scoring."""

OWN = ""
"""Among held-out documents: those of the tuned text's own language."""
FEW_CHANGED = 0.1
"""Below this share of changed entries a run is said to have changed nearly nothing."""


class Diverged(ValueError):
    """Tuning stopped because a loss or a gradient is not finite."""


@dataclass(eq=False)
class TuningRun:
    """One run: its settings, and where it stands."""

    model: HookedModel
    neurons: NeuronSet | None
    recipe: Recipe
    rows: list[Int[Tensor, " _"]]
    held_out: Mapping[str, list[Int[Tensor, " _"]]]
    """By language; :data:`OWN` are those of the tuned text's."""
    evaluate_every: int | None
    patience: int | None
    folder: Path | None
    checkpoint_every: int
    callbacks: Sequence[Callable[[Step], object]]
    seen: SeenDocuments | None = None
    """The texts to train on."""
    steps: list[Step] = field(default_factory=list)
    measured: dict[int, float] = field(default_factory=dict)
    others: dict[str, dict[int, float]] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None
    starting: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ties: list[TiedWeights] = []
        if self.neurons is None:
            self.parts, self.ties = whole_model(self.model)
        else:
            entries = selected_entries(self.model, self.neurons, gate=self.recipe.gate)
            self.parts = [MaskedParameter(part) for part in entries]
            self.starting = {part.name: part.read().cpu() for part in entries}
        self.total = self.recipe.steps or self.recipe.epochs * math.ceil(len(self.rows) / self.recipe.batch_size)
        self.masters = {part.name: part.master for part in self.parts}
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        self.optimiser = torch.optim.AdamW(self.masters.values(), lr=rate, weight_decay=decay)
        self.identity = {
            **model_record(self.model),
            "recipe": asdict(self.recipe),
            "neurons": "all" if self.neurons is None else _digest(self.neurons.masks.values()),
            "texts": _digest(self.rows),
            "held_out": _digest(chain(*self.held_out.values())),
        }
        if last := self.folder and Checkpoint.resume(
            self.folder, self.parts, self.optimiser, self.identity, self.record
        ):
            self.identity |= {"fingerprint": last.identity.get("fingerprint", UNKNOWN)}
            self.steps, self.measured, self.starting = list(last.steps), dict(last.measured), dict(last.starting)
            self.others = {name: dict(losses) for name, losses in last.others.items()}
            self.best = None if last.best is None else dict(last.best)

    def record(self) -> dict[str, Any]:
        """Of the model as it is."""
        return model_record(self.model)

    def save(self) -> None:
        """Write a checkpoint where one is wanted; of several processes, which all do the same, the first."""
        if self.folder is not None and processes.is_first():
            state = {name: self.optimiser.state.get(master, {}) for name, master in self.masters.items()}
            progress = self.steps, self.measured, self.starting, self.masters, state, self.best, self.others
            Checkpoint(self.identity, *progress).write(self.folder)

    def run(self, progress: bool) -> Tuned:
        """Take the steps that are left; after an error or interruption a set's weights are those from before."""
        bar = tqdm(total=self.total, initial=len(self.steps), unit="step", desc="tuning", disable=hidden(progress))
        try:
            with bar, training(self.model, self.parts, self.ties):
                self.measure()
                self.measure_others(0)
                while len(self.steps) < self.total and not self.out_of_patience():
                    self.step()
                    bar.update()
                    bar.set_postfix(loss=f"{self.steps[-1].loss:.3f}")
                self.save()
            return self.result()
        except BaseException:
            parts = self.parts if self.starting else ()
            to_the_end(lambda: [part.entries.write(self.starting[part.name]) for part in parts])
            raise

    def step(self) -> None:
        """One step of AdamW on the masters, rounded into the model, with what is due before and after it."""
        loss, tokens, norm = self.gradient()
        # these weights have just given a finite loss and gradient: only such ones are saved
        if len(self.steps) % self.checkpoint_every == 0:
            self.save()
        rate = self.recipe.rate(len(self.steps), self.total)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.write()
        self.steps.append(Step(len(self.steps) + 1, loss, tokens, rate, norm))
        if len(self.steps) == self.total or (self.evaluate_every and len(self.steps) % self.evaluate_every == 0):
            self.measure()
        for callback in self.callbacks:
            callback(self.steps[-1])

    def gradient(self) -> tuple[float, int, float]:
        """Of the next step: loss in nats per token, tokens, and the gradient's norm before clipping."""
        numbers = self.recipe.rows_of(len(self.steps), len(self.rows))
        documents = [self.rows[i] for i in numbers]
        tokens = sum(predicted(self.model, row) for row in documents)
        nats = 0.0
        fitting = max(1, TOKENS_AT_ONCE // max(map(len, documents)))
        for batch in batches(self.model, documents, self.recipe.micro_batch_size or fitting):
            where = f"on text {', '.join(str(numbers[row]) for row in batch.rows)}"
            try:
                nats += accumulate_gradient(self.model, batch, tokens)
            except ValueError as error:
                self.fail(f"{where}: {error}")
            if not math.isfinite(nats):
                self.fail(f"{where}: the loss is {nats}.")
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), self.recipe.clip).item()
        if not math.isfinite(norm):
            self.fail(f"the norm of the gradient is {norm}.")
        return nats / tokens, tokens, norm

    def fail(self, reason: str) -> NoReturn:
        """Raise Diverged: loss or gradient is not finite."""
        state = " The model's weights are those from before tuning." if self.starting else ""
        if self.folder is not None and checkpoints_in(self.folder):
            state += f" The last good checkpoint is in {self.folder}."
        raise Diverged(f"Tuning stopped at step {len(self.steps) + 1} of {self.total}, {reason}{state}")

    def write(self) -> None:
        """The masters into the model."""
        for part in (*self.parts, *self.ties):
            part.write()

    def measure(self) -> None:
        """Held-out loss, unless it was measured already; with ``patience`` the best weights are copied."""
        if not self.held_out[OWN] or len(self.steps) in self.measured:
            return
        loss = self.held_out_loss(OWN)
        if self.patience is not None and loss < min(self.measured.values(), default=math.inf):
            self.best = {name: master.detach().clone() for name, master in self.masters.items()}
        self.measured[len(self.steps)] = loss

    def measure_others(self, steps: int) -> None:
        """Held-out loss of the other languages, unless it was measured already."""
        for name in (name for name in self.held_out if name != OWN):
            of = self.others.setdefault(name, {})
            if steps not in of:
                of[steps] = self.held_out_loss(name)

    def held_out_loss(self, name: str) -> float:
        """Nats per token of the model as it is."""
        where = "on the held-out documents" + (f" in {name!r}" if name else "")
        try:
            nats, tokens = passage_nats(self.model, self.held_out[name])
        except ValueError as error:
            self.fail(f"{where}: {error}")
        loss = float(nats.sum() / tokens.sum())
        if not math.isfinite(loss):
            self.fail(f"{where}: the loss is {loss}.")
        return loss

    def out_of_patience(self) -> bool:
        """Whether the last ``patience`` measurements brought no new best."""
        losses, last = list(self.measured.values()), self.patience
        return last is not None and len(losses) > last and min(losses[-last:]) >= min(losses[:-last])

    def result(self) -> Tuned:
        """What the run did; with ``patience`` the model gets the best weights."""
        kept_step = len(self.steps)
        if self.patience is not None and self.best is not None:
            kept_step = min(self.measured, key=lambda step: self.measured[step])
            for name, values in self.best.items():
                self.masters[name].data.copy_(values)
            self.write()
        self.measure_others(kept_step)
        state = [value for values in self.optimiser.state.values() for value in values.values()]
        settings = {
            **self.identity,
            "trained_entries": sum(master.numel() for master in self.masters.values()),
            "optimiser_bytes": sum(value.nbytes for value in state),
            "kept_step": kept_step,
            "language": None if self.neurons is None else self.neurons.origin.language,
            "held_out_texts": {name: len(rows) for name, rows in self.held_out.items() if rows},
            "device": str(self.parts[0].master.device),
        }
        delta = None if self.neurons is None else self.delta(self.neurons)
        tuned = Tuned(tuple(self.steps), dict(self.measured), delta, settings, self.others)
        if tuned.changed < FEW_CHANGED:
            dtype = self.parts[0].parameter.dtype
            rounding = f", or tune in float32: {dtype} rounds small changes away" if dtype.itemsize < 4 else ""
            advice = f"Raise learning_rate or steps{rounding}."
            warnings.warn(f"Nearly nothing changed: {tuned.summary()} {advice}", stacklevel=4)
        return tuned

    def delta(self, selected: NeuronSet) -> NeuronDelta:
        """Old and new values of the selected entries."""
        entries = [part.entries for part in self.parts]
        neurons = {part.name: part.neurons for part in entries if part.neurons is not None}
        new = {part.name: part.read().cpu() for part in entries}
        origin = {"set": dict(selected.origin), **self.identity}
        space = replace(NeuronSpace.of(self.model), fingerprint=recorded_fingerprint(self.identity))
        return NeuronDelta(space, neurons, dict(self.starting), new, origin, self.seen)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()[:16]
