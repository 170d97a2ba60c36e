"""Parts of a corpus make the result of the whole, to the last bit, whatever they are parts of."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.model.shards import in_place
from mwork_lens.store import digest

from ..made_up import LABELS
from ..tiny import some_neurons, tiny, tokens

MODEL = tiny("llama", torch.float32, n_layers=3)
CORPUS = {
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5))],
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7, 2, 4))],
}
SETS = {"fr": some_neurons(MODEL, 0.2)}
OPTIONS = {"batch_size": 2, "progress": False}
BY_NAME = {"languages": ["en", "fr"], "token_languages": LABELS, "directions": 4}


def means(model=MODEL, **options):
    return mw.collect_means(model, CORPUS, **options)


def ratio(model=MODEL, **options):
    return mw.language_ratio(model, CORPUS, **{**BY_NAME, **options})


def mass(model=MODEL, **options):
    return ratio(model, by="mass", layers=[1, 3], positions=[-1, 0], **options)


def sweep(model=MODEL, **options):
    return mw.layer_sweep(model, SETS, CORPUS, depths=[1], **options)


def grid(model=MODEL, **options):
    return mw.stage_grid(model, SETS, CORPUS, mw.Stages(model), equal=False, **options)


KINDS = {call.__name__: call for call in (means, ratio, mass, sweep, grid)}
OTHER = {kind: {"seed": 1} if kind in ("ratio", "mass") else {"max_tokens": 500} for kind in KINDS}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def made(kind, shard=None, model=MODEL, **options):
    return KINDS[kind](model, shard=shard, **{**OPTIONS, **options})


def merged(parts):
    more = [MODEL] if isinstance(next(iter(parts)), mw.LanguageRatio) else []
    return type(next(iter(parts))).merge(parts, *more)


@every_kind
@settings(deadline=None, max_examples=5)
@given(data=st.data(), of=st.sampled_from([2, 6]))
def test_parts_of_any_number_in_any_order_make_the_whole(kind, data, of):
    parts = data.draw(st.permutations([made(kind, (number, of)) for number in range(of)]))
    assert digest(merged(parts)) == digest(made(kind))


@every_kind
def test_a_part_is_saved_and_says_which_it_is(kind, tmp_path):
    part = made(kind, (1, 3))
    assert "part 1/3; " in repr(part)
    part.save(tmp_path / "part")
    parts = [made(kind, (2, 3)), type(part).load(tmp_path / "part"), made(kind, (0, 3))]
    assert digest(merged(parts)) == digest(made(kind))
    assert "part 1/3" not in repr(merged(parts))


@every_kind
def test_parts_that_do_not_make_a_whole_are_named(kind):
    one, two = (made(kind, (number, 2)) for number in range(2))
    foreign = made(kind, (1, 2), tiny("llama", torch.float32, n_layers=3, seed=1))
    for parts, message in [
        ([one], "Of 2 parts 1/2 is missing"),
        ([one, two, two], r"Part 1/2 is there twice: \w+ 1 and \w+ 2"),
        ([one, made(kind, (1, 2), batch_size=3)], r"\w+ 1 is part 1/2 of the plan"),
        ([one, made(kind)], r"\w+ 1 is not a part of --shard, as \w+ 0 is"),
        ([made(kind)], r"\w+ 0 is not a part of a corpus"),
        ([one, foreign], r"\w+ 0 (is of tiny-llama .*, means 1 of tiny|was made with fingerprint=.*, \w+ 1 with)"),
        ([one, made(kind, (1, 2), **OTHER[kind])], r"\w+ 0 was made with \w+=.*, \w+ 1 with"),
    ]:
        with pytest.raises(ValueError, match=message):
            type(one).merge(parts)


def test_random_directions_are_decoded_by_the_model_that_was_read():
    parts = [made("ratio", (number, 2)) for number in range(2)]
    assert parts[0].to_frame()["chance"].isna().all()
    with pytest.raises(ValueError, match="ratio 0: its random directions are decoded by tiny-llama: give the model"):
        mw.LanguageRatio.merge(parts)
    with pytest.raises(ValueError, match="ratio 0 was made with other weights"):
        mw.LanguageRatio.merge(parts, tiny("llama", torch.float32, n_layers=3, seed=1))
    without = [made("ratio", (number, 2), directions=0) for number in (1, 0)]
    assert digest(mw.LanguageRatio.merge(without)) == digest(made("ratio", directions=0))
    labels = mw.lens.TokenLanguages(LABELS.labels.flip(0), LABELS.names, LABELS.settings)
    other = ratio(shard=(1, 2), **{**OPTIONS, "token_languages": labels})
    with pytest.raises(ValueError, match="ratio 1 is of other sets or options than ratio 0"):
        mw.LanguageRatio.merge([parts[0], other], MODEL)


def test_what_was_read_in_parts_stands_where_it_was_in_the_corpus():
    parts = [{"part": {"rows": rows}} for rows in ({"fr": [1, 4]}, {"en": [0]}, {"fr": [0, 2, 3]})]
    assert in_place(parts, "fr", [["b", "e"], ["a", "c", "d"]]) == ["a", "b", "c", "d", "e"]
    pieces = [torch.tensor([[1.0, 4.0]]), torch.tensor([[0.0, 2.0, 3.0]])]
    assert in_place(parts, "fr", pieces, -1).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
