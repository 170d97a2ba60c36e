"""Estimates with intervals and tests, by bootstrap over documents; intervals of proportions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000
LEVEL = 0.95

Values = int | float | Float[np.ndarray, "..."]
Verdict = Literal["above", "at", "below", "not measurable"]


def verdict(low: float, high: float) -> Verdict:
    """Where an interval lies: all of it above zero, or below, or neither; one of NaN is not measurable."""
    if np.isnan(low) or np.isnan(high):
        return "not measurable"
    return "above" if low > 0 else "below" if high < 0 else "at"


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic of all documents, of each bootstrap resample of them, and of all documents but one.

    Sums, differences, ratios and means of estimates are taken in every resample and without every document alike.
    A statistic may be a number or an array. ``value, draws = estimate`` works.
    """

    value: Values
    """Of all documents."""
    draws: Float[np.ndarray, "resample *shape"]
    """Of each resample."""
    leave_one_out: Float[np.ndarray, "document *shape"]
    """Without each document in turn; ``value`` for a document that the statistic does not rest on."""
    documents: int
    """The number of documents that it rests on: of several languages, the smallest."""

    __array_ufunc__ = None  # so that NumPy leaves its numbers' arithmetic with estimates to this class

    @classmethod
    def nan(cls) -> "Estimate":
        """An estimate of nothing: NaN, on no document."""
        return cls(np.nan, np.full(1, np.nan), np.full(1, np.nan), 0)

    @classmethod
    def of_mean(cls, values: Float[np.ndarray, "unit *shape"], *, seed: int = 0) -> "Estimate":
        """The mean of independent units, e.g. of prompts or neurons: each is a document."""
        units = {"": list(map(str, range(len(values))))}
        return Resampling.of(units, paired=False, seed=seed).mean("", values)

    @staticmethod
    def mean(estimates: Sequence["Estimate"]) -> "Estimate":
        """Their mean, each weighing the same."""
        return estimates[0].map(lambda *parts: np.mean(np.broadcast_arrays(*parts), axis=0), *estimates[1:])

    def map(self, function: Callable[..., Values], *others: "Estimate | Values") -> "Estimate":
        """A function of this and other statistics, which may have an axis of resamples or documents in front."""
        parts = zip(*(_parts(each) for each in (self, *others)), strict=True)
        value, draws, leave_one_out = (function(*each) for each in parts)
        documents = min(each.documents for each in (self, *others) if isinstance(each, Estimate))
        return Estimate(value, np.asarray(draws), np.asarray(leave_one_out), documents)

    def __add__(self, other: "Estimate | Values") -> "Estimate":
        return self.map(np.add, other)

    def __sub__(self, other: "Estimate | Values") -> "Estimate":
        return self.map(np.subtract, other)

    def __mul__(self, factor: Values) -> "Estimate":
        return self.map(np.multiply, factor)

    __rmul__ = __mul__

    def __truediv__(self, other: "Estimate | Values") -> "Estimate":
        """NaN where it divides by zero."""
        return self.map(_divide, other)

    def __iter__(self):
        return iter((self.value, self.draws))

    @cached_property
    def interval(self) -> tuple[Values, Values]:
        """The 95 % interval: the *expanded* percentile interval (Hesterberg 2015, section 5.3); NaN on one document.

        The percentile interval is too narrow for few documents: its spread lacks a factor √(n / (n − 1)), and it knows
        nothing of Student's t. This one lies further out by both. Resamples that are NaN are left out.
        """
        if self.documents < 2:
            return np.nan, np.nan
        from scipy.stats import norm, t

        n = self.documents
        return self._between(float(norm.cdf(t.ppf((1 - LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))))

    @cached_property
    def percentile_interval(self) -> tuple[Values, Values]:
        """The plain 95 % percentile interval, for many documents."""
        return self._between((1 - LEVEL) / 2)

    def _between(self, tail: float) -> tuple[Values, Values]:
        missing = np.isnan(self.draws)
        if missing.all():
            return self.value * np.nan, self.value * np.nan
        quantile = np.nanquantile if missing.any() else np.quantile
        low, high = quantile(self.draws, [tail, 1 - tail], axis=0)
        return low, high

    @property
    def low(self) -> float:
        """The lower end of :attr:`interval`, of a number."""
        return float(self.interval[0])

    @property
    def high(self) -> float:
        """The upper end of :attr:`interval`, of a number."""
        return float(self.interval[1])

    def verdict(self) -> Verdict:
        """Where :attr:`interval` lies: above zero, below, or at it; not measurable on one document."""
        return verdict(self.low, self.high)

    @cached_property
    def p(self) -> float:
        """Of a two-sided test that a number is zero: its bootstrap standard error, t with documents − 1 degrees.

        NaN for fewer than two documents, or a statistic that is NaN; 1 if it is zero in every resample.
        """
        if self.documents < 2 or np.isnan(self.value) or np.isnan(self.draws).any():
            return float("nan")
        from scipy.stats import t

        error = float(self.draws.std() * np.sqrt(self.documents / (self.documents - 1)))
        if error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * t.sf(abs(self.value) / error, self.documents - 1))


