"""Estimates with intervals and tests, by bootstrap over documents; intervals of proportions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from .store import storable

RESAMPLES, LEVEL = 2000, 0.95

Values = int | float | Float[np.ndarray, "..."]
Verdict = Literal["above", "at", "below", "not measurable"]


def verdict(low: float, high: float) -> Verdict:
    """Where an interval lies: all of it above zero, or below, or neither; one of NaN is not measurable."""
    if np.isnan(low) or np.isnan(high):
        return "not measurable"
    return "above" if low > 0 else "below" if high < 0 else "at"


@storable
@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic of all documents, of each bootstrap resample of them, and of all documents but one.

    Sums, differences, ratios and means of estimates are taken in every resample and without every document alike.
    A statistic may be a number or an array. ``value, draws = estimate`` works.
    """

    value: Values
    draws: Float[np.ndarray, "resample *shape"]
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
        return Resampling.of({"": [*map(str, range(len(values)))]}, paired=False, seed=seed).mean("", values)

    @staticmethod
    def mean(estimates: Sequence["Estimate"]) -> "Estimate":
        """Their mean, each weighing the same."""
        return estimates[0].map(lambda *parts: np.mean(np.broadcast_arrays(*parts), axis=0), *estimates[1:])

    def map(self, function: Callable[..., Values], *others: "Estimate | Values") -> "Estimate":
        """A function of this and other statistics, which may have an axis of resamples or documents in front."""
        every = (self, *others)
        value, draws, leave_one_out = (
            function(*(getattr(each, part) if isinstance(each, Estimate) else each for each in every))
            for part in ("value", "draws", "leave_one_out")
        )
        documents = min(each.documents for each in every if isinstance(each, Estimate))
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
        return self.map(lambda a, b: np.divide(a, np.where(np.equal(b, 0), np.nan, b)), other)

    def __iter__(self):
        return iter((self.value, self.draws))

    @cached_property
    def interval(self) -> tuple[Values, Values]:
        """The 95 % interval: the *expanded* percentile interval (Hesterberg 2015, section 5.3); NaN on one document.

        The percentile interval is too narrow for few documents: its spread lacks a factor √(n / (n − 1)), and it knows
        nothing of Student's t. This one lies further out by both. Resamples that are NaN are left out.
        """
        if (n := self.documents) < 2:
            return np.nan, np.nan
        from scipy.stats import norm, t

        return self._between(float(norm.cdf(t.ppf((1 - LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1)))))

    @cached_property
    def percentile_interval(self) -> tuple[Values, Values]:
        """The plain 95 % percentile interval, for many documents."""
        return self._between((1 - LEVEL) / 2)

    def _between(self, tail: float) -> tuple[Values, Values]:
        undefined = np.isnan(self.draws)
        if undefined.all():
            return self.value * np.nan, self.value * np.nan
        quantile = np.nanquantile if undefined.any() else np.quantile
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
        """Where :attr:`interval` lies."""
        return verdict(self.low, self.high)

    def cells(self, name: str, prefix: str = "") -> dict[str, float]:
        """A number with its interval, in columns of a table: the name, and low and high with their prefix."""
        return {name: float(self.value), f"{prefix}low": self.low, f"{prefix}high": self.high}

    @cached_property
    def p(self) -> float:
        """Of a two-sided test that a number is zero: its bootstrap standard error, t with documents − 1 degrees.

        NaN for fewer than two documents, or a statistic that is NaN; 1 if it is zero in every resample.
        """
        if (n := self.documents) < 2 or np.isnan(self.value) or np.isnan(self.draws).any():
            return float("nan")
        from scipy.stats import t

        error = float(self.draws.std() * np.sqrt(n / (n - 1)))
        return float(2 * t.sf(abs(self.value) / error, n - 1)) if error else float(self.value == 0)


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
        """Of the document of each passage; with ``paired``, languages share theirs, which are drawn together."""
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
            keys = [("" if paired else language, name) for name in names]
            positions[language] = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        return cls(weights, positions, len(numbers))

    def total(self, language: str, values: Float[np.ndarray, "passage *shape"]) -> Estimate:
        """The sum over a language's passages."""
        of_document = np.zeros((self.documents, *values.shape[1:]))
        np.add.at(of_document, self.positions[language], values)
        total, drawn = values.sum(0), np.tensordot(self.weights[language], values, 1)
        return Estimate(total, drawn, total - of_document, len(set(self.positions[language].tolist())))

    def mean_total(self, language: str, values: Float[np.ndarray, "draw passage"], seed: Sequence[int]) -> Estimate:
        """The mean of several sums, e.g. under each of several controls drawn at random.

        Each resample takes as many draws again, but for one, so that the variance of a mean of few is not too small
        (Rao and Wu 1988). With the same ``seed`` it takes the same ones in every language.
        """
        total, draws = self.total(language, values.mean(0)), len(values)
        if draws == 1:
            return total
        by_draw = self.weights[language] @ values.T
        counts = np.random.default_rng(seed).multinomial(draws - 1, np.full(draws, 1 / draws), size=len(by_draw))
        return replace(total, draws=(by_draw * (counts / (draws - 1))).sum(1))

    def mean(self, language: str, values: Float[np.ndarray, "passage *shape"]) -> Estimate:
        """The mean over a language's passages."""
        return self.total(language, values) / self.total(language, np.ones((len(values), *[1] * (values.ndim - 1))))


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p values adjusted for how many they are (Benjamini and Hochberg 1995); NaN stays NaN and does not count.

    Of the tests whose adjusted value is at most 0.05, on average at most 5 % are false.
    """
    p = np.asarray(p, dtype=float)
    adjusted, tested = np.full(len(p), np.nan), ~np.isnan(p)
    if tested.any():
        from scipy.stats import false_discovery_control

        adjusted[tested] = false_discovery_control(p[tested], method="bh")
    return adjusted


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a proportion; NaN without trials, a ValueError unless 0 ≤ successes ≤ trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion.")
    if not trials:
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
