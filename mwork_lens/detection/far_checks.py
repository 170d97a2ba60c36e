"""Masks and rotary tables of long documents compared without attention over them: on a few of their positions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures.plnd.attention import READS, Geometry
from ..measures.plnd.qk_dense import exact_squares
from ..measures.plnd.sides import ByPosition, Coefficients, Side
from ..model import HookedModel, TokenBatch, wrapped_model
from .checks import Scores
from .replaying import Cut, Replay, caught

FIRST, BETWEEN, LAST = 20, 8, 20
"""Places of a long document: its first tokens (which the last do not see through a window), some between, its last."""


PLACES = FIRST + BETWEEN + LAST


def places(length: int) -> Int[Tensor, " place"]:
    """Some positions of a document, in order."""
    between = torch.linspace(FIRST, length - LAST - 1, BETWEEN).long()
    return torch.cat([torch.arange(FIRST), between, torch.arange(length - LAST, length)])


def far_replays(model: HookedModel, layers: Sequence[int], batch: TokenBatch, near: TokenBatch) -> dict[int, Replay]:
    """Each block with the masks and tables that a long document gives it, cut to a few of its positions.

    What flows through them there is the stream of a short document, so that no attention over the long one is computed.
    """
    model_below = wrapped_model(model).base_model
    outputs: dict[int, Any] = {}
    with torch.no_grad():
        with caught(model, layers) as close, _noted(model, outputs):
            model_below(near.tokens, use_cache=False)
        with caught(model, layers) as far, _skipped(model, outputs):
            model_below(batch.tokens, use_cache=False)
    chosen, length = places(batch.tokens.shape[1]).to(batch.tokens.device), batch.tokens.shape[1]
    return {
        layer: replace(far[layer], cut=Cut(chosen, length, _states(close[layer].args, close[layer].kwargs)))
        for layer in layers
    }


def _states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def _noted(model: HookedModel, outputs: dict[int, Any]) -> Iterator[None]:
    """What every block gives, by layer."""
    handles = [
        block.register_forward_hook(lambda _, args, output, layer=layer: outputs.__setitem__(layer, output))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _skipped(model: HookedModel, outputs: Mapping[int, Any]) -> Iterator[None]:
    """Blocks that give back the stream as it came, in the form in which they gave ``outputs``."""

    def skipping(layer: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states, output = _states(args, kwargs), outputs[layer]
            return states if isinstance(output, Tensor) else type(output)((states, *output[1:]))

        return forward

    try:
        for layer, block in enumerate(model.blocks):
            vars(block)["forward"] = skipping(layer)  # a bridge would set it in the module that it wraps
        yield
    finally:
        for block in model.blocks:
            vars(block).pop("forward", None)


@dataclass(frozen=True)
class _Placed(Side):
    """A side whose positions are places of a longer document."""

    side: Side | None = None
    places: Int[Tensor, " place"] | None = None
    length: int = 0

    def turned(
        self, x: Float[Tensor, "pos head d_head"], positions: Int[Tensor, " pos"], length: int
    ) -> tuple[ByPosition, Coefficients]:
        """At the places that these positions stand for."""
        assert self.side is not None
        assert self.places is not None
        return self.side.turned(x, self.places[positions], self.length)


def far_scores(replay: Replay, geometry: Geometry, dtype: torch.dtype) -> Scores:
    """Scores of queries and keys in closed form at the places of a long document."""
    assert replay.cut
    layer, chosen, length = replay.layer, replay.cut.places, replay.cut.length
    seen: dict[str, Tensor] = {}
    hooks = [(f"blocks.{layer}.{name}", partial(_read, seen, name)) for name in READS]
    replay.run(hooks, dtype)
    query, key = (
        _Placed(**vars(side), side=side, places=chosen, length=length) for side in (geometry.query, geometry.key)
    )
    q, k, pattern = (seen[name][0] for name in READS)
    content = torch.ones(len(chosen), dtype=torch.bool, device=chosen.device)
    attention = replace(geometry, query=query, key=key).attention(q, k, pattern, content)
    return {site: (exact_squares(attention, site) / len(chosen)).sqrt() for site in ("q", "k")}


def _read(seen: dict[str, Tensor], name: str, activation: Tensor, hook: object = None) -> Tensor:
    seen[name] = activation
    return activation
