import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int
from torch import Tensor

from mwork_lens.model import Encoded, ExactSum, Reducer
from mwork_lens.model.reducers import LIMIT

from ..tiny import tiny, tokens

FLOATS = st.floats(-1e6, 1e6, allow_subnormal=False)


def same(a: ExactSum, b: ExactSum) -> bool:
    return torch.equal(a.high, b.high) and torch.equal(a.low, b.low)


def test_a_small_negative_sum_is_as_near_as_a_positive_one():
    small = torch.tensor([-1.1712000849302832e-18], dtype=torch.float64)
    assert ExactSum.of(small).value() == -ExactSum.of(-small).value() == pytest.approx(float(small), abs=2.0**-71)


@settings(deadline=None)
@given(st.data(), st.lists(FLOATS, min_size=1, max_size=600))
def test_no_order_and_no_grouping_changes_a_bit(data, addends):
    expected = ExactSum.of(torch.tensor(addends, dtype=torch.float64))
    shuffled = torch.tensor(data.draw(st.permutations(addends)), dtype=torch.float64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(addends)), max_size=5)))
    parts = [ExactSum.of(part) for part in shuffled.tensor_split(cuts)]
    total = ExactSum.zeros()
    for part in data.draw(st.permutations(parts)):
        total.add(part)
    assert same(total, expected)
    assert 0 <= total.low < 2**54
    # each addend is rounded to 2^-70, the result to float64
    error = abs(float(total.value()) - math.fsum(addends))
    assert error <= len(addends) * 2.0**-71 + 2.0**-52 * abs(math.fsum(addends))


@pytest.mark.parametrize(("least", "most"), [(1e-10, 1e6), (1e-10, 1.1e-10), (9e5, 1e6)])
def test_ten_million_addends_are_within_a_billionth_of_the_correct_sum(least, most):
    """A hundred thousand different ones, a hundred times."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(100_000, generator=generator, dtype=torch.float64)
    addends = least * (most / least) ** exponents
    total, part = ExactSum.zeros(), ExactSum.of(addends)
    for _ in range(100):
        total.add(part)
    assert float(total.value()) == pytest.approx(100 * math.fsum(addends.tolist()), rel=1e-11)


def test_sums_are_over_rows_and_add_to_one_index():
    rows = torch.randn(300, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ExactSum.of(rows).value(), rows.double().sum(0), rtol=1e-14, atol=1e-14)
    total = ExactSum.zeros(4, 5)
    for index in range(4):
        total.add(ExactSum.of(rows[:, index]), index)
    assert same(total, ExactSum.of(rows))


def test_what_is_not_finite_or_too_large_is_refused():
    for value, error in [(math.nan, ValueError), (math.inf, ValueError), (-(2.0**37), OverflowError)]:
        with pytest.raises(error):
            ExactSum.of(torch.tensor([1.0, value, 2.0], dtype=torch.float64))
    for sign in (1, -1):
        total = ExactSum.of(sign * torch.full((1,), 2.0**36, dtype=torch.float64))
        for _ in range(9):
            total.add(copy.deepcopy(total))
        with pytest.raises(OverflowError, match=r"7e\+13"):
            total.add(copy.deepcopy(total))
        assert float(total.value()) == sign * 2.0**45  # as before the addend that did not fit


@dataclass(frozen=True)
class Words(Reducer):
    """How often each token occurs, and a sum."""

    counts: dict[str, Int[Tensor, " token"]]
    sums: ExactSum

    @classmethod
    def empty(cls, plan, language):
        return cls(**Reducer.start(plan, language), counts={"all": torch.zeros(50).int()}, sums=ExactSum.zeros(1))

    def update(self, batch):
        self.claim(batch)
        self.counts["all"].add_(batch.tokens[batch.content].bincount(minlength=50))
        self.sums.add(ExactSum.of(batch.tokens.double().log1p().sum()[None, None]))


PLAN = Encoded.of(tiny("llama"), {"fr": [tokens(5 + i, i) for i in range(7)], "en": [tokens(9)]}).plan(2)


def test_a_batch_counts_once_and_in_its_own_plan_and_language():
    one, two = Words.empty(PLAN, "fr"), Words.empty(PLAN, "fr")
    one.update(PLAN.batch(0))
    two.update(PLAN.batch(1))
    with pytest.raises(ValueError, match=r"Batch 0 of plan .* would count twice"):
        one.update(PLAN.batch(0))
    one.merge(two)
    assert one.batches.tolist() == [True, True, False, False, False]
    with pytest.raises(ValueError, match=r"Batch 1 of plan .* would count twice"):
        one.merge(two)
    with pytest.raises(ValueError, match=r"'en' of plan .* does not add to 'fr'"):
        one.update(PLAN.batch(4))
    with pytest.raises(ValueError, match=r"'fr' of plan .* does not add to 'fr' of plan"):
        one.merge(Words.empty(PLAN.encoded.plan(3), "fr"))
    assert int(one.counts["all"].sum()) == 5 + 6 + 7 + 8


def test_what_does_not_belong_together_is_not_merged():
    class Others(Words):
        pass

    ours, strong = Words.empty(PLAN, "fr"), Words.empty(PLAN, "fr")
    strong.update(PLAN.batch(0))
    with pytest.raises(ValueError, match="Others made with '' does not add to Words"):
        ours.merge(Others.empty(PLAN, "fr"))
    with pytest.raises(ValueError, match=r"made with 'top=0\.9' does not add"):
        ours.merge(replace(strong, made_with="top=0.9"))
    strong.sums.high[:] = LIMIT - 1
    ours.sums.high[:] = 1
    with pytest.raises(OverflowError):
        ours.merge(strong)
    assert not ours.batches.any()  # nor is anything else of it there
    assert not ours.counts["all"].any()
