"""What a tokenizer does not know is said wherever the rest is averaged."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import mwork_lens as mw
from mwork_lens.text import unknown_shares

from ..tiny import some_neurons, spelled, words

TEXTS = {"en": ["a b zzz yyy xxx www"], "fr": ["a b c d e"], "ru": ["a b c zzz", "a b c d"]}
MESSAGE = r"The tokenizer does not know part of the text \(<unk> by language: en 66\.7%, ru 12\.5%\)"


def english(texts):
    return ["en"] * len(texts)


IDENTIFIED = {"identifier": english, "identify_over": ["en", "fr", "ru"], "progress": False}


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_token_need_not_be_declared():
    """A tokenizer of one's own: its model knows the token, the wrapper was not told."""
    model = spelled("llama")
    model.tokenizer.unk_token = None
    with pytest.warns(UserWarning, match=r"\(<unk> by language: en 66\.7%\)"):
        assert mw.language_losses(model, {"en": TEXTS["en"]}).tokens["en"] == 2


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:The languages have unequal")
def test_texts_to_go_on_from_are_said_too():
    with pytest.warns(
        UserWarning, match=r"\(<unk> by language: prompts 38\.5%\): the model reads one and the same token"
    ):
        mw.generate(spelled("llama"), [*TEXTS["en"], *TEXTS["ru"][:1], "a b c"], max_new_tokens=1)


def test_shares_are_those_of_ordinary_and_unknown_tokens():
    unknown, known, beginning = words().unk_token_id, words().convert_tokens_to_ids("a"), words().bos_token_id
    ids = {
        "en": [torch.tensor([beginning, known, unknown]), torch.tensor([known, known])],
        "fr": [torch.tensor([known])],
    }
    assert unknown_shares(words(), ids) == {"en": 0.25}
    assert unknown_shares(None, ids) == {}
    # GPT-2 calls the token that begins and ends a text unknown, but never makes one of a word
    one = SimpleNamespace(unk_token_id=0, bos_token_id=0, eos_token_id=0, all_special_ids=[0])
    assert unknown_shares(one, {"en": [torch.tensor([0, 3])]}) == {}


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:The languages have unequal")
@pytest.mark.parametrize(
    "measure",
    [
        lambda model, neurons: mw.language_losses(model, TEXTS),
        lambda model, neurons: mw.effect_matrix(model, {"en": neurons}, TEXTS, progress=False),
        lambda model, neurons: mw.collect_means(model, TEXTS, progress=False),
        lambda model, neurons: mw.language_ratio(model, TEXTS, languages=["en"], directions=0, **IDENTIFIED),
        lambda model, neurons: mw.detect(model, TEXTS, progress=False),
        lambda model, neurons: mw.generations(model, {}, TEXTS, identify=english, max_new_tokens=1, progress=False),
        lambda model, neurons: mw.inspect(model, neurons, TEXTS, **IDENTIFIED),
    ],
)
def test_unknown_words_are_said_by_language(measure):
    model = spelled("llama")
    neurons = mw.cut_to_size(some_neurons(model), 3)
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        measure(model, neurons)
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:The languages have unequal")
def test_unknown_words_of_folds_are_said_once_of_all():
    model = spelled("llama")
    texts = {language: [each, f"{each} a", f"b {each}", each[::-1]] for language, (each, *_) in TEXTS.items()}
    neurons = some_neurons(model)
    for _ in range(2):  # the next call speaks for itself
        with pytest.warns(UserWarning, match="does not know") as caught:
            mw.folded_effects(model, texts, lambda detection: {"en": neurons}, progress=False)
        said = [str(each.message) for each in caught if "does not know" in str(each.message)]
        assert len(said) == 1
        assert "en 61.5%, ru 22.2%" in said[0]


@pytest.mark.parametrize(
    ("measure", "listed"),
    [
        (lambda model, neurons: mw.importance(model, "a b zzz yyy"), "the document 50.0%"),
        (lambda model, neurons: mw.lens_grid(model, "a zzz", languages=["en"], identifier=english), "the text 50.0%"),
        (lambda model, neurons: mw.tune(model, neurons, ["a b zzz"], progress=False), "texts to train on 33.3%"),
        (
            lambda model, neurons: mw.tune(model, neurons, ["a b"], held_out=["a b zzz"], progress=False),
            "held-out texts 33.3%",
        ),
    ],
)
def test_unknown_words_of_single_texts_and_of_tuning_are_said(measure, listed):
    model = spelled("llama", dtype=torch.float32)
    with pytest.warns(UserWarning, match="The tokenizer does not know part of the text") as caught:
        measure(model, mw.cut_to_size(some_neurons(model), 3))
    assert [f"language: {listed})" in str(each.message) for each in caught] == [True]


def test_known_text_is_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mw.language_losses(spelled("llama"), {"fr": TEXTS["fr"]}).loc["fr", "tokens"] == 5


def test_a_language_of_which_nothing_counts_is_refused():
    corpus = {"en": [torch.tensor([3, 4])], "fr": [torch.tensor([3]), torch.tensor([4, 2])]}
    with (
        pytest.raises(ValueError, match="No token of 'fr' counts: in none of its documents"),
        pytest.warns(UserWarning, match="fr 33"),
    ):
        mw.language_losses(spelled("llama"), corpus)
