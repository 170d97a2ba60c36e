"""Detections of parts make the detection of the whole, to the last bit."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.store import digest

from ..tiny import tiny, tokens

MODEL = tiny("gemma3", torch.float32)
CORPUS = {
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5))],
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7, 2, 4))],
}


@cache
def detected(shard=None, top=0.2, batch_size=2, layers=None):
    options = {"shard": shard, "top": top, "batch_size": batch_size, "layers": layers}
    return mw.detect(MODEL, CORPUS, verify=False, progress=False, **options)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 6))
def test_parts_of_any_number_in_any_order_make_the_whole(data, of):
    parts = data.draw(st.permutations([detected((number, of)) for number in range(of)]))
    assert digest(mw.Detection.merge(parts)) == digest(detected())
    assert sum(sum(part.documents.values()) for part in parts) == 11


def test_a_part_says_which_it_is_and_is_a_detection_of_its_documents(tmp_path):
    part, whole = detected((1, 4)), detected()
    assert part.settings["part"]["shard"] == [1, 4]
    for language, rows in part.settings["part"]["rows"].items():
        assert list(part.documents_of[language]) == [whole.documents_of[language][row] for row in rows]
        assert part.documents[language] == len(rows)
    assert ": part 1/4; passages" in repr(part)
    assert part.to_frame()["documents"].isna().all()
    part.save(tmp_path / "part")
    parts = [detected((number, 4)) for number in (3, 2, 0)]
    merged = mw.Detection.merge([mw.Detection.load(tmp_path / "part"), *parts])
    assert digest(merged) == digest(whole)


def test_layers_that_were_not_scored_stay_nan():
    merged = mw.Detection.merge([detected((number, 2), layers=(1,)) for number in (0, 1)])
    assert merged.mean_scores["fr"]["mlp"][0].isnan().all()
    assert digest(merged) == digest(detected(layers=(1,)))


def test_parts_that_do_not_make_a_whole_are_named():
    one, two, three = (detected((number, 3)) for number in range(3))
    for parts, message in [
        ([], "nothing to merge"),
        ([one, three], "Of 3 parts 1/3 is missing"),
        ([two], "Of 3 parts 0/3, 2/3 are missing"),
        ([one, two, one, three], "Part 0/3 is there twice: detection 0 and detection 2"),
        ([one, two, detected((2, 4))], r"detection 2 is part 2/4 of the plan .*, and detection 0 is part 0/3 of the"),
        ([one, two, detected((2, 3), batch_size=3)], "detection 2 is part 2/3 of the plan .* is part 0/3"),
        ([one, two, detected((2, 3), top=0.3)], r"detection 0 was made with top=0\.2, detection 2 with 0\.3"),
        ([one, two, detected()], "detection 2 is not a part of --shard, as detection 0 is"),
    ]:
        with pytest.raises(ValueError, match=message):
            mw.Detection.merge(parts)


def test_detections_of_different_documents_make_one_of_all():
    halves = [
        {"fr": CORPUS["fr"][:3], "en": CORPUS["en"]},
        {"fr": CORPUS["fr"][3:], "th": [tokens(4, 900)]},
    ]
    # batches are others than those of the whole, so each document is one, and no bit depends on them
    options = {"verify": False, "progress": False, "batch_size": 1}
    parts = [mw.detect(MODEL, half, **options) for half in halves]
    merged, swapped = mw.Detection.merge(parts), mw.Detection.merge(parts[::-1])
    assert digest(merged) == digest(swapped)
    assert merged.documents == {"en": 6, "fr": 5, "th": 1} == merged.settings["corpus"]["passages"]
    whole = mw.detect(MODEL, {**CORPUS, "th": halves[1]["th"]}, **options)
    for language in merged.languages:
        for name in ("counts", "mean_scores", "screened"):
            for site, values in getattr(whole, name)[language].items():
                assert torch.equal(getattr(merged, name)[language][site], values)
        assert sorted(merged.documents_of[language]) == sorted(whole.documents_of[language])
    with pytest.raises(ValueError, match="of 'fr' is both in detection 0 and in detection 1"):
        mw.Detection.merge([parts[0], mw.detect(MODEL, {"fr": CORPUS["fr"][2:]}, **options)])


def test_other_models_and_old_files_are_refused():
    other = tiny("gemma3", torch.float32, seed=1)
    foreign = mw.detect(other, CORPUS, shard=(1, 2), batch_size=2, verify=False, progress=False)
    with pytest.raises(ValueError, match=r"detection 0 is of tiny-gemma3 .*, detection 1 of tiny-gemma3"):
        mw.Detection.merge([detected((0, 2)), foreign])
    with pytest.raises(ValueError, match="detection 1 was made by a version that did not record sums"):
        mw.Detection.merge([detected((0, 2)), replace(detected((1, 2)), sums={})])


def test_shards_that_do_not_exist_are_refused():
    for shard in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match=rf"shard={shard[0]}/{shard[1]}: parts are"):
            detected(shard)
    with pytest.raises(ValueError, match=r"shard=6/8: the corpus has 6 batches only"):
        detected((6, 8))
