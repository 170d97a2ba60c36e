"""Effects on documents that detection has read are said, or refused before the model runs."""

import random

import pytest

import mwork_lens as mw
from mwork_lens.effects.joining import concat_passages, concat_rows
from mwork_lens.effects.overlap import seen_finding
from mwork_lens.text.corpora import Corpus

from ..tiny import spelled

LANGUAGES = ("en", "fr")
WARNED = r"Of these documents detection has seen 100 % in this language \(en 8 of 8, fr 8 of 8\)\. .*detect --held-out"


def passage(language, i):
    return " ".join(random.Random(f"{language} {i}").choices("abcdefgh", k=8))


@pytest.fixture(scope="module")
def corpus():
    """Eight documents of two passages."""
    names = tuple(f"d{i // 2}" for i in range(16))
    return Corpus(
        {lang: tuple(passage(lang, i) for i in range(16)) for lang in LANGUAGES}, dict.fromkeys(LANGUAGES, names), True
    )


@pytest.fixture(scope="module")
def model():
    return spelled("llama")


@pytest.fixture(scope="module")
def found(model, corpus):
    """Detections on all documents, on some, and on some in English only."""
    some = corpus.split(0.5, seed=1)[0]
    english = some.select({"en": range(len(some["en"]))})
    return [mw.detect(model, text, progress=False, verify=False) for text in (corpus, some, english)]


def off(detection, language="en"):
    return {language: detection.active(language, quorum=0.5)}


def counts(effects, language):
    return effects.documents_read.loc[language, ["documents", "seen", "seen_in_another_language", "unseen"]].to_list()


def test_the_text_of_the_detection_is_said_or_refused(model, corpus, found, monkeypatch):
    with pytest.warns(UserWarning, match=WARNED) as caught:
        effects = mw.effect_matrix(model, off(found[0]), corpus, progress=False)
    assert len(caught) == 1
    assert counts(effects, "fr") == [8, 8, 0, 0]
    assert "detection has seen 100 % in this language" in effects.finding("en")
    monkeypatch.setattr("mwork_lens.effects.losses.stream", None)  # any forward pass would fail
    with pytest.raises(ValueError, match=WARNED):
        mw.effect_matrix(model, off(found[0]), corpus, overlap="refuse", progress=False)


def test_an_overlap_is_warned_of_or_refused(model, corpus, found, unchecked):
    with pytest.raises(ValueError, match="overlap='ignore': it must be one of warn, refuse"):
        mw.effect_matrix(model, off(found[0]), corpus, overlap="ignore", progress=False)


def test_held_out_text_is_unseen_and_so_are_folds(model, corpus, found):
    rest = corpus.without(found[1].seen)
    assert rest.texts == corpus.split(0.5, seed=1)[1].texts
    effects = mw.effect_matrix(model, off(found[1]), rest, overlap="refuse", progress=False)
    assert counts(effects, "en") == [4, 0, 0, 4]
    assert seen_finding(effects.documents_read) == (
        "Detection has seen none of the documents (8 passages of 4 documents per language)."
    )
    options = {"detection": {"verify": False}, "overlap": "refuse", "progress": False}
    folded = mw.folded_effects(model, corpus, off, folds=2, **options)
    assert counts(folded, "fr") == [8, 0, 0, 8]
    with pytest.raises(ValueError, match="Every document of 'en' in given was read"):
        corpus.without(found[0].seen)


def test_translations_are_counted_apart(model, corpus, found):
    with pytest.warns(UserWarning, match=r"50 % in another language only \(fr 4 of 8\)"):
        effects = mw.effect_matrix(model, off(found[2]), corpus.select({"fr": range(16)}), progress=False)
    assert counts(effects, "fr") == [8, 0, 4, 4]


def test_the_worst_of_several_sets_counts_and_unknown_is_not_unseen(model, corpus, found, tmp_path):
    by_hand = mw.NeuronSet.from_list(found[0].space, [(0, "mlp", 1)])
    rest = corpus.without(found[1].seen)
    effects = mw.effect_matrix(model, {"hand": by_hand}, rest, progress=False)
    assert effects.documents_read.loc["en", ["unknown", "unseen"]].to_list() == [4, 0]
    assert "is unknown for 8 of 8" in seen_finding(effects.documents_read)
    other = mw.effect_matrix(model, off(found[1]), rest, progress=False)
    assert concat_rows([effects, other]).documents_read["unknown"].to_list() == [4, 4]
    with pytest.warns(UserWarning, match="has seen 100 %"):
        seen = mw.effect_matrix(model, {"hand": off(found[0])["en"]}, rest, progress=False)
    assert counts(concat_rows([other, mw.effects.joining.replace(seen, nats={"x": seen.nats["hand"]})]), "en")[1] == 4
    assert counts(concat_passages([effects, seen]), "en")[:2] == [4, 4]


def test_sets_and_their_controls_carry_what_was_read(found, tmp_path):
    _, some, english = found
    union = some.active("en") | english.active("en")
    assert set(union.origin.seen.texts) == {"en", "fr"}
    assert union.origin.operands[0].seen is None
    sets = [some.active("fr").restrict(layers=[0]), ~some.active("fr"), mw.random_control(some.active("fr")),
            mw.cut_to_size(some.active("fr"), 1)]  # fmt: skip
    for one in sets:
        one.save(tmp_path / "set", overwrite=True)
        again = mw.NeuronSet.load(tmp_path / "set").origin
        assert again.seen.texts["fr"].tolist() == some.seen.texts["fr"].tolist()
        assert "seen" not in dict(again)
    assert (some.active("en") - mw.NeuronSet.from_list(some.space, [(0, "q", 1)])).origin.seen is None
    some.save(tmp_path / "detection")
    assert mw.Detection.load(tmp_path / "detection").active("en").origin.seen.places["fr"].numel() == 4
