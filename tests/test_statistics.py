import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mwork_lens.statistics import Estimate, Resampling, benjamini_hochberg, wilson
from mwork_lens.store import Result


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12))
def test_benjamini_hochberg_is_its_definition(values):
    """The smallest level at which a test is still rejected: min over larger p of m p / rank."""
    there = sorted(p for p in values if not np.isnan(p))
    for p, adjusted in zip(values, benjamini_hochberg(np.array(values)), strict=True):
        if np.isnan(p):
            assert np.isnan(adjusted)
        else:
            bounds = [len(there) * q / (i + 1) for i, q in enumerate(there) if q >= p]
            assert adjusted == pytest.approx(min(*bounds, 1))


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 10), (10, 10), (81, 263)])
def test_wilsons_bounds_are_the_shares_that_the_count_does_not_refute(successes, trials):
    z, share = 1.959963984540054, successes / trials
    for bound in wilson(successes, trials):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials, abs=1e-12)


def test_a_share_needs_trials():
    assert np.isnan(wilson(0, 0)).all()
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        wilson(3, 2)


def test_expanded_intervals_and_p_values_hold_for_few_documents():
    """Of normal samples of six, 95 % of the intervals hold the mean, and 5 % of the p values are below 0.05."""
    generator = np.random.default_rng(0)
    plain, expanded, small = 0, 0, 0
    for _ in range(300):
        estimate = Estimate.of_mean(generator.standard_normal(6))
        plain += estimate.percentile_interval[0] <= 0 <= estimate.percentile_interval[1]
        expanded += estimate.low <= 0 <= estimate.high
        small += estimate.p < 0.05
    assert plain / 300 < 0.90
    assert expanded / 300 == pytest.approx(0.95, abs=0.03)
    assert small / 300 == pytest.approx(0.05, abs=0.03)


def test_one_document_has_no_interval_and_nothing_has_p_one():
    single = Estimate.of_mean(np.array([0.5]))
    assert np.isnan([single.low, single.high, single.p, *single.leave_one_out]).all()
    assert single.verdict() == Estimate.nan().verdict() == "not measurable"
    assert Estimate.of_mean(np.zeros(4)).p == 1
    assert Estimate.of_mean(np.zeros(4)).verdict() == "at"
    assert (Estimate.of_mean(np.full(4, 0.5)).p, Estimate.of_mean(np.full(4, -0.3)).verdict()) == (0, "below")
    assert np.isnan(Estimate.of_mean(np.array([1.0, np.nan])).p)


def test_resamples_that_are_nan_are_left_out_of_the_interval():
    draws = np.where(np.arange(100) % 2, np.nan, np.arange(100.0))
    mixed = Estimate(40.0, draws, np.zeros(3), 3)
    assert mixed.interval == Estimate(40.0, draws[::2], np.zeros(3), 3).interval
    assert np.isnan(Estimate(np.nan, np.full(9, np.nan), np.zeros(3), 3).low)


PASSAGES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-9, 9), st.integers(1, 9)), min_size=1, max_size=9)


def ratio_of(rows):
    return sum(value for _, value, _ in rows) / sum(size for _, _, size in rows) if rows else np.nan


@settings(deadline=None, max_examples=60)
@given(first=PASSAGES, second=PASSAGES, paired=st.booleans())
def test_every_statistic_is_what_it_is_of_the_resampled_passages(first, second, paired):
    """Value, resamples and leave-one-outs of a difference of ratios, against lists of passages made by hand."""
    corpus = {"x": first, "y": second}
    documents = {language: [name for name, _, _ in rows] for language, rows in corpus.items()}
    resampling = Resampling.of(documents, paired=paired, resamples=7)

    def ratio(language):
        values, sizes = np.array([row[1:] for row in corpus[language]], dtype=float).T
        return resampling.total(language, values) / resampling.total(language, sizes)

    found = ratio("x") - ratio("y")
    assert found.value == pytest.approx(ratio_of(first) - ratio_of(second))
    assert found.documents == min(len(set(names)) for names in documents.values())
    for resample in range(7):
        drawn = [
            ratio_of(
                [row for row, n in zip(rows, resampling.weights[name][resample], strict=True) for _ in range(int(n))]
            )
            for name, rows in corpus.items()
        ]
        assert found.draws[resample] == pytest.approx(drawn[0] - drawn[1])
    # a document of a parallel corpus is left out of both languages, else of its own alone
    shared = list(dict.fromkeys((paired or name, d) for name, names in documents.items() for d in names))
    assert len(found.leave_one_out) == len(shared)
    for (whose, document), without in zip(shared, found.leave_one_out, strict=True):
        rest = [
            ratio_of([row for row in rows if row[0] != document or whose not in (True, name)])
            for name, rows in corpus.items()
        ]
        assert without == pytest.approx(rest[0] - rest[1], nan_ok=True)


