"""What the lens adds up, saved half-way and gone on with."""

from dataclasses import fields, is_dataclass

import pytest
import torch

from mwork_lens.lens.directions import Draws, Reading
from mwork_lens.lens.inspection import Activity, Strongest
from mwork_lens.model import Encoded

from ..tiny import tiny, tokens

CORPUS = {"en": [tokens(9), tokens(4)], "fr": [tokens(5 + i, i) for i in range(7)]}
PLAN = Encoded.of(tiny("llama"), CORPUS).plan(2)
MASKS = {language: [torch.ones(len(ids), dtype=torch.bool) for ids in texts] for language, texts in CORPUS.items()}


def same(a, b) -> bool:
    """Whether two values hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(same(value, b[name]) for name, value in a.items())
    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)) if is_dataclass(a) else a == b


def activity(batches, activity=None):
    activity = activity or Activity.empty(PLAN, 3, 2)
    for batch in batches:
        values = torch.randn(3, int(batch.content.sum()), generator=torch.Generator().manual_seed(batch.number))
        values[1] = 1.0  # ties
        where = 100 * batch.number + torch.arange(values.shape[1])
        best = Strongest.among(values, where.expand_as(values), 2)
        sums = {"fired": (values > 0).double().sum(1), "total": values.sum(1), "magnitude": values.abs().sum(1)}
        seen = {**sums, "strongest": best.values, "where": best.where}
        activity.update(batch, list(CORPUS).index(batch.language), seen)
    return activity


def reading(batches, reading=None):
    draws = Draws(PLAN, MASKS, 2, 5, 0)
    reading = reading or Reading.empty(PLAN, draws, 5, 4)
    for batch in batches:
        states = torch.randn(2, int(batch.content.sum()), 4, generator=torch.Generator().manual_seed(batch.number))
        labels = torch.full((len(batch.rows), 5), float(batch.number))
        reading.update(batch, [(i + labels, draws.sums(batch, i, layer)) for i, layer in enumerate(states)])
    return reading


@pytest.mark.parametrize("run", [activity, reading])
def test_a_reducer_saved_half_way_goes_on_to_the_same_bits(run, tmp_path):
    whole = run(PLAN)
    half = run(map(PLAN.batch, [4, 0, 3]))
    half.save(tmp_path / "half")
    loaded = type(half).load(tmp_path / "half")
    assert same(loaded, half)
    assert same(run(map(PLAN.batch, [2, 1]), loaded), whole)
    half.merge(run(map(PLAN.batch, [1, 2])))
    assert same(half, whole)
