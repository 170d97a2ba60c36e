"""Intervals: bootstrap over documents, paired across languages where the corpus is parallel."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95


def bootstrap_weights(
    documents: Mapping[str, Sequence[str]], *, paired: bool, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Float[np.ndarray, "resample _"]]:
    """How often each passage counts in each resample of whole documents, by language.

    Args:
        documents: the document of each passage, by language.
        paired: whether the documents are the same in every language and are drawn together.
        resamples: how many resamples.
        seed: of the random draws.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[str, ...], np.ndarray] = {}
    weights = {}
    for language, names in documents.items():
        distinct = tuple(dict.fromkeys(names))
        if not (paired and distinct in drawn):
            share = np.full(len(distinct), 1 / len(distinct))
            drawn[distinct] = generator.multinomial(len(distinct), share, size=resamples).astype(float)
        position = {name: i for i, name in enumerate(distinct)}
        weights[language] = drawn[distinct][:, [position[name] for name in names]]
    return weights


def interval(values: Float[np.ndarray, " resample"], level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled values."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def intervals(
    values: Float[np.ndarray, "resample *shape"], level: float = LEVEL
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """The percentile intervals of resampled arrays, entry by entry."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high
