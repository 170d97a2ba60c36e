"""The masked-gradient loop: next-token loss, gradients and optimiser state for a set's own entries only."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..effects import passage_nats
from ..model import HookedModel, batches, encode, model_record, recorded_fingerprint, settled
from ..model.fingerprint import UNKNOWN
from ..neurons import NeuronSet, NeuronSpace, selected_entries, warn_of_other_weights
from ..store import output_directory
from ..text import Document, check_arguments, checked_documents, identity
from .delta import NeuronDelta
from .masked import MaskedParameter, TiedWeights, training, whole_model
from .recipe import Layout, Recipe, accumulate_gradient, predicted, say_unknown
from .result import Checkpoint, Step, Tuned, checkpoints_in

TOKENS_AT_ONCE = 1024
"""Tokens of a micro-batch whose size is not given: backward keeps every activation, so fewer than in scoring."""

OWN = ""
"""Among held-out documents: those of the tuned text's own language."""
NOTHING: Mapping[str, Sequence[Document]] = MappingProxyType({})
FEW_CHANGED = 0.1
"""Below this share of changed entries a run is said to have changed nearly nothing."""


class Diverged(ValueError):
    """Tuning stopped because a loss or a gradient is not finite."""


def tune(
    model: HookedModel,
    neurons: NeuronSet | Literal["all"],
    texts: Sequence[Document],
    *,
    learning_rate: float = 2e-6,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    epochs: int = 1,
    steps: int | None = None,
    max_tokens: int = 512,
    layout: Layout = "padded",
    warmup: float = 0.05,
    clip: float = 0.3,
    gate: bool = False,
    seed: int = 0,
    held_out: Sequence[Document] = (),
    others: Mapping[str, Sequence[Document]] = NOTHING,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    callbacks: Sequence[Callable[[Step], object]] = (),
    progress: bool = True,
) -> Tuned:
    """Tune only the weights of some neurons, in place; every other entry of every weight stays bit-identical.

    Next-token loss with AdamW; optimiser state, clipping and weight decay know the selected entries only, and
    half-precision weights are rounded from float32 masters of these. Defaults are the paper's recipe (section 5.1),
    which at 400 texts is 13 steps and moves no weight by more than about 1.5e-5.

    Args:
        model: a hooked model; changed in place (``result.delta.revert(model)`` takes it back).
        neurons: whose weights: columns of W_Q, W_K, W_V, W_in, rows of W_out, biases where the model has them.
            ``"all"`` trains every parameter, for comparison (no delta, no checkpoint).
        texts: documents to train on.
        learning_rate: the highest.
        weight_decay: decoupled, on the selected entries.
        batch_size: texts per step.
        micro_batch_size: texts at a time; None takes as many as 1024 tokens hold.
        epochs: passes over the texts.
        steps: optimiser steps, instead of ``epochs``.
        max_tokens: longer texts are cut there, with a warning.
        layout: ``"padded"``, one row per text, or ``"packed"``, all texts end to end in rows of ``max_tokens``.
        warmup: share of the steps in which the rate rises; then it falls as a cosine.
        clip: largest gradient norm.
        gate: whether columns of W_gate belong to the ``mlp`` neurons too.
        seed: of the order of the texts.
        held_out: documents whose loss is measured before and after, and every ``evaluate_every`` steps.
        others: held-out documents of other languages, by language, whose loss is measured before and after.
        evaluate_every: steps between measurements.
        patience: stop after this many measurements without a new best, and keep the weights of the best.
        checkpoint: a folder; a run killed there goes on from its last checkpoint when called again.
        checkpoint_every: steps between checkpoints.
        callbacks: called with each :class:`Step`.
        progress: whether to show a bar.

    Raises:
        ValueError: before the work for no neurons, a set of a model with other sizes, quantised weights, texts too
            short, or ``others`` that hold the set's own language. A set of another model of these sizes (its name, or
            the fingerprint of its weights) warns.
        Diverged: a ValueError, on the way, if a loss or gradient is not finite (the last good checkpoint is kept).
            After any error or interruption the set's weights are what they were before tuning.

    Example:
        >>> tuned = mw.tune(model, french, train["fr"], steps=1, batch_size=2, learning_rate=1e-4, progress=False)
        >>> tuned.delta.revert(model)  # every weight as before, bit for bit
    """
    check_arguments(tune, locals())
    recipe = Recipe(
        learning_rate=learning_rate, weight_decay=weight_decay, batch_size=batch_size,
        micro_batch_size=micro_batch_size, epochs=epochs, steps=steps, max_tokens=max_tokens, layout=layout,
        warmup=warmup, clip=clip, gate=gate, seed=seed,
    )  # fmt: skip
    texts, held_out = checked_documents(texts, "text"), checked_documents(held_out, "held-out text")
    _warn_of_common(texts, held_out)
    often = {"checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every, "patience": patience}
    _require_sensible(model, neurons, held_out, checkpoint=checkpoint, **often)
    every = {OWN: held_out, **_of_others(neurons, others)}
    selected = neurons if isinstance(neurons, NeuronSet) else None
    with settled(model), torch.inference_mode(False), contextlib.ExitStack() as files:
        folder = None if checkpoint is None else files.enter_context(output_directory(checkpoint))
        measured = {name: _measured(model, name, documents, max_tokens) for name, documents in every.items()}
        warn_of_other_weights(model, [selected] if selected else [])
        run = _Run(
            model, selected, recipe, recipe.rows(model, texts), measured, evaluate_every, patience,
            folder, checkpoint_every, callbacks,
        )  # fmt: skip
        return run.run(progress)


def _of_others(neurons: object, others: Mapping[str, Sequence[Document]]) -> dict[str, Sequence[Document]]:
    """Held-out documents of other languages; refused where they are not by language, or of none, or of the own one."""
    if not isinstance(others, Mapping):
        raise ValueError(f"others must be a dict from languages to documents, not {type(others).__name__}.")
    own = neurons.origin.language if isinstance(neurons, NeuronSet) else None
    if wrong := [name for name, documents in others.items() if name in (OWN, own) or not len(documents)]:
        raise ValueError(f"others has {wrong[0]!r}: name languages other than the set's own ({own}), with documents.")
    return {name: checked_documents(documents, f"text in {name!r}") for name, documents in others.items()}


def _measured(model: HookedModel, name: str, documents: Sequence[Document], max_tokens: int) -> list[Tensor]:
    """Token ids of held-out documents; ValueError where no token of them counts."""
    what = f"held-out {name}".strip()
    rows = encode(model, documents, [f"{what} {i}" for i in range(len(documents))], max_tokens)
    say_unknown(model, f"held-out texts {name}".strip(), documents, rows)
    if documents and not any(predicted(model, row) for row in rows):
        whose = f"The held-out documents in {name!r}" if name else "The held-out documents"
        raise ValueError(f"{whose} are too short to measure: no ordinary token follows another.")
    return rows


def _require_sensible(
    model: HookedModel,
    neurons: NeuronSet | Literal["all"],
    held_out: Sequence[Document],
    *,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    evaluate_every: int | None,
    patience: int | None,
) -> None:
    """Refuse what cannot be tuned, measured or kept, before the work."""
    if patience is not None and not (held_out and evaluate_every):
        raise ValueError(f"patience={patience} needs held_out documents and evaluate_every.")
    if not isinstance(neurons, NeuronSet) and neurons != "all":
        raise ValueError(f"neurons={neurons!r}: give a NeuronSet, or 'all'.")
    if neurons == "all" and checkpoint is not None:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: only the tuning of a set can be checkpointed, not of all.")
    if checkpoint_every < 1 or any(number is not None and number < 1 for number in (evaluate_every, patience)):
        raise ValueError(f"{checkpoint_every=}, {evaluate_every=} and {patience=} must be at least 1.")
    if inference := [name for name, parameter in model.named_parameters() if parameter.is_inference()]:
        advice = "load it outside of torch.inference_mode() to tune it"
        raise ValueError(f"{inference[0]} of {model.cfg.model_name} was made in inference mode: {advice}.")


def _warn_of_common(texts: Sequence[Document], held_out: Sequence[Document]) -> None:
    seen = {identity(text) for text in texts if isinstance(text, str)}
    if common := sum(isinstance(text, str) and identity(text) in seen for text in held_out):
        warnings.warn(
            f"{common} of {len(held_out)} held-out texts are among those to train on: their loss says nothing about "
            "other text.",
            stacklevel=3,
        )


@dataclass(eq=False)
class _Run:
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
        """Write a checkpoint where one is wanted."""
        if self.folder is not None:
            state = {name: self.optimiser.state.get(master, {}) for name, master in self.masters.items()}
            progress = self.steps, self.measured, self.starting, self.masters, state, self.best, self.others
            Checkpoint(self.identity, *progress).write(self.folder)

    def run(self, progress: bool) -> Tuned:
        """Take the steps that are left; after an error or interruption a set's weights are those from before."""
        bar = tqdm(total=self.total, initial=len(self.steps), unit="step", desc="tuning", disable=not progress)
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
            for part in self.parts if self.starting else ():
                part.entries.write(self.starting[part.name])
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
        return NeuronDelta(space, neurons, dict(self.starting), new, origin)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()[:16]