def test_languages_of_a_parallel_corpus_are_drawn_together():
    documents = {"x": list("aabb"), "y": list("aabb")}
    paired, apart = (Resampling.of(documents, paired=paired) for paired in (True, False))
    assert (paired.weights["x"] == paired.weights["y"]).all()
    assert (apart.weights["x"] != apart.weights["y"]).any()
    assert (paired.weights["x"][:, 0] == paired.weights["x"][:, 1]).all()
    values = np.array([1.0, 2.0, 4.0, 8.0])
    same, differ = (r.mean("x", values) - r.mean("y", values) for r in (paired, apart))
    assert (same.interval, same.p, set(same.leave_one_out)) == ((0, 0), 1, {0})
    assert differ.low < 0 < differ.high


NUMBERS = st.lists(st.floats(-5, 5), min_size=5, max_size=5).map(lambda values: Estimate.of_mean(np.array(values)))


@settings(deadline=None, max_examples=30)
@given(a=NUMBERS, b=NUMBERS, factor=st.floats(-3, 3))
def test_estimates_are_linear(a, b, factor):
    def same(one, other):
        for field in ("value", "draws", "leave_one_out"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-9, atol=1e-9)
        assert one.documents == other.documents

    same(a - a, a * 0)
    same(Estimate.mean([a]), a)
    same(Estimate.mean([a, b]), 0.5 * (a + b))
    same(factor * (a - b), factor * a - b * factor)
    same(np.float64(factor) * a + 1.0, 1.0 * a * factor + np.float64(1))
    value, draws = a
    assert value == a.value
    assert draws is a.draws


def test_a_ratio_of_estimates_is_nan_where_it_divides_by_zero():
    ratio = Estimate.of_mean(np.array([1.0, 2.0])) / Estimate.of_mean(np.array([0.0, 2.0]))
    assert ratio.value == 1.5
    assert np.isnan(ratio.draws).any()
    assert np.isnan(ratio.leave_one_out[1])


def test_arrays_are_estimated_entry_by_entry():
    values = np.random.default_rng(1).standard_normal((6, 2, 3))
    whole = Estimate.of_mean(values)
    low, high = map(np.asarray, whole.interval)
    for i, j in np.ndindex(2, 3):
        single = Estimate.of_mean(values[:, i, j])
        assert (low[i, j], high[i, j]) == pytest.approx(single.interval)
        np.testing.assert_allclose(whole.map(lambda x, i=i, j=j: x[..., i, j]).leave_one_out, single.leave_one_out)


def test_leave_one_outs_give_the_standard_error_of_a_mean():
    """The jackknife's error of a mean is its textbook one; the bootstrap's, with its factor, agrees."""
    values = np.random.default_rng(2).standard_normal(30)
    estimate, n = Estimate.of_mean(values), 30
    jackknife = np.sqrt((n - 1) / n * ((estimate.leave_one_out - estimate.leave_one_out.mean()) ** 2).sum())
    assert jackknife == pytest.approx(values.std(ddof=1) / np.sqrt(n))
    assert estimate.draws.std() * np.sqrt(n / (n - 1)) == pytest.approx(jackknife, rel=0.05)


@dataclass(frozen=True)
class Stored(Result, kind="stored estimate"):
    estimate: Estimate


def test_an_estimate_is_stored_with_all_that_intervals_are_made_of(tmp_path):
    estimate = Estimate.of_mean(np.array([0.1, 0.7, 0.4])) - Estimate.of_mean(np.array([0.2, 0.2, 0.9]))
    Stored(estimate).save(tmp_path / "estimate")
    loaded = Stored.load(tmp_path / "estimate").estimate
    assert (loaded.value, loaded.documents, loaded.interval, loaded.p) == (
        estimate.value,
        estimate.documents,
        estimate.interval,
        estimate.p,
    )
    assert (loaded.leave_one_out == estimate.leave_one_out).all()


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_few_draws_are_resampled_with_their_full_variance(number):
    """With one document, only draws vary: of a resampled mean of n, their unbiased variance over n (Rao and Wu)."""
    resampling = Resampling.of({"x": ["a", "a"], "y": ["b"]}, paired=False, resamples=200_000)
    values = np.random.default_rng(number).standard_normal((number, 2))
    total = resampling.mean_total("x", values, [1, 0])
    assert total.value == pytest.approx(values.sum() / number)
    assert total.draws.mean() == pytest.approx(total.value, abs=0.01)
    expected = values.sum(1).var(ddof=1) / number if number > 1 else 0
    assert total.draws.var() == pytest.approx(expected, rel=0.02)
    # the same draws whatever is read
    assert (resampling.mean_total("y", values.sum(1, keepdims=True), [1, 0]).draws == total.draws).all()


def test_scipy_stays_out_of_the_import():
    code = "import sys, mwork_lens; assert 'scipy.stats' not in sys.modules, 'scipy.stats'"
    subprocess.run([sys.executable, "-c", code], check=True)
