"""Intervals and tests: bootstrap over documents, paired across languages where the corpus is parallel; shares."""

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


def interval(
    values: Float[np.ndarray, " resample"], level: float = LEVEL, *, documents: int | None = None
) -> tuple[float, float]:
    """The percentile interval of resampled values, those that are missing left out.

    Args:
        values: a statistic of each resample.
        level: the share of such intervals that are to hold the true value.
        documents: how many documents were resampled. The percentile interval is too narrow for few: its spread lacks
            a factor √(n / (n − 1)), and it knows nothing of Student's t. Given this number it is the *expanded*
            percentile interval (Hesterberg 2015, section 5.3), further out by both. One document gives none.
    """
    if documents is not None and documents < 2:
        return float("nan"), float("nan")
    tail = (1 - level) / 2 if documents is None else _expanded_tail((1 - level) / 2, documents)
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(tail: float, documents: int) -> float:
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf(tail, documents - 1) * np.sqrt(documents / (documents - 1))))


def intervals(
    values: Float[np.ndarray, "resample *shape"], level: float = LEVEL
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """The percentile intervals of resampled arrays, entry by entry."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def p_value(estimate: float, values: Float[np.ndarray, " resample"], *, documents: int) -> float:
    """Two-sided test that a statistic is zero: its bootstrap standard error, and t with documents − 1 degrees.

    Missing for fewer than two documents or a missing statistic; 1 where it is zero in every resample.

    Args:
        estimate: the statistic.
        values: the statistic of each resample.
        documents: how many documents were resampled.
    """
    if documents < 2 or np.isnan(estimate) or np.isnan(values).any():
        return float("nan")
    from scipy.stats import t

    error = float(values.std() * np.sqrt(documents / (documents - 1)))
    if error == 0:
        return 1.0 if estimate == 0 else 0.0
    return float(2 * t.sf(abs(estimate) / error, documents - 1))


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p values adjusted for how many they are (Benjamini and Hochberg 1995).

    Of the tests whose adjusted value is at most 0.05, on average at most 5 % are false. Missing ones stay missing and
    do not count.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(len(p), np.nan)
    there = ~np.isnan(p)
    if there.any():
        from scipy.stats import false_discovery_control

        adjusted[there] = false_discovery_control(p[there], method="bh")
    return adjusted


def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share, e.g. of right answers; missing without trials.

    Raises:
        ValueError: unless 0 ≤ successes ≤ trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is no share.")
    if not trials:
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
