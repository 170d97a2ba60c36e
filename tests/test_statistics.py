import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import t, ttest_1samp, ttest_ind

from mwork_lens.statistics import FALSE_DISCOVERIES, Estimate, Jackknife, adjusted_verdict, benjamini_hochberg, wilson
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


DRAWN = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "t3": lambda generator, shape: generator.standard_t(3, shape),
    "gamma": lambda generator, shape: generator.gamma(2, 1, shape) - 2,
}


@pytest.mark.parametrize(("kind", "documents", "most"), [("normal", 6, 6.5), ("t3", 6, 6.5), ("gamma", 12, 8.0)])
def test_intervals_leave_a_true_mean_out_as_often_as_they_may(kind, documents, most):
    """Of 20,000 samples: at most so many per cent. p says the same as the interval."""
    sample = DRAWN[kind](np.random.default_rng(0), (documents, 20_000))
    low, high = Estimate.of_mean(sample).interval
    assert 2.5 < 100 * np.mean((low > 0) | (high < 0)) < most
    for number in range(200):
        single = Estimate.of_mean(sample[:, number])
        assert (single.p <= 0.05) == (single.verdict() != "at") == bool(low[number] > 0 or high[number] < 0)


@pytest.mark.parametrize(("kind", "most"), [("normal", 5), ("t3", 5), ("gamma", 12.5)])
def test_tables_without_effects_rarely_have_a_star(kind, most):
    """Of 1,500 tables of twelve cells on 12 documents; by Student's t alone it would be 17 % for gamma(2), not 10."""
    sample = DRAWN[kind](np.random.default_rng(5), (12, 12 * 1500))
    p = Estimate.of_mean(sample)._p.reshape(1500, 12)
    assert 100 * np.mean([(benjamini_hochberg(cells) <= FALSE_DISCOVERIES).any() for cells in p]) < most


@pytest.mark.parametrize(("documents", "least"), [(6, 75), (12, 95)])
def test_an_effect_of_one_and_a_half_standard_deviations_is_found(documents, least):
    sample = 1.5 + np.random.default_rng(1).standard_normal((documents, 4000))
    assert 100 * np.mean(Estimate.of_mean(sample).interval[0] > 0) > least


def test_a_mean_has_the_t_interval():
    """The jackknife's error of a mean is s / √n: without skewness the interval is that of the one-sample t test."""
    half = np.random.default_rng(2).standard_normal(5)
    values = 0.4 + np.concatenate([half, -half])
    estimate, known = Estimate.of_mean(values), ttest_1samp(values, 0)
    assert estimate.error == pytest.approx(values.std(ddof=1) / np.sqrt(10))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(known.confidence_interval(0.95)), abs=1e-5)
    assert estimate.p == pytest.approx(known.pvalue, abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_documents_have_a_longer_interval_on_one_side(sign):
    """There as far as Hall's transformation of t, solved by a root finder, is not refuted; never shorter."""
    values = sign * np.random.default_rng(6).gamma(1, 1, 12)
    estimate, n, error = Estimate.of_mean(values), 12, values.std(ddof=1) / np.sqrt(12)
    skew = (1 - 2 / n) * np.mean((values - values.mean()) ** 3) / values.std() ** 3 / np.sqrt(n)

    def hall(truth):
        x = (values.mean() - truth) / error
        return x + skew * x**2 / 3 + skew**2 * x**3 / 27 + skew / 6

    critical = t.ppf(0.975, n - 1)
    far = brentq(lambda truth: hall(truth) + sign * critical, values.mean(), values.mean() + sign * 20 * error)
    near = values.mean() - sign * critical * error
    assert (estimate.low, estimate.high) == pytest.approx(tuple(sorted([near, far])))
    assert abs(far - values.mean()) > 1.1 * critical * error
    moved = Estimate.of_mean(values - far)
    assert moved.p == pytest.approx(0.05)


def test_languages_with_documents_of_their_own_add_up_in_squares():
    generator = np.random.default_rng(3)
    first, second = generator.standard_normal(9), 3 * generator.standard_normal(14)
    jackknife = Jackknife.of({"x": [*"abcdefghi"], "y": [*"abcdefghijklmn"]}, paired=False)
    found, known = jackknife.mean("x", first) - jackknife.mean("y", second), ttest_ind(first, second, equal_var=False)
    assert found.error == pytest.approx(np.hypot(first.std(ddof=1) / 3, second.std(ddof=1) / np.sqrt(14)))
    assert found.freedom == pytest.approx(min(known.df, 8))
    assert found.documents == 9


def test_uneven_documents_count_for_fewer():
    """Of normal ones the interval still leaves the truth out in 5 %: with documents − 1 degrees it would be 8 %."""
    sizes = np.array([1.0, 1, 1, 1, 2, 6])
    jackknife = Jackknife.of({"x": [*"abcdef"]}, paired=True)
    sample = np.random.default_rng(4).standard_normal((6, 20_000))
    found = jackknife.total("x", sample * sizes[:, None]) / jackknife.size("x", sizes[:, None])
    assert found.effective == pytest.approx(144 / 44)
    low, high = found.interval
    assert 100 * np.mean((low > 0) | (high < 0)) < 6
    assert 100 * np.mean(np.abs(found.value) > t.ppf(0.975, 5) * found.error) > 7


def test_below_six_documents_nothing_is_said():
    for number in (1, 2, 5):
        few = Estimate.of_mean(np.arange(1.0, number + 1))
        assert np.isnan([few.low, few.high, few.p]).all()
        assert few.verdict() == "not measurable"
    assert Estimate.of_mean(np.arange(1.0, 7)).verdict() == "above"
    assert Estimate.nan().verdict() == "not measurable"
    assert np.isnan([Estimate.nan().low, Estimate.nan().p]).all()


def test_what_does_not_vary_is_certain():
    assert Estimate.of_mean(np.zeros(6)).p == 1
    assert Estimate.of_mean(np.zeros(6)).verdict() == "at"
    assert (Estimate.of_mean(np.full(6, 0.5)).p, Estimate.of_mean(np.full(6, -0.25)).verdict()) == (0, "below")
    assert np.isnan(Estimate.of_mean(np.array([1.0, 2, 3, 4, 5, np.nan])).p)


def test_a_verdict_is_a_star():
    assert [adjusted_verdict(value, 0.05) for value in (0.1, -0.1)] == ["above", "below"]
    assert [adjusted_verdict(0.1, 0.0501), adjusted_verdict(0.0, 0.0)] == ["at", "at"]


PASSAGES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-9, 9), st.integers(1, 9)), min_size=1, max_size=9)


