"""PLND: what deactivating each neuron changes, in closed form, from one forward pass."""

from collections.abc import Sequence
from typing import Literal, get_args

from ...model import HookedModel, has_feed_forward
from ..measure import LayerMeasure, Measure
from . import feed_forward, queries_keys, values
from .published import parallel, released

Where = Literal["stream", "structure"]


def exact(where: Where = "stream") -> Measure:
    """The exact importance of every neuron (PAPER: Zhao et al. 2024, eq. 1 to 4, made exact).

    ``q`` and ``k``: change of the attention pattern. ``v`` and ``mlp``: change of what the structure adds to the
    residual stream (``"stream"``), or of its own output before a post-norm (``"structure"``); the two are the same
    for models without post-norms.
    """
    return _measure(where, rotated_neurons=False)


def paper(where: Where = "structure") -> Measure:
    """The paper's parallel form: as :func:`exact`, but query and key neurons are taken after rotation.

    There zeroing a coordinate takes q̃_id k̃_jd / m off the scores, which is not what zeroing a column of W_Q or W_K
    does wherever the model rotates or normalises its queries and keys.
    """
    return _measure(where, rotated_neurons=True)


FORMULATIONS = {"exact": exact, "paper": paper, "released": lambda where: released}


def _measure(where: Where, *, rotated_neurons: bool) -> Measure:
    if where not in get_args(Where):
        raise ValueError(f"measure={where!r}: it must be one of {', '.join(get_args(Where))}.")

    def measure(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
        attention = values.stream_change if where == "stream" else values.structure_change
        hidden = feed_forward.stream_change if where == "stream" else feed_forward.structure_change
        patterns = queries_keys.pattern_change(model, layer, rotated_neurons=rotated_neurons)
        parts = [patterns, attention(model, layer)]
        return [*parts, hidden(model, layer)] if has_feed_forward(model.cfg) else parts

    return measure
