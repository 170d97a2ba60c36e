"""The masked-gradient loop: next-token loss, gradients and optimiser state for a set's own entries only."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ..model import HookedModel, encode, settled
from ..model.offloaded import require_in_memory
from ..neurons import NeuronSet, warn_of_other_weights
from ..store import output_directory, processes
from ..text import Document, SeenDocuments, check_arguments, checked_documents, identity
from .recipe import Layout, Recipe, predicted, say_unknown
from .result import Step, Tuned
from .running import OWN, TuningRun

NOTHING: Mapping[str, Sequence[Document]] = MappingProxyType({})


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
        run = TuningRun(
            model, selected, recipe, recipe.rows(model, texts), measured, evaluate_every, patience,
            folder, checkpoint_every, callbacks, SeenDocuments.of_texts(texts),
        )  # fmt: skip
        processes.wait_for_all()  # until all have read the checkpoint
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
    require_in_memory(model, "tuned")
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
