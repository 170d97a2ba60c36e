"""What a detector is: for each layer, which hook points it reads and how it turns them into scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from ..model import ForwardHook, HookedModel, Running, TokenBatch
from .selection import Selection

Activations = Mapping[str, Tensor]
"""What the hook points of one layer showed for one batch, by hook name within the block."""

SiteScores = Mapping[str, Float[Tensor, "batch _"]]
"""By site: how much deactivating each neuron changes, for each document of the batch."""

SiteMasks = Mapping[str, Bool[Tensor, "batch _"]]
"""By site: which of the scores are exact."""


@dataclass(frozen=True)
class LayerMeasure:
    """A measure bound to one layer of one model."""

    reads: tuple[str, ...]
    """Hook points within the block, in the order in which the forward pass reaches them."""
    score: Callable[[Activations, TokenBatch], SiteScores]
    """Every neuron's score; called once per batch, as soon as the last of ``reads`` is there."""
    screen: Callable[[Activations, TokenBatch, Selection], tuple[SiteScores, SiteMasks]] | None = None
    """Where there is a faster way: scores that select the same neurons as ``score`` does, and which are exact."""


Measure = Callable[[HookedModel, int], Sequence[LayerMeasure]]
"""Anything that says what a model's neurons matter for, e.g. one that you give to ``detect(formulation=...)``.

Called with the model and each layer's number before the forward passes (whatever depends on weights only belongs
there); returns the layer's parts, e.g. one for attention and one for the feed-forward. A score is a norm over the
positions of ``batch.content``, divided by the root of their number, in float32 at least.
"""

Receive = Callable[[int, SiteScores, SiteMasks | None], None]


def score_hooks(
    layers: Sequence[Sequence[LayerMeasure]],
    running: Running,
    receive: Receive,
    selection: Selection | None = None,
) -> list[ForwardHook]:
    """Hook functions that score every layer during the forward pass, and hold nothing that is used up.

    ``receive`` takes a layer's number, its scores, and which of them are exact (None: all). With a selection they
    screen where a measure can; without, every score is exact.
    """

    def hooks_of(layer: int, part: LayerMeasure) -> list[ForwardHook]:
        seen: dict[str, Tensor] = {}

        def read(name: str, activation: Tensor, hook: object = None) -> Tensor:
            seen[name] = activation
            if name == part.reads[-1]:
                if part.screen is None or selection is None:
                    scores, exact = part.score(seen, running.batch), None
                else:
                    scores, exact = part.screen(seen, running.batch, selection)
                seen.clear()
                receive(layer, scores, exact)
            return activation

        return [(f"blocks.{layer}.{name}", partial(read, name)) for name in part.reads]

    return [hook for layer, parts in enumerate(layers) for part in parts for hook in hooks_of(layer, part)]


def root_mean(squares: Float[Tensor, "batch neuron"], batch: TokenBatch) -> Float[Tensor, "batch neuron"]:
    """The score from squared changes summed over content positions: their root mean over those positions."""
    positions = batch.content.sum(-1, keepdim=True)
    return (squares.clamp(min=0) / positions).sqrt()
