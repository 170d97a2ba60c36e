import copy

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import mwork_lens as mw
from mwork_lens.lens.vocabulary import IdentifierAccuracy

from ..analyses import WORDS, corpus, identify, reader
from ..tiny import tiny, tokens


def test_every_token_has_a_label():
    labels = mw.label_vocabulary(reader(), ["en", "fr"], identifier=identify, identify_over=["ru", "fr", "en"])
    assert labels.names == ("en", "fr", "ru", "shared", "other")
    assert labels.settings["identifier"] == "identify"
    # special tokens have no language
    assert labels.of(range(3)) == ["other"] * 3
    for language, words in WORDS.items():
        assert set(labels.of(reader().tokenizer.convert_tokens_to_ids(words))) == {language}
    frame = labels.to_frame()
    assert frame["tokens"].sum() == 50
    assert frame["share"].sum() == pytest.approx(1)


def test_labels_of_a_named_identifier_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MWORK_LENS_CACHE", str(tmp_path))
    labels = mw.label_vocabulary(reader(), ["en", "ru"], identifier="script")
    assert set(labels.of(reader().tokenizer.convert_tokens_to_ids(WORDS["ru"]))) == {"ru"}
    monkeypatch.setattr("mwork_lens.lens.vocabulary.token_texts", None)
    again = mw.label_vocabulary(reader(), ["en", "ru"], identifier="script")
    assert torch.equal(again.labels, labels.labels)
    assert again.labels.dtype == labels.labels.dtype


def chinese_and_japanese():
    """A model that knows words in Chinese characters."""
    words = ["<unk>", "経済", "会議", "经济", "學生", "日本", "食べる", "the"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    named = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    model = copy.copy(reader())
    model.tokenizer = named
    return model, words[1:7]


@pytest.mark.parametrize(
    ("languages", "common"), [(["en", "ja"], "shared"), (["zh", "ja"], "shared"), (["en", "zh"], "zh"), (["en"], "zh")]
)
def test_japanese_tokens_are_not_called_chinese(languages, common, monkeypatch, tmp_path):
    """Nor are common ones where Japanese is asked for; each choice has labels of its own in the cache."""
    monkeypatch.setenv("MWORK_LENS_CACHE", str(tmp_path))
    model, words = chinese_and_japanese()
    for others in (languages, ["en"], ["ja"]):
        mw.label_vocabulary(model, others, identify_over=["en", "zh", "ja"])
    labels = mw.label_vocabulary(model, languages, identify_over=["en", "zh", "ja"])
    ids = model.tokenizer.convert_tokens_to_ids(words)
    assert labels.of(ids) == ["ja", "ja", "zh", "zh", common, "ja"]


def test_an_identifier_is_scored_on_tokens_of_one_language(tmp_path):
    """Wrong about every French word that it takes for English, undecided about Russian."""

    calls = dict.fromkeys(WORDS["fr"][:8], "en") | dict.fromkeys(WORDS["ru"])

    def wrong(texts):
        return [calls[text] if text in calls else identify([text])[0] for text in texts]

    accuracy = mw.identifier_accuracy(reader(), corpus(), name=wrong)
    frame = accuracy.to_frame()
    assert frame.loc["en", "right"] == 1
    assert frame.loc["fr", "en"] == 8
    assert frame.loc["fr", "right"] == frame.loc["fr", "fr"] / frame.loc["fr", "tokens"]
    assert frame.loc["ru", "other"] == frame.loc["ru", "tokens"]
    total = frame["tokens"].sum()
    assert accuracy.accuracy == pytest.approx((frame.loc["en", "tokens"] + frame.loc["fr", "fr"]) / total)
    assert accuracy.decided == pytest.approx(1 - frame.loc["ru", "tokens"] / total)
    assert accuracy.precision == pytest.approx(accuracy.accuracy / accuracy.decided)
    accuracy.save(tmp_path / "accuracy")
    assert IdentifierAccuracy.load(tmp_path / "accuracy").to_frame().equals(frame)


@pytest.mark.parametrize(
    ("languages", "options", "message"),
    [
        ("en", {}, r"languages='en': it must be a list"),
        ([], {}, r"languages=\[\]"),
        (["en", "fr"], {"identify_over": ["en"]}, "'fr' is not among"),
        (["en", "fr"], {"identifier": "script"}, "both written in Latn"),
    ],
)
def test_bad_input_is_named(languages, options, message):
    with pytest.raises(ValueError, match=message):
        mw.label_vocabulary(reader(), languages, **options)


def test_models_without_a_tokenizer_are_refused():
    with pytest.raises(ValueError, match="tiny-llama has no tokenizer"):
        mw.label_vocabulary(tiny("llama"), ["en"], identifier="script")
    with pytest.raises(ValueError, match="tiny-llama has no tokenizer"):
        mw.identifier_accuracy(tiny("llama"), {"en": [tokens(9)]}, name="script")
