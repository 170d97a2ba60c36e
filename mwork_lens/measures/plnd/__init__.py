"""PLND: what deactivating each neuron changes, in closed form, from one forward pass."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from ...model import HookedModel
from ...text.choices import require_choice
from ..measure import LayerMeasure, Measure
from .outputs import output_changes
from .published import parallel, released
from .queries_keys import pattern_change

Where = Literal["stream", "structure"]


def exact(where: Where = "stream", *, rotated_neurons: bool = False) -> Measure:
    """The exact importance of every neuron (Zhao et al. 2024, eq. 1 to 4, made exact).

    ``q`` and ``k``: change of the attention pattern. ``v`` and ``mlp``: change of what the structure adds to the
    residual stream (``"stream"``), or of its output before a post-norm (``"structure"``); the two are the same for
    models without post-norms. ``rotated_neurons`` (the paper's parallel form) is as in :func:`pattern_change`.
    """
    require_choice("measure", where, get_args(Where))

    def measure(model: HookedModel, layer: int) -> Sequence[LayerMeasure]:
        patterns = pattern_change(model, layer, rotated_neurons=rotated_neurons)
        return [patterns, *output_changes(model, layer, where)]

    return measure


FORMULATIONS = {"exact": exact, "paper": partial(exact, rotated_neurons=True), "released": lambda where: released}
