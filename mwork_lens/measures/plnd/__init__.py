"""PLND: what deactivating each neuron changes, in closed form, from one forward pass."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from ...model import HookedModel, has_feed_forward
from ..measure import LayerMeasure, Measure
from .outputs import hidden_change, value_change
from .published import parallel, released
from .queries_keys import pattern_change

Where = Literal["stream", "structure"]


def exact(where: Where = "stream", *, rotated_neurons: bool = False) -> Measure:
    """The exact importance of every neuron (PAPER: Zhao et al. 2024, eq. 1 to 4, made exact).

    ``q`` and ``k``: change of the attention pattern. ``v`` and ``mlp``: change of what the structure adds to the
    residual stream (``"stream"``), or of its output before a post-norm (``"structure"``); the two are the same for
    models without post-norms.

    With ``rotated_neurons`` (the paper's parallel form) query and key neurons are taken after rotation: zeroing a
    coordinate takes q̃_id k̃_jd / m off the scores, which is not what zeroing a column of W_Q or W_K does wherever the
    model rotates or normalises its queries and keys.
    """
    if where not in get_args(Where):
        raise ValueError(f"measure={where!r}: it must be one of {', '.join(get_args(Where))}.")

    def measure(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
        patterns = pattern_change(model, layer, rotated_neurons=rotated_neurons)
        parts = [patterns, value_change(model, layer, where)]
        return [*parts, hidden_change(model, layer, where)] if has_feed_forward(model.cfg) else parts

    return measure


FORMULATIONS = {"exact": exact, "paper": partial(exact, rotated_neurons=True), "released": lambda where: released}
