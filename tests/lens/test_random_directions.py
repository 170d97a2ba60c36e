import pytest
import torch

from mwork_lens.lens.reading import Draws, Reading
from mwork_lens.model.forward import Encoded

from ..made_up import ratio
from ..tiny import tiny, tokens


def summed(plan, masks, seen, numbers):
    """Random directions after some batches of a plan, one state per prompt."""
    draws = Draws(plan, masks, 1, 40000, 0)
    reading = Reading.empty(plan, draws, 1, 5)
    for batch in map(plan.batch, numbers):
        sums = draws.sums(batch, 0, seen[batch.language][list(batch.rows)])
        reading.update(batch, [(torch.ones(len(batch.rows), 1), sums)])
    return reading


def test_random_directions_have_the_states_covariance():
    """Every label weighs the same, however many states it has and whoever takes which batches."""
    generator = torch.Generator().manual_seed(0)
    mix = {label: torch.randn(5, 5, generator=generator, dtype=torch.float64) for label in ("en", "fr")}
    seen = {
        label: torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mix[label] + 3
        for label, n in (("en", 300), ("fr", 40))
    }
    plan = Encoded.of(tiny("llama"), {label: [tokens(2)] * len(rows) for label, rows in seen.items()}).plan(17)
    masks = {label: [torch.tensor([True, False])] * len(rows) for label, rows in seen.items()}
    random = summed(plan, masks, seen, range(len(plan)))
    odd, even = (summed(plan, masks, seen, range(first, len(plan), 2)) for first in (1, 0))
    odd.merge(even)
    for name, total in random.sums.items():
        assert torch.equal(total.value(), odd.sums[name].value())
    with pytest.raises(ValueError, match="would count twice"):
        random.merge(even)
    mean = torch.stack([rows.mean(0) for rows in seen.values()]).mean(0)
    covariance = torch.stack([(rows - mean).T @ (rows - mean) / len(rows) for rows in seen.values()]).mean(0)
    (drawn,) = random.directions([0])
    norm = torch.stack([rows.norm(dim=1).mean() for rows in seen.values()]).mean()
    torch.testing.assert_close(drawn.norm(dim=1), norm.expand(40000))
    # directions of a Gaussian: undo the scaling in the space where its covariance is the identity
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    white = drawn @ root
    white = white / white.norm(dim=1, keepdim=True)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=0.01)


def test_states_that_are_all_the_same_have_no_random_directions():
    with pytest.raises(ValueError, match="All states read at layer 0 are the same"):
        ratio(prompts={"en": [torch.full((8,), 3)]}, positions=[-1, -2])


def test_draws_are_the_same_in_any_order_and_again():
    plan = Encoded.of(tiny("llama"), {"en": [tokens(4, i) for i in range(3)]}).plan(1)
    masks = {"en": [torch.ones(4, dtype=torch.bool)] * 3}

    def drawn(order):
        draws = Draws(plan, masks, 2, 5, 0)
        return [draws.sums(plan.batch(number), layer, torch.eye(4))["drawn"] for number, layer in order]

    order = [(number, layer) for number in range(3) for layer in range(2)]
    expected = dict(zip(order, drawn(order), strict=True))
    assert len({tuple(one.flatten().tolist()) for one in expected.values()}) == 6
    mixed = [(1, 0), (1, 1), (1, 1), (1, 0), (2, 1), (0, 0), (0, 0)]
    for place, one in zip(mixed, drawn(mixed), strict=True):
        assert torch.equal(one, expected[place])