def ratio_of(rows):
    return sum(value for _, value, _ in rows) / sum(size for _, _, size in rows) if rows else np.nan


@settings(deadline=None, max_examples=60)
@given(first=PASSAGES, second=PASSAGES, paired=st.booleans())
def test_every_statistic_is_what_it_is_of_the_resampled_passages(first, second, paired):
    """Value, resamples and leave-one-outs of a difference of ratios, against lists of passages made by hand."""
    corpus = {"x": first, "y": second}
    documents = {language: [name for name, _, _ in rows] for language, rows in corpus.items()}
    jackknife = Jackknife.of(documents, paired=paired)

    def ratio(language):
        values, sizes = np.array([row[1:] for row in corpus[language]], dtype=float).T
        return jackknife.total(language, values) / jackknife.size(language, sizes)

    found = ratio("x") - ratio("y")
    assert found.value == pytest.approx(ratio_of(first) - ratio_of(second))
    assert found.documents == min(len(set(names)) for names in documents.values())
    # a document of a parallel corpus is left out of both languages, else of its own alone
    whose = {name: list(dict.fromkeys(names)) for name, names in documents.items()}
    groups = {"documents": list(dict.fromkeys(name for names in whose.values() for name in names))} if paired else whose
    assert found.leave_one_out.keys() == groups.keys()
    for group, names in groups.items():
        for document, without in zip(names, found.leave_one_out[group], strict=True):
            rest = [
                ratio_of([row for row in rows if row[0] != document or group not in ("documents", name)])
                for name, rows in corpus.items()
            ]
            assert without == pytest.approx(rest[0] - rest[1], nan_ok=True)


def test_languages_of_a_parallel_corpus_are_left_out_together():
    documents = {"x": list("aabbccddeeff"), "y": list("aabbccddeeff")}
    paired, apart = (Jackknife.of(documents, paired=paired) for paired in (True, False))
    values = np.arange(12.0) ** 2
    same, differ = (r.mean("x", values) - r.mean("y", values) for r in (paired, apart))
    assert (same.interval, same.p, same.error) == ((0, 0), 1, 0)
    assert differ.low < 0 < differ.high


NUMBERS = st.lists(st.floats(-5, 5), min_size=5, max_size=5).map(lambda values: Estimate.of_mean(np.array(values)))


