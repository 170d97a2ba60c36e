"""What a detector is: for each layer, which hook points it reads and how it turns them into scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..batches import TokenBatch
from ..hooks import ForwardHook
from ..sites import HookedModel

Activations = Mapping[str, Tensor]
"""What the hook points of one layer showed for one batch, by hook name within the block."""

SiteScores = Mapping[str, Float[Tensor, "batch _"]]
"""By site: how much deactivating each neuron changes, for each document of the batch."""


@dataclass(frozen=True)
class LayerMeasure:
    """A measure bound to one layer of one model."""

    reads: tuple[str, ...]
    """Hook points within the block, in the order in which the forward pass reaches them."""
    score: Callable[[Activations, TokenBatch], SiteScores]
    """Called once a batch, as soon as the last of ``reads`` is there."""


Measure = Callable[[HookedModel, int], Sequence[LayerMeasure]]
"""Anything that says what a model's neurons matter for. Give your own to ``detect(formulation=...)``.

Called with the model and each layer's number before the forward passes (whatever depends on weights only belongs
there); returns the layer's parts, e.g. one for attention and one for the feed-forward. A score is a norm over the
positions of ``batch.content``, divided by the root of their number, in float32 at least.
"""


def score_hooks(
    layers: Sequence[Sequence[LayerMeasure]],
    batch: Callable[[], TokenBatch],
    receive: Callable[[int, SiteScores], None],
) -> list[ForwardHook]:
    """Hook functions that score every layer while the forward pass runs, and keep nothing that is used up.

    Args:
        layers: the measures of each layer.
        batch: gives the batch that is running.
        receive: takes a layer's number and its scores.
    """
    hooks: list[ForwardHook] = []
    for layer, parts in enumerate(layers):
        for part in parts:
            hooks += _reading(layer, part, batch, receive)
    return hooks


def _reading(
    layer: int,
    part: LayerMeasure,
    batch: Callable[[], TokenBatch],
    receive: Callable[[int, SiteScores], None],
) -> list[ForwardHook]:
    seen: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., Tensor]:
        def read(activation: Tensor, hook: object = None) -> Tensor:
            seen[name] = activation
            if name == part.reads[-1]:
                scores = part.score(seen, batch())
                seen.clear()
                receive(layer, scores)
            return activation

        return read

    return [(f"blocks.{layer}.{name}", reader(name)) for name in part.reads]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def root_mean(squares: Float[Tensor, "batch neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
    """The score from squared changes summed over content positions: their root mean over those positions."""
    positions = batch.content.sum(-1, keepdim=True)
    return (squares.clamp(min=0) / positions).sqrt()
