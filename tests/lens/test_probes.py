import inspect
import json
import os
from pathlib import Path

import pytest
import torch

import mwork_lens as mw
from mwork_lens.lens.probes import LatentLanguages, Probe, read_words

from ..demo_model import demo_model
from ..tiny import spelled, tiny

SWADESH = Path(os.environ.get("MWORK_LENS_TEST_DATA", "/nowhere")) / "panlex_swadesh" / "swadesh207.jsonl"
CONCEPTS = [
    {"de": ["Hund"], "en": ["dog"], "zh": ["狗"]},
    {"de": ["Hand"], "en": ["hand"], "zh": ["手"]},
    {"de": ["Feuer"], "en": ["fire"], "zh": ["火"]},
    {"de": ["Wasser"], "en": ["water"], "zh": ["水"]},
]


def test_words_are_lists():
    """The letters of a string are not taken for words."""
    concepts = [{"de": "Hund", "zh": ["狗"]}, {"de": "Hand", "zh": ["手"]}]
    with pytest.raises(ValueError, match="words in 'de'='Hund' must be a list of strings"):
        inspect.unwrap(mw.translation_probes)(concepts, source="de", target="zh", shots=1)
    with pytest.raises(ValueError, match="concepts must be a list of dicts from languages to words, not dict"):
        inspect.unwrap(mw.translation_probes)(concepts[0], source="de", target="zh", shots=1)
    with pytest.raises(ValueError, match="answers in 'fr'='fleur' must be a list of strings"):
        Probe("x", {"fr": "fleur"})
    with pytest.raises(ValueError, match="no answer in 'fr'"):
        Probe("x", {"fr": []})


def test_word_files_hold_lists(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text('{"fr": ["chien"], "en": ["dog\u2028"]}\n{"fr": "chat", "en": ["cat"]}\n', encoding="utf-8")
    assert read_words(path, ["en"]) == [{"en": ["dog\u2028"]}, {"en": ["cat"]}]
    with pytest.raises(ValueError, match=r"words\.jsonl cannot be read, line 2: fr='chat' must be a list of strings"):
        read_words(path, ["en", "fr"])
    with pytest.raises(ValueError, match="languages='fr' must be a list of strings"):
        read_words(path, "fr")


def test_prompts_give_examples_and_leave_the_answer_open():
    probes = mw.translation_probes(CONCEPTS, source="de", target="zh", shots=2)
    # "Hand" is one word in two languages
    assert len(probes) == 3
    lines = probes[0].prompt.split("\n")
    assert len(lines) == 3
    assert lines[-1] == 'Deutsch: "Hund" - 中文: "'
    assert all(line.endswith('"') for line in lines[:-1])
    assert probes[0].answers["en"] == ["dog"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "fr", "target": "zh"}, "'fr'"),
        ({"source": "de", "target": "zh", "shots": 3}, "3 concepts can be told apart"),
    ],
)
def test_too_few_words_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mw.translation_probes(CONCEPTS, **options)


def test_word_lists_are_read(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text(json.dumps({"concept": 1, "en": ["I"], "fr": ["je"]}) + "\n" + json.dumps({"en": ["you"]}) + "\n")
    assert read_words(path, ["en", "fr"]) == [{"en": ["I"], "fr": ["je"]}]
    with pytest.raises(ValueError, match="no concept with words in all of th"):
        read_words(path, ["th"])
    path.write_text("{\n")
    with pytest.raises(ValueError, match="line 1"):
        read_words(path, ["en"])


def test_probes_need_answers_in_a_common_language():
    probes = [Probe("a", {"en": ["x"]}), Probe("b", {"fr": ["y"]})]
    with pytest.raises(ValueError, match="a common language"):
        mw.latent_languages(tiny("llama"), probes)
    with pytest.raises(ValueError, match="no probe"):
        mw.latent_languages(tiny("llama"), [])


def test_unknown_words_are_said_and_begin_no_answer():
    """They are one token in every language: of "qqq" only "f" can be followed."""
    model = spelled("llama")
    probes = [Probe("a b zzz", {"en": ["c"], "fr": ["d"]}), Probe("a b", {"en": ["e"], "fr": ["qqq", "f"]})]
    with pytest.warns(UserWarning, match=r"\(<unk> by language: the prompts 20\.0%, fr 33\.3%\)"):
        found = mw.latent_languages(model, probes, progress=False)
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 3, 4]]))[0, -1].softmax(-1)[[7, 8]]  # of e and f
    torch.testing.assert_close(found.probability[1, -1].double(), expected.double())
    unknown = [Probe("a b", {"en": ["e"], "fr": ["qqq"]})]
    with (
        pytest.warns(UserWarning, match=r"fr 100\.0%"),
        pytest.raises(ValueError, match="no token begins the 'fr' answer"),
    ):
        mw.latent_languages(model, unknown, progress=False)


@pytest.mark.demo
@pytest.mark.skipif(not SWADESH.is_file(), reason="MWORK_LENS_TEST_DATA does not name a folder with panlex_swadesh")
def test_the_last_layer_has_the_models_own_probabilities(tmp_path):
    model = demo_model()
    concepts = read_words(SWADESH, ["en", "fr", "zh"])
    probes = mw.translation_probes(concepts, source="fr", target="zh", limit=2)
    found = mw.latent_languages(model, probes, progress=False)
    with torch.inference_mode():
        probabilities = model(model.to_tokens(probes[0].prompt))[0, -1].softmax(-1)
    ranks = (probabilities > probabilities[model.tokenizer.convert_tokens_to_ids(probes[0].answers["zh"][0])]).sum() + 1
    assert found.rank[0, -1, found.languages.index("zh")] <= ranks
    begins = {i for w in probes[0].answers["zh"] for i in [model.tokenizer.convert_tokens_to_ids(w)]}
    assert found.probability[0, -1, found.languages.index("zh")] >= probabilities[list(begins)].sum() - 1e-5
    entropy = -(probabilities * probabilities.log()).nansum()
    assert found.entropy[0, -1].item() == pytest.approx(entropy.item(), rel=1e-3)
    found.save(tmp_path / "probes")
    assert LatentLanguages.load(tmp_path / "probes").to_frame().equals(found.to_frame())
    assert len(mw.plots.latent_languages(found).data) == 3 * 3 + 1


def test_the_finding_tells_where_the_pivot_is_likeliest():
    probability = torch.tensor([[[0.0, 0.0], [0.3, 0.1], [0.2, 0.6]]] * 6)
    found = LatentLanguages(
        probability, torch.ones(6, 3, 2, dtype=torch.long), torch.zeros(6, 3), ("en", "zh"), tuple("abcdef"), {}
    )
    said = found.finding("en")
    assert "en 0.2, zh 0.6 (mean of 6 prompts), zh being the likeliest" in said
    assert "en is likeliest in layer 1: 0.3 (0.3 to 0.3), where zh has 0.1" in said
    with pytest.raises(ValueError, match="no answers in 'fr'"):
        found.finding("fr")