@settings(deadline=None, max_examples=30)
@given(a=NUMBERS, b=NUMBERS, factor=st.floats(-3, 3))
def test_estimates_are_linear(a, b, factor):
    def same(one, other):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-9, atol=1e-9)
        for group, values in one.leave_one_out.items():
            np.testing.assert_allclose(values, other.leave_one_out[group], rtol=1e-9, atol=1e-9)
        assert one.documents == other.documents

    same(a - a, a * 0)
    same(Estimate.mean([a]), a)
    same(Estimate.mean([a, b]), 0.5 * (a + b))
    same(factor * (a - b), factor * a - b * factor)
    same(np.float64(factor) * a + 1.0, 1.0 * a * factor + np.float64(1))


def test_a_ratio_of_estimates_is_nan_where_it_divides_by_zero():
    ratio = Estimate.of_mean(np.array([1.0, 2.0])) / Estimate.of_mean(np.array([0.0, 2.0]))
    assert ratio.value == 1.5
    assert np.isnan(ratio.leave_one_out["documents"]).tolist() == [False, True]


def test_arrays_are_estimated_entry_by_entry():
    values = np.random.default_rng(1).standard_normal((6, 2, 3))
    whole = Estimate.of_mean(values)
    low, high = map(np.asarray, whole.interval)
    for i, j in np.ndindex(2, 3):
        single = Estimate.of_mean(values[:, i, j])
        assert (low[i, j], high[i, j]) == pytest.approx(single.interval)
        assert whole.map(lambda x, i=i, j=j: x[..., i, j]).interval == pytest.approx(single.interval)


@dataclass(frozen=True)
class Stored(Result, kind="stored estimate"):
    estimate: Estimate


def test_an_estimate_is_stored_with_all_that_intervals_are_made_of(tmp_path):
    estimate = Estimate.of_mean(np.arange(7.0)) - Estimate.of_mean(np.arange(7.0) ** 2, units="draws")
    Stored(estimate).save(tmp_path / "estimate")
    loaded = Stored.load(tmp_path / "estimate").estimate
    assert (loaded.value, loaded.documents, loaded.interval, loaded.p) == (
        estimate.value,
        estimate.documents,
        estimate.interval,
        estimate.p,
    )
    assert {group: list(values) for group, values in loaded.leave_one_out.items()} == {
        group: list(values) for group, values in estimate.leave_one_out.items()
    }


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_draws_count_with_their_full_variance(number):
    """With documents that are all alike, only draws vary: their unbiased variance over how many there are."""
    jackknife = Jackknife.of({"x": [*"abcdef"], "y": [*"abcdef"]}, paired=True)
    by_draw = np.random.default_rng(number).standard_normal(number)
    values = np.repeat(by_draw[:, None] / 6, 6, axis=1)
    total = jackknife.mean_total("x", values, "draws of x")
    assert total.value == pytest.approx(by_draw.mean())
    of_draws = total.leave_one_out.get("draws of x", np.zeros(1))
    variance = (len(of_draws) - 1) * of_draws.var()
    assert variance == pytest.approx(by_draw.var(ddof=1) / number if number > 1 else 0)
    # the same draws whatever is read, so that a language's own cancel
    same = total - jackknife.mean_total("y", values, "draws of x")
    assert same.error == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("paired", [True, False])
def test_a_mean_is_that_of_every_document_left_out(paired):
    """Over languages that share their documents, and over those that have their own."""
    names = {language: [f"{language if not paired else ''}{i // 2}" for i in range(8)] for language in "xyz"}
    jackknife, random = Jackknife.of(names, paired=paired), np.random.default_rng(0)
    each = [jackknife.mean(language, random.standard_normal(8)) for language in "xyz"]
    mean, by_map = Estimate.mean(each), each[0].map(lambda *parts: sum(parts) / 3, *each[1:])
    assert mean.value == pytest.approx(by_map.value)
    assert mean.leave_one_out.keys() == by_map.leave_one_out.keys()
    for group, values in mean.leave_one_out.items():
        np.testing.assert_allclose(values, by_map.leave_one_out[group], rtol=1e-12)
    assert (mean.documents, mean.effective, mean.passages) == (by_map.documents, by_map.effective, by_map.passages)


def test_scipy_stays_out_of_the_import():
    code = "import sys, mwork_lens; assert 'scipy.stats' not in sys.modules, 'scipy.stats'"
    subprocess.run([sys.executable, "-c", code], check=True)
