"""Effects of parts of each language's set, e.g. of those in some layers: what the sweep and the grid have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..neurons import NeuronSet
from ..store import Result
from ..text import Document
from .matrix import EffectMatrix


@dataclass(frozen=True)
class PartEffects(Result):
    """An effect matrix with a row a language and part; subclasses say how the rows are named."""

    effects: EffectMatrix

    def mean_difference(self, rows: Sequence[str]) -> tuple[float, Float[np.ndarray, " resample"]]:
        """Own rise minus the others' mean rise, mean over these rows, in the matrix's unit, and its resamples."""
        found = [self.effects.difference(row) for row in rows]
        return float(np.mean([value for value, _ in found])), np.mean([drawn for _, drawn in found], axis=0)


def own_sets(sets: Mapping[str, NeuronSet], corpus: Mapping[str, Sequence[Document]]) -> dict[str, NeuronSet]:
    """Each set as that of the language it is named after.

    Raises:
        ValueError: for a set of a language that the corpus lacks, or without neurons.
    """
    for language, neurons in sets.items():
        if language not in corpus or not len(neurons):
            raise ValueError(f"The set {language!r} needs neurons ({len(neurons)}) and text ({', '.join(corpus)}).")
    return {name: NeuronSet(own.space, own.masks, {**own.origin, "language": name}) for name, own in sets.items()}
