"""A few neurons of one layer: their scores in closed form compared with what switching them off changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..measures import Where
from ..model import SITES, at_least_float32, dtype_of, key_value_heads
from .replaying import Ablation, Replay

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.25
"""Relative differences that are rounding: in float32, and of the strongest neurons in half precision."""
FLOOR = 1e-2
"""Below this share of their site's largest score, scores are compared with that share instead of with themselves."""

Scores = Mapping[str, Float[Tensor, " neuron"]]


@dataclass(frozen=True)
class Check:
    """One neuron: its score in closed form, and what switching it off changes."""

    layer: int
    site: str
    neuron: int
    closed_form: float
    ablation: float
    relative: float
    """Their difference as a share of the ablation, or of ``FLOOR`` times the site's largest score if that is more."""
    dtype: str
    """Of the weights that both were computed with."""
    tokens: int
    exact: bool
    """Whether the difference is rounding; not if one is NaN."""


def layer_checks(
    replay: Replay, scores: Scores, where: Where, tokens: int, dtype: torch.dtype | None = None
) -> list[Check]:
    """Checks of one layer: in a block that is widened to ``dtype``, or of the strongest neurons in the model's own."""
    with Ablation(replay, scores, where, dtype) as ablation:
        return [
            check
            for site, values in scores.items()
            for check in _site_checks(replay, site, values, partial(ablation.change, site), tokens, dtype)
        ]


def _site_checks(
    replay: Replay,
    site: str,
    by_neuron: Float[Tensor, " neuron"],
    change: Callable[[Sequence[int]], Tensor],
    tokens: int,
    dtype: torch.dtype | None,
) -> Iterator[Check]:
    values, heads = at_least_float32(by_neuron).cpu(), _heads(replay, site)
    sets = _neurons(values, heads) if dtype else [[int(values.argmax())]]
    floor, tolerance = FLOOR * values.max().item(), TOLERANCE if dtype else HALF_TOLERANCE
    shown = str(by_neuron.dtype if dtype else dtype_of(replay.model)).removeprefix("torch.")
    for neuron, square in _changes(change, sets, heads if dtype and site in ("q", "k") else None):
        closed_form, ablated = values[neuron].item(), (square / tokens) ** 0.5
        difference, scale = abs(closed_form - ablated), max(abs(ablated), floor)
        relative = difference / scale if scale else difference
        numbers = closed_form, ablated, relative
        yield Check(replay.layer, site, neuron, *numbers, shown, tokens, exact=relative <= tolerance)


def _heads(replay: Replay, site: str) -> int | None:
    """Into how many heads a site's neurons are divided."""
    cfg, kind = replay.model.cfg, SITES[site].heads
    return {"query": cfg.n_heads, "key_value": key_value_heads(cfg), None: None}[kind]


def _neurons(scores: Float[Tensor, " neuron"], heads: int | None) -> list[list[int]]:
    """Which to check: the strongest and a median one of a feed-forward; else sets that have one of every head.

    Among the first two coordinates of a head, which rotate fastest, the last quarter, which partial rotation leaves as
    they are, and all others: the strongest each time.
    """
    if heads is None:
        order = scores.argsort(descending=True)
        return [[int(order[0]), int(order[len(order) // 2])]]
    by_head, sets = scores.view(heads, -1).nan_to_num(0), []
    width = by_head.shape[1]
    first, everything = torch.arange(heads) * width, torch.arange(width)
    for allowed in (everything < 2, everything >= width - max(1, width // 4), (everything >= 2)):
        chosen = by_head.masked_fill(~allowed, -1).argmax(-1)
        by_head = by_head.scatter(1, chosen[:, None], -1)
        sets.append((first + chosen).unique().tolist())
    return sets


def _changes(
    change: Callable[[Sequence[int]], Tensor], sets: Sequence[Sequence[int]], heads: int | None
) -> Iterator[tuple[int, float]]:
    """Each neuron, and the sum of squares of its change.

    Where a head's neuron leaves all patterns but those of its own group unchanged, one of every head is switched off
    in the same pass.
    """

    def square_by_head(neurons: Sequence[int]) -> Tensor:
        return change(neurons).double().square().sum((-2, -1))

    apart = False
    if heads and heads > 1:
        of_first = square_by_head(sets[0][:1])
        apart = not of_first[len(of_first) // heads :].any()
    for neurons in sets:
        if apart and heads:
            yield from zip(neurons, square_by_head(neurons).view(heads, -1).sum(1).tolist(), strict=True)
        else:
            yield from ((neuron, square_by_head([neuron]).sum().item()) for neuron in neurons)
