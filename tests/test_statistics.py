import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mwork_lens.statistics import benjamini_hochberg, bootstrap_weights, interval, p_value, wilson


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


def mean_of(values):
    """The mean's resampled values, each value a document of its own."""
    weights = bootstrap_weights({"x": [str(i) for i in range(len(values))]}, paired=False)["x"]
    return weights @ values / weights.sum(1)


def test_expanded_intervals_and_p_values_hold_for_few_documents():
    """Of normal samples of six, 95 % of the intervals hold the mean, and 5 % of the p values are below 0.05."""
    generator = np.random.default_rng(0)
    plain, expanded, small = 0, 0, 0
    for _ in range(300):
        values = generator.standard_normal(6)
        drawn = mean_of(values)
        for documents in (None, 6):
            low, high = interval(drawn, documents=documents)
            plain += documents is None and low <= 0 <= high
            expanded += documents == 6 and low <= 0 <= high
        small += p_value(float(values.mean()), drawn, documents=6) < 0.05
    assert plain / 300 < 0.90
    assert expanded / 300 == pytest.approx(0.95, abs=0.03)
    assert small / 300 == pytest.approx(0.05, abs=0.03)


def test_one_document_has_no_interval_and_nothing_has_p_one():
    assert np.isnan(interval(np.zeros(10), documents=1)).all()
    assert np.isnan(p_value(0.5, np.full(10, 0.5), documents=1))
    assert p_value(0.0, np.zeros(10), documents=4) == 1
    assert np.isnan(p_value(float("nan"), np.zeros(10), documents=4))


def test_scipy_stays_out_of_the_import():
    code = "import sys, mwork_lens; assert 'scipy.stats' not in sys.modules, 'scipy.stats'"
    subprocess.run([sys.executable, "-c", code], check=True)
