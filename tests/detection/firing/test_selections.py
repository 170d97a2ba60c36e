"""The selections equal values that two public implementations gave, and enumeration."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwork_lens.detection.firing.distributions import distribution_overlap, pairwise_overlaps, smallest_division
from mwork_lens.detection.firing.lape import lape
from mwork_lens.detection.firing.ranking import (
    average_precisions,
    mean_differences,
    select_by_average_precision,
    select_by_mean_difference,
)

TOKENS = torch.tensor([100, 120, 90, 110, 100])
CUTS = {
    0.1: "A 21 / 4 25 32 44; B 17 / 4 44; C 6 27 48 / 3 31; D / ; E / 58",
    0.2: "A 21 / 4 25 32 44; B 17 / 4 44; C 6 13 20 27 34 48 / 3 17 31; D 51 / 13 55; E 5 26 54 / 2 16 58",
    0.05: "A 21 / 4 25 44; B 17 / 4 44; C / 31; D / ; E / ",
}
COSTS = [0.512195, 0.411017, 0.446154, 0.448235, 0.700264, 0.39929]
COSTS += [0.27893, 0.287933, 0.809955, 0.446154, 0.389309, 0.389309]
PARTS = ["A", "BD", "A", "BC", "BE", "D", "DE", "D", "DE", "AD", "AB", "BE"]


def count(layer, i, k):
    base, own = (7 * i * i + 11 * i + 17 * layer + 3 * k) % 41, 55 if (5 * i + layer) % 7 == k else 0
    if i % 10 == 9:
        base //= 8
    if i == 30:
        base = own = 0
    if layer == 1 and i in (4, 44):
        base, own = int(TOKENS[k]) if k < 2 else 0, 0
    return min(int(TOKENS[k]), base + own)


COUNTS = torch.tensor([[[count(layer, i, k) for i in range(60)] for layer in range(2)] for k in range(5)])


@pytest.mark.parametrize("top", CUTS)
def test_lape_chooses_what_others_implementations_chose(top):
    assert COUNTS.sum((1, 2)).tolist() == [3192, 3497, 3141, 2954, 2842]
    masks = lape(COUNTS, TOKENS, top=top)
    for mask, line in zip(masks, CUTS[top].split(";"), strict=True):
        _, *expected = line.replace("/", " / ").split()
        slash = expected.index("/")
        assert mask[0].nonzero().flatten().tolist() == [int(i) for i in expected[:slash]]
        assert mask[1].nonzero().flatten().tolist() == [int(i) for i in expected[slash + 1 :]]


def test_neurons_that_fire_nowhere_often_stay_without_a_language():
    masks = lape(COUNTS, TOKENS, top=1.0)
    assert int(masks.any(0).sum()) == 27
    assert not lape(torch.zeros(2, 1, 5, dtype=torch.long), torch.tensor([3, 3]), top=1.0).any()


def test_the_order_of_the_languages_does_not_matter_to_lape():
    draw = torch.Generator().manual_seed(0)
    counts, tokens = torch.randint(0, 30, (6, 3, 200), generator=draw), torch.full((6,), 30)
    order = torch.randperm(6, generator=draw)
    for top in (0.01, 0.1):
        assert torch.equal(lape(counts[order], tokens, top=top), lape(counts, tokens, top=top)[order])


def test_shares_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"top=0.0 is outside \(0, 1\]"):
        lape(COUNTS, TOKENS, top=0.0)
    with pytest.raises(ValueError, match="Language 1 has 0 tokens"):
        lape(COUNTS[:2], torch.tensor([3, 0]), top=0.1)


def histogram(n, k):
    inside = [((5 * n + 3 * k * (n % 4) + b * b) % 7) ** 2 for b in range(8)]
    return [x + (40 if b == 3 * n % 8 and k in (n % 5, n * n % 5) else 0) for b, x in enumerate(inside)]


HISTOGRAMS = torch.tensor([[[histogram(n, k) for n in range(12)]] for k in range(5)])


def test_distribution_overlap_divides_as_other_implementations_do():
    assert HISTOGRAMS[0, 0, 1].tolist() == [25, 36, 4, 0, 0, 4, 36, 25]
    overlaps = pairwise_overlaps(HISTOGRAMS)
    expected = [0.146284, 0.538462, 0.109158, 0.5, 0.404607, 0.642857, 0.411017, 0.250916, 0.961538, 0.238095]
    assert overlaps[:, 0, 1].tolist() == pytest.approx(expected, abs=5e-7)
    found = distribution_overlap(HISTOGRAMS, percentile=100.0)
    assert found.costs[0].tolist() == pytest.approx(COSTS, abs=5e-7)
    assert ["".join("ABCDE"[k] for k in mask.nonzero().flatten()) for mask in found.masks[:, 0].T] == PARTS


@pytest.mark.parametrize(
    ("percentile", "threshold"), [(1.0, 0.109158), (10.0, 0.217391), (25.0, 0.261538), (50.0, 0.451574)]
)
def test_the_threshold_is_a_quantile_of_all_overlaps(percentile, threshold):
    found = distribution_overlap(HISTOGRAMS, percentile=percentile)
    assert found.threshold == pytest.approx(threshold, abs=5e-7)
    selected = [1, 2, 3, 5, 6, 7, 9, 10, 11] if percentile == 50 else []
    assert found.masks.any(0)[0].nonzero().flatten().tolist() == selected


def enumerated(overlaps, languages):
    """Of all divisions the cheapest, then the smallest part, then the first."""
    pairs = dict(zip(combinations(range(languages), 2), overlaps, strict=True))
    divisions = []
    for size in range(1, languages // 2 + 1):
        for part in combinations(range(languages), size):
            if 2 * size < languages or 0 in part:
                cost = max(value for (i, j), value in pairs.items() if (i in part) != (j in part))
                divisions.append((cost, size, part))
    (cost, _, part), tied = min(divisions), sum(each[0] == min(divisions)[0] for each in divisions) > 1
    return cost, list(part), tied or 2 * len(part) == languages


@settings(max_examples=60)
@given(st.integers(2, 8), st.integers(0, 10**6), st.sampled_from([3, 6, 1000]))
def test_the_spanning_tree_divides_as_enumeration_does(languages, seed, values):
    """With few values there are many ties."""
    draw = torch.Generator().manual_seed(seed)
    overlaps = torch.randint(0, values, (languages * (languages - 1) // 2, 1, 3), generator=draw) / 8
    division = smallest_division(overlaps)
    for n in range(3):
        cost, part, tied = enumerated(overlaps[:, 0, n].tolist(), languages)
        assert division.costs[0, n] == cost
        assert division.parts[:, 0, n].nonzero().flatten().tolist() == part
        assert bool(division.tied[0, n]) == tied


def test_overlaps_of_equal_fractions_are_equal():
    """3/5, once as sums of other terms and once of other totals."""
    one = torch.tensor([[[[1, 1, 1, 2, 0]]], [[[1, 1, 1, 0, 2]]]])
    other = torch.tensor([[[[7, 7, 4, 12, 0]]], [[[7, 7, 4, 0, 12]]]])
    assert pairwise_overlaps(one).item() == pairwise_overlaps(other).item() == torch.tensor(0.6).item()


def test_histograms_without_tokens_are_refused():
    empty = HISTOGRAMS.clone()
    empty[2, 0, 3] = 0
    for histograms, message in ((empty, "no tokens"), (HISTOGRAMS[:1], "1 language")):
        with pytest.raises(ValueError, match=message):
            distribution_overlap(histograms)
    with pytest.raises(ValueError, match=r"percentile=0\.0 is outside"):
        distribution_overlap(HISTOGRAMS, percentile=0.0)


def average_precision(own, scores):
    """Precision at each distinct score as the bar, weighted by what it adds to recall."""
    found, recall = 0.0, 0.0
    for bar in sorted(set(scores.tolist()), reverse=True):
        above = scores >= bar
        found += float(own[above].float().mean()) * (float(own[above].sum() / own.sum()) - recall)
        recall = float(own[above].sum() / own.sum())
    return found


def test_average_precision_is_its_definition_ties_included():
    draw = torch.Generator().manual_seed(1)
    means = torch.cat([torch.randn(40, 2, 6, generator=draw), torch.randint(0, 4, (40, 2, 6), generator=draw)], -1)
    languages = torch.randint(0, 3, (40,), generator=draw)
    found = average_precisions(means, languages)
    for language, layer, n in np.ndindex(3, 2, 12):
        truth = average_precision(languages == language, means[:, layer, n])
        assert found[language, layer, n].item() == pytest.approx(truth, abs=1e-6)
    masks = {ends: select_by_average_precision(means, languages, size=5, ends=ends) for ends in ("highest", "lowest")}
    both = select_by_average_precision(means, languages, size=10)
    assert torch.equal(both, masks["highest"] | masks["lowest"])
    assert both.sum((1, 2)).tolist() == [10, 10, 10]
    assert found[0][masks["lowest"][0]].max() <= found[0][~masks["lowest"][0]].min()


def test_mean_differences_are_in_pooled_deviations():
    values = [
        torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (30, 50, 9)
    ]
    values[1][:, :, 2] += 3
    for each in values:
        each[:, :, 3] = 1.0
    sums, squares = (torch.stack([each.pow(p).sum(0) for each in values]) for p in (1, 2))
    tokens = torch.tensor([len(each) for each in values])
    found, means = mean_differences(sums, squares, tokens), [each.mean(0) for each in values]
    pooled = (sum(each.var(0) * (len(each) - 1) for each in values) / (89 - 3)).sqrt()
    torch.testing.assert_close(found[1, :, :3], ((means[1] - (means[0] + means[2]) / 2) / pooled)[:, :3])
    assert found[:, 0, 3].tolist() == [0, 0, 0]
    assert select_by_mean_difference(sums, squares, tokens, size=0.25)[1].nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("size", [0, 5, 0.0, 1.01, -1, 0.01])
def test_sizes_that_there_are_not_are_refused(size):
    sums, tokens = torch.zeros(2, 1, 4), torch.tensor([1, 1])
    with pytest.raises(ValueError, match=f"size={size}: it must be from 1 to 4 neurons"):
        select_by_mean_difference(sums, sums, tokens, size=size)


def test_a_neuron_that_never_varies_but_differs_comes_first():
    sums = torch.tensor([[[4.0, 3.0, 0.0]], [[0.0, 4.0, 0.0]]])
    squares = torch.tensor([[[4.0, 5.0, 0.0]], [[0.0, 9.0, 0.0]]])
    differences = mean_differences(sums, squares, torch.tensor([4, 4]))
    assert differences[0, 0, 0] == math.inf
    assert select_by_mean_difference(sums, squares, torch.tensor([4, 4]), size=1)[0].nonzero().tolist() == [[0, 0]]
