"""Steering a model into another language by its neurons, compared with a mean-difference direction of the same norm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..detection import Activations
from ..model import ForwardHook, HookedModel, batches, encode, stream, stream_hook
from ..neurons import NeuronSet, NeuronSpace, warn_of_other_weights
from ..store import Result
from ..text import Identifier, as_documents, check_arguments
from ..text.choices import listed
from .comparing import BASELINE, Generations, generations


@dataclass(frozen=True)
class Steering(Result, kind="steering"):
    """Completions untouched, steered by neurons, and by a direction as strong as each of these."""

    generations: Generations
    norms: Mapping[str, float]
    """By intervention: how far it moves the stream after block ``layer``, root mean square over ordinary tokens."""
    stream_norm: float
    """Root mean square norm of the untouched stream there."""
    toward: str
    away: str
    layer: int

    def to_frame(self) -> pd.DataFrame:
        """One row per intervention: how strong, share of completions in the target language, and their fluency.

        ``norm`` is in units of the untouched stream's norm. ``share`` has its 95 % Wilson interval. Nats per token are
        under the untouched model; read them with repetition, since a repetitive text is likely.
        """
        frame = self.generations.summary(self.toward).drop(columns="prompt_language").set_index("condition")
        frame.insert(0, "norm", pd.Series(self.norms) / self.stream_norm)
        return frame

    def __repr__(self) -> str:
        return f"Steering({self.away} to {self.toward}, layer {self.layer})\n{self.to_frame().round(3)}"

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html() + self.generations._repr_html_()


def mean_difference(means: Activations, *, toward: str, away: str, layer: int, norm: float) -> list[ForwardHook]:
    """A hook that adds the direction from one language's mean to another's, after block ``layer``, at every position.

    ``means`` are those of :func:`collect_means`, ``norm`` is the Euclidean norm of what is added.

    Raises:
        ValueError: for a language without means, or a layer that is not there.
    """
    check_arguments(mean_difference, locals())
    if not 0 <= layer < means.space.n_layers:
        raise ValueError(f"{means.space.model} has layers 0 to {means.space.n_layers - 1}, not {layer}.")
    for language in (toward, away):
        means.of(language)
    difference = means.streams[toward][layer] - means.streams[away][layer]
    step = difference * (norm / difference.norm())

    def add(activation: Tensor, hook: Any = None) -> Tensor:
        return activation + step.to(activation)

    return [(stream_hook(layer + 1), add)]


@torch.inference_mode()
def stream_changes(
    model: HookedModel, interventions: Mapping[str, Sequence[ForwardHook]], prompts: Sequence[str], layer: int
) -> dict[str, float]:
    """Root mean square, over the prompts' ordinary tokens, of the norm by which each intervention moves the residual
    stream after block ``layer``; as ``baseline``, of the stream's own norm."""
    encoded = encode(model, prompts, list(prompts), None)

    def streams(hooks: Sequence[ForwardHook]) -> Float[Tensor, "token d_model"]:
        after_block: list[Tensor] = []

        def keep(activation: Tensor, hook: Any = None) -> Tensor:
            after_block.append(activation)
            return activation

        hooks = [*hooks, (stream_hook(layer + 1), keep)]
        passes = stream(model, batches(model, encoded), hooks)
        return torch.cat([after_block.pop()[batch.content].double().cpu() for batch, _ in passes])

    untouched = streams([])
    changes = {BASELINE: untouched, **{name: streams(hooks) - untouched for name, hooks in interventions.items()}}
    return {name: float(change.square().sum(-1).mean().sqrt()) for name, change in changes.items()}


def steer(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    means: Activations,
    prompts: Sequence[str],
    *,
    toward: str,
    away: str,
    factors: Sequence[float] = (2.0, 4.0),
    layer: int | None = None,
    identify: str | Identifier = "lingua",
    languages: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Steering:
    """Complete prompts with one language's neurons held or scaled, and with a direction that moves the stream as much.

    The interventions: ``set``, the specific neurons of both languages held at the means of ``toward``; ``scale ×f``,
    those of ``toward`` multiplied by f, and for each of these ``direction as …``, the mean-difference direction added
    after block ``layer`` with the norm by which the former moves the stream there.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: by language, at least ``toward`` and ``away``.
        means: those of :func:`collect_means`.
        prompts: in the language ``away``.
        toward: the language to steer into.
        away: the language to steer out of.
        factors: for ``scale``.
        layer: where the direction is added and strength is measured; by default two thirds of the way up.
        identify, languages, options: as in :func:`generations`; by default between the languages with means.
        progress: whether to show a bar.

    Raises:
        ValueError: for a language without a set or means, or a set that is empty or does not act up to ``layer``. A
            set of another model (its name, or the fingerprint of its weights) warns.
    """
    check_arguments(steer, locals())
    layer, prompts = (
        NeuronSpace.of(model).n_layers * 2 // 3 if layer is None else layer,
        as_documents(prompts, "prompts"),
    )
    for language in (toward, away):
        means.of(language)
        if language not in sets or not len(sets[language]):
            raise ValueError(f"There are no neurons of {language!r} to steer with; there are {listed(sets, language)}.")
    warn_of_other_weights(model, [sets[toward], sets[away]])
    both = {language: sets[language].hooks("set", values=means, language=toward) for language in (toward, away)}
    by_neurons = {"set": both[toward] + both[away]}
    by_neurons |= {f"scale ×{factor:g}": sets[toward].hooks("scale", factor=factor) for factor in factors}
    norms = stream_changes(model, by_neurons, prompts, layer)
    stream_norm = norms.pop(BASELINE)
    if idle := [name for name, norm in norms.items() if not norm]:
        raise ValueError(f"{idle[0]!r} does not move the stream up to block {layer}: choose a higher layer=.")
    equal = {f"direction as {name}": norm for name, norm in norms.items()}
    direction = partial(mean_difference, means, toward=toward, away=away, layer=layer)
    interventions = {**by_neurons, **{name: direction(norm=norm) for name, norm in equal.items()}}
    options |= {"identify": identify, "languages": languages or list(means.values), "progress": progress}
    texts = generations(model, interventions, {away: prompts}, **options)
    return Steering(texts, {BASELINE: 0.0, **norms, **equal}, stream_norm, toward, away, layer)
