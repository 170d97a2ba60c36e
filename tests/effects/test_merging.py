"""Effect matrices of parts make that of the whole, to the last bit."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.store import digest

from ..tiny import some_neurons, tiny, tokens

MODEL = tiny("gemma3", torch.float32)
CORPUS = {
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5))],
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7, 2, 4))],
}


@cache
def measured(shard=None, seed=1, batch_size=2):
    sets = {"fr": some_neurons(MODEL), "control": [some_neurons(MODEL, 0.2, each) for each in (seed, 2)]}
    return mw.effect_matrix(MODEL, sets, CORPUS, shard=shard, batch_size=batch_size, progress=False)


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(1, 5))
def test_parts_of_any_number_in_any_order_make_the_whole(data, of):
    parts = data.draw(st.permutations([measured((number, of)) for number in range(of)]))
    assert digest(mw.EffectMatrix.merge(parts)) == digest(measured())


def test_a_part_is_a_matrix_of_its_passages(tmp_path):
    part, whole = measured((1, 5)), measured()
    for language, rows in part.settings["part"]["rows"].items():
        assert torch.equal(part.nats["fr"][language], whole.nats["fr"][language][:, list(rows)])
    part.save(tmp_path / "part")
    parts = [mw.EffectMatrix.load(tmp_path / "part"), *(measured((number, 5)) for number in (4, 0, 3, 2))]
    assert digest(mw.EffectMatrix.merge(parts)) == digest(whole)


def test_parts_that_do_not_make_a_whole_are_named():
    one, two = (measured((number, 2)) for number in range(2))
    part = {**two.settings["part"], "made_of": digest("the same settings, other neurons")}
    for parts, message in [
        ([one], "Of 2 parts 1/2 is missing"),
        ([one, two, two], "Part 1/2 is there twice: matrix 1 and matrix 2"),
        ([one, measured((1, 2), seed=7)], "matrix 0 was made with sets="),
        ([one, replace(two, settings={**two.settings, "part": part})], "matrix 1 is of other sets or options than mat"),
        ([one, measured((1, 2), batch_size=3)], "matrix 1 is part 1/2 of the plan"),
        ([measured()], "matrix 0 is not a part of a corpus"),
        ([one, replace(two, unit="byte")], "in different units"),
    ]:
        with pytest.raises(ValueError, match=message):
            mw.EffectMatrix.merge(parts)
