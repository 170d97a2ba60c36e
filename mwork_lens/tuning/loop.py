"""The masked-gradient loop: next-token loss, gradients and optimiser state for a set's own entries only."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..effects import passage_nats
from ..model import HookedModel, batches, encode
from ..neurons import NeuronSet, NeuronSpace, selected_entries
from ..text import Document
from .checkpoint import Checkpoint, written
from .delta import NeuronDelta
from .entries import Trained, training
from .objective import Layout, accumulate_gradient, passages, predicted
from .recipe import Recipe
from .result import Step, Tuned
from .whole import Tie, whole_model

TOKENS_AT_ONCE = 1024
"""Tokens of a micro-batch whose size is not given: backward keeps every activation, so fewer than in scoring."""

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
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    callbacks: Sequence[Callable[[Step], object]] = (),
    progress: bool = True,
) -> Tuned:
    """Tune only the weights of some neurons, in place; every other entry of every weight stays bit-identical.

    Next-token loss with AdamW. Gradients are masked as they arrive and the rest is freed at once; optimiser state,
    clipping and weight decay know the selected entries only; backward stops below the lowest layer that holds any.
    Half-precision weights are rounded from float32 masters of the selected entries. Defaults are the paper's recipe
    (section 5.1), which at 400 texts is 13 steps and moves no weight by more than about 1.5e-5.

    Args:
        model: a hooked model; changed in place (``result.delta.revert(model)`` takes it back).
        neurons: whose weights: columns of W_Q, W_K, W_V, W_in, rows of W_out, biases where the model has them.
            ``"all"`` trains every parameter, for comparison (no delta, no checkpoint).
        texts: documents to train on.
        learning_rate: the highest.
        weight_decay: decoupled, on the selected entries.
        batch_size: texts a step.
        micro_batch_size: texts at a time; None takes as many as 1024 tokens hold.
        epochs: passes over the texts.
        steps: optimiser steps, instead of ``epochs``.
        max_tokens: longer texts are cut there, with a warning.
        layout: ``"padded"``, a row a text, or ``"packed"``, all texts end to end in rows of ``max_tokens``.
        warmup: share of the steps in which the rate rises; then it falls as a cosine.
        clip: largest gradient norm.
        gate: whether columns of W_gate belong to the ``mlp`` neurons too.
        seed: of the order of the texts.
        held_out: documents whose loss is measured before and after, and every ``evaluate_every`` steps.
        evaluate_every: steps between measurements.
        patience: stop after this many measurements without a new best, and keep the weights of the best.
        checkpoint: a folder; a run killed there goes on from its last checkpoint when called again.
        checkpoint_every: steps between checkpoints.
        callbacks: called with each :class:`Step`.
        progress: whether to show a bar.

    Raises:
        ValueError: before the work for no neurons, a set of another model, quantised weights or texts too short.
        Diverged: a ValueError, on the way, if a loss or gradient is not finite (the last good checkpoint is kept).
            After any error or interruption the set's weights are what they were before tuning.
    """
    recipe = Recipe(
        learning_rate, weight_decay, batch_size, micro_batch_size, epochs, steps, max_tokens, gate, seed,
        layout, warmup, clip,
    )  # fmt: skip
    if patience is not None and not (held_out and evaluate_every):
        raise ValueError(f"patience={patience} needs held_out documents and evaluate_every.")
    if neurons == "all" and checkpoint is not None:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: only the tuning of a set can be checkpointed, not of all.")
    if not isinstance(neurons, NeuronSet) and neurons != "all":
        raise ValueError(f"neurons={neurons!r}: give a NeuronSet, or 'all'.")
    ties: list[Tie] = []
    if isinstance(neurons, NeuronSet):
        parts = [Trained(entries) for entries in selected_entries(model, neurons, gate=gate)]
    else:
        parts, ties = whole_model(model)
    rows = passages(model, texts, layout, max_tokens, recipe.order(len(texts), 0))
    measured = _held_out(model, held_out, max_tokens)
    run = _Run(model, neurons, parts, ties, recipe, rows, measured, Path(checkpoint) if checkpoint else None)
    run.resume()
    return run.go(evaluate_every, patience, checkpoint_every, callbacks, progress)


def _held_out(model: HookedModel, texts: Sequence[Document], max_tokens: int) -> list[Int[Tensor, " _"]]:
    names = [f"held-out {i}" for i in range(len(texts))]
    rows = encode(model, texts, names, max_tokens)
    if texts and not any(predicted(model, row) for row in rows):
        raise ValueError("The held-out documents are too short to measure: no ordinary token follows another.")
    return rows


class _Run:
    """The state of one run."""

    def __init__(
        self,
        model: HookedModel,
        neurons: NeuronSet | str,
        parts: list[Trained],
        ties: list[Tie],
        recipe: Recipe,
        rows: list[Int[Tensor, " _"]],
        held_out: list[Int[Tensor, " _"]],
        checkpoint: Path | None,
    ) -> None:
        self.model, self.neurons, self.parts, self.ties = model, neurons, parts, ties
        self.recipe, self.rows, self.held_out, self.checkpoint = recipe, rows, held_out, checkpoint
        self.total = recipe.total_steps(len(rows))
        self.optimiser = torch.optim.AdamW(
            [part.master for part in parts], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.identity = {
            "model": str(model.cfg.model_name),
            "recipe": asdict(recipe),
            "neurons": _digest(neurons.masks.values()) if isinstance(neurons, NeuronSet) else "all",
            "texts": _digest(rows),
            "held_out": _digest(held_out),
        }
        self.steps: list[Step] = []
        self.measured: dict[int, float] = {}
        self.best: list[Tensor] | None = None
        whole = not isinstance(neurons, NeuronSet)
        self.starting = {} if whole else {p.entries.name: p.entries.read(_stored(p)).cpu() for p in parts}

    def resume(self) -> None:
        """Go on from the last checkpoint where there is one."""
        if self.checkpoint is None:
            return
        checkpoint = Checkpoint.resume(self.checkpoint, self.parts, self.optimiser, self.identity)
        if checkpoint is not None:
            self.steps, self.measured = list(checkpoint.steps), dict(checkpoint.measured)
            self.starting = dict(checkpoint.starting)
            best = checkpoint.best
            self.best = None if best is None else [best[part.entries.name] for part in self.parts]

    def save(self) -> None:
        """Write a checkpoint where one is wanted."""
        if self.checkpoint is not None:
            names = [part.entries.name for part in self.parts]
            Checkpoint(
                identity=self.identity,
                steps=self.steps,
                measured=self.measured,
                starting=self.starting,
                masters={name: part.master for name, part in zip(names, self.parts, strict=True)},
                optimiser={part.entries.name: self.optimiser.state.get(part.master, {}) for part in self.parts},
                best=None if self.best is None else dict(zip(names, self.best, strict=True)),
            ).write(self.checkpoint)

    def go(
        self,
        evaluate_every: int | None,
        patience: int | None,
        checkpoint_every: int,
        callbacks: Sequence[Callable[[Step], object]],
        progress: bool,
    ) -> Tuned:
        """Take the steps that are left."""
        bar = tqdm(total=self.total, initial=len(self.steps), unit="step", desc="tuning", disable=not progress)
        with bar, self.undone_on_error(), training(self.model, self.parts, self.ties):
            self.measure(patience)
            while len(self.steps) < self.total and not self.exhausted(patience):
                loss, tokens, norm = self.gradient()
                # these weights have just given a finite loss and gradient: only such ones are kept
                if len(self.steps) % checkpoint_every == 0:
                    self.save()
                rate = self.update(len(self.steps))
                self.steps.append(Step(len(self.steps) + 1, loss, tokens, rate, norm))
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                if len(self.steps) == self.total or (evaluate_every and len(self.steps) % evaluate_every == 0):
                    self.measure(patience)
                for callback in callbacks:
                    callback(self.steps[-1])
            self.save()
        return self.result(patience)

    def gradient(self) -> tuple[float, int, float]:
        """Of the next step: loss in nats a token, tokens, and the gradient's norm before clipping."""
        chosen = self.recipe.rows_of(len(self.steps), len(self.rows))
        documents = [self.rows[i] for i in chosen]
        tokens = sum(predicted(self.model, row) for row in documents)
        nats = 0.0
        fitting = max(1, TOKENS_AT_ONCE // max(map(len, documents)))
        for batch in batches(self.model, documents, self.recipe.micro_batch_size or fitting):
            where = ", ".join(str(chosen[row]) for row in batch.rows)
            try:
                nats += accumulate_gradient(self.model, batch, tokens)
            except ValueError as error:
                self.stop(f"on text {where}: {error}")
            if not math.isfinite(nats):
                self.stop(f"on text {where}: the loss is {nats}.")
        norm = torch.nn.utils.clip_grad_norm_([part.master for part in self.parts], self.recipe.clip).item()
        if not math.isfinite(norm):
            self.stop(f"the norm of the gradient is {norm}.")
        return nats / tokens, tokens, norm

    @contextlib.contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """An error or an interruption leaves a set's weights as they were before, so that the same call goes on."""
        try:
            yield
        except BaseException:
            for part in self.parts:
                if part.entries.name in self.starting:
                    part.entries.write(self.starting[part.entries.name])
            raise

    def stop(self, reason: str) -> NoReturn:
        """Refuse to go on from what is not finite."""
        kept = " The model's weights are those from before tuning." if self.starting else ""
        if self.checkpoint is not None and written(self.checkpoint):
            kept += f" The last good checkpoint is in {self.checkpoint}."
        raise Diverged(f"Tuning stopped at step {len(self.steps) + 1} of {self.total}, {reason}{kept}")

    def update(self, step: int) -> float:
        """One step of AdamW on the masters, rounded into the model."""
        rate = self.recipe.rate(step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for part in (*self.parts, *self.ties):
            part.write()
        return rate

    def measure(self, patience: int | None) -> None:
        """Held-out loss, unless it is known already; with ``patience`` the best weights are kept aside."""
        if not self.held_out or len(self.steps) in self.measured:
            return
        try:
            nats, tokens = passage_nats(self.model, self.held_out)
        except ValueError as error:
            self.stop(f"on the held-out documents: {error}")
        loss = float(nats.sum() / tokens.sum())
        if not math.isfinite(loss):
            self.stop(f"on the held-out documents: the loss is {loss}.")
        if patience is not None and loss < min(self.measured.values(), default=math.inf):
            self.best = [part.master.detach().clone() for part in self.parts]
        self.measured[len(self.steps)] = loss

    def exhausted(self, patience: int | None) -> bool:
        """Whether the last ``patience`` measurements brought no new best."""
        losses = list(self.measured.values())
        return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def result(self, patience: int | None) -> Tuned:
        """What the run did; with ``patience`` the model gets the best weights."""
        kept_step = len(self.steps)
        if patience is not None and self.best is not None:
            kept_step = min(self.measured, key=lambda step: self.measured[step])
            for part, values in zip(self.parts, self.best, strict=True):
                part.master.data.copy_(values)
                part.write()
            for tie in self.ties:
                tie.write()
        state = [value for values in self.optimiser.state.values() for value in values.values()]
        size = {
            "trained_entries": sum(part.master.numel() for part in self.parts),
            "optimiser_bytes": sum(value.numel() * value.element_size() for value in state),
        }
        settings = {**self.identity, **size, "kept_step": kept_step, "device": str(self.parts[0].master.device)}
        tuned = Tuned(tuple(self.steps), dict(self.measured), self.delta(), settings)
        if tuned.changed < FEW_CHANGED:
            warnings.warn(f"Nearly nothing changed: {tuned.summary()} {self.remedy()}", stacklevel=4)
        return tuned

    def remedy(self) -> str:
        """What to do where nearly nothing changed."""
        dtype = _stored(self.parts[0]).dtype
        advice = "Raise learning_rate or steps"
        return (
            f"{advice}, or tune in float32: {dtype} rounds small changes away." if dtype.itemsize < 4 else advice + "."
        )

    def delta(self) -> NeuronDelta | None:
        """Old and new values of the selected entries."""
        if not isinstance(self.neurons, NeuronSet):
            return None
        neurons = {p.entries.name: p.entries.neurons for p in self.parts if p.entries.neurons is not None}
        new = {p.entries.name: p.entries.read(_stored(p)).cpu() for p in self.parts}
        origin = {"set": dict(self.neurons.origin), **self.identity}
        return NeuronDelta(NeuronSpace.of(self.model), neurons, dict(self.starting), new, origin)


def _stored(part: Trained) -> Tensor:
    return part.entries.parameter.detach()


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()[:16]