def _parts(each: Estimate | Values) -> tuple[Values, Values, Values]:
    return (each.value, each.draws, each.leave_one_out) if isinstance(each, Estimate) else (each, each, each)


def _divide(numerator: Values, denominator: Values) -> Values:
    return np.divide(numerator, np.where(np.equal(denominator, 0), np.nan, denominator))


@dataclass(frozen=True, eq=False)
class Resampling:
    """Resamples of whole documents, and all documents but one: what sums and means over passages are estimated with."""

    weights: Mapping[str, Float[np.ndarray, "resample _"]]
    """By language: how often each passage counts in each resample."""
    positions: Mapping[str, Int[np.ndarray, " _"]]
    """By language: the document of each passage, as its number among the documents of all languages."""
    documents: int
    """How many documents all languages have. Parallel languages share theirs."""

    @classmethod
    def of(
        cls, documents: Mapping[str, Sequence[str]], *, paired: bool, resamples: int = RESAMPLES, seed: int = 0
    ) -> "Resampling":
        """Of a corpus.

        Args:
            documents: the document of each passage, by language.
            paired: whether the documents are the same in every language and are drawn together.
            resamples: how many resamples.
            seed: of the random draws.
        """
        generator = np.random.default_rng(seed)
        drawn: dict[tuple[str, ...], np.ndarray] = {}
        numbers: dict[tuple[str, str], int] = {}
        weights, positions = {}, {}
        for language, names in documents.items():
            distinct = tuple(dict.fromkeys(names))
            if not (paired and distinct in drawn):
                share = np.full(len(distinct), 1 / len(distinct))
                drawn[distinct] = generator.multinomial(len(distinct), share, size=resamples).astype(float)
            place = {name: i for i, name in enumerate(distinct)}
            columns = slice(None) if len(distinct) == len(names) else [place[name] for name in names]
            weights[language] = drawn[distinct][:, columns]
            whose = "" if paired else language
            positions[language] = np.array([numbers.setdefault((whose, name), len(numbers)) for name in names])
        return cls(weights, positions, len(numbers))

    def total(self, language: str, values: Float[np.ndarray, "passage *shape"]) -> Estimate:
        """The sum over a language's passages."""
        passages, *shape = values.shape
        drawn = self.weights[language] @ values.reshape(passages, -1)
        of_document = np.zeros((self.documents, *shape))
        np.add.at(of_document, self.positions[language], values)
        total, documents = values.sum(0), len(set(self.positions[language].tolist()))
        return Estimate(total, drawn.reshape(-1, *shape), total - of_document, documents)

    def mean_total(
        self,
        language: str,
        values: Float[np.ndarray, "draw passage"],
        draw_weights: Float[np.ndarray, "resample draw"],
    ) -> Estimate:
        """The mean of several sums, e.g. under controls drawn several times, which are resampled as well.

        Args:
            language: whose passages these are.
            values: of each draw and passage.
            draw_weights: how much each draw counts in each resample, see :func:`draw_weights`.
        """
        total = self.total(language, values.mean(0))
        return replace(total, draws=((self.weights[language] @ values.T) * draw_weights).sum(1))

    def ratio(
        self, language: str, numerators: Float[np.ndarray, " passage"], denominators: Float[np.ndarray, " passage"]
    ) -> Estimate:
        """A sum over a language's passages divided by another, e.g. nats per token."""
        return self.total(language, numerators) / self.total(language, denominators)

    def mean(self, language: str, values: Float[np.ndarray, "passage *shape"]) -> Estimate:
        """The mean over a language's passages."""
        return self.total(language, values) / self.total(language, np.ones((len(values), *[1] * (values.ndim - 1))))


def draw_weights(number: int, seed: Sequence[int], resamples: int = RESAMPLES) -> Float[np.ndarray, "resample draw"]:
    """How much each of a few random draws counts in each resample.

    Each resample takes one draw fewer than there are, so that the variance of their mean is not too small (Rao and
    Wu 1988).
    """
    if number == 1:
        return np.ones((resamples, 1))
    generator = np.random.default_rng(seed)
    return generator.multinomial(number - 1, np.full(number, 1 / number), size=resamples) / (number - 1)


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
