import math

import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens.generation.steering import stream_changes
from mwork_lens.statistics import wilson

from ..tiny import installed, some_neurons, spelled, tiny

PROMPTS = {"en": ["a b c", "d e"], "fr": ["f g h a b", "c c d"]}
OPTIONS = {"max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def model():
    model = spelled("gemma3")
    model.unembed.b_U.data[:3] = -1e9
    return model


def by_first_letter(texts):
    """English begins with a to d, French with e to h; empty texts are neither."""
    return [None if not text.strip() else "en" if text.strip()[0] in "abcd" else "fr" for text in texts]


def neurons(model, language, seed):
    some = some_neurons(model, 0.3, seed)
    return mw.NeuronSet(some.space, some.masks, {"language": language})


@pytest.fixture(scope="module")
def found(model):
    sets = {"off": neurons(model, "fr", 1), "doubled": neurons(model, "fr", 1).hooks("scale", factor=2.0)}
    return mw.generations(model, sets, PROMPTS, identify=by_first_letter, **OPTIONS)


def test_completions_are_those_of_the_loop(model, found):
    assert found.conditions == ["baseline", "off", "doubled"]
    texts = [text for by_language in PROMPTS.values() for text in by_language]
    with mw.ablate(model, neurons(model, "fr", 1)):
        expected = mw.generate(model, texts, max_new_tokens=6)
    rows = [row for row in found.rows if row.condition == "off"]
    assert [(row.prompt, row.text, row.tokens) for row in rows] == [
        (text, c.text, c.tokens) for text, c in zip(texts, expected, strict=True)
    ]
    assert [row.identified for row in rows] == by_first_letter([c.text for c in expected])
    assert list(found.side_by_side()["off"]) == [c.text for c in expected]
    assert installed(model) == {}


def test_nats_are_under_the_untouched_model_given_the_prompt(model, found):
    for row in found.rows:
        prompt = model.to_tokens(row.prompt)[0]
        logits = model(torch.cat([prompt, torch.tensor(row.tokens)])[None])[0].log_softmax(-1)
        by_hand = -sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(row.tokens))
        assert row.nats == pytest.approx(by_hand.item(), rel=1e-10)
        assert row.counted == len(row.tokens)


def test_repetition_counts_trigrams_seen_before(found):
    row = found.rows[0]

    def repetition(*tokens):
        return type(row)(**{**vars(row), "tokens": tokens}).repetition

    assert repetition(1, 2, 3, 4) == 0
    assert repetition(5, 5, 5, 5, 5) == pytest.approx(2 / 3)
    assert repetition(1, 2, 3, 1, 2, 3) == pytest.approx(1 / 4)
    assert math.isnan(repetition(1, 2))


def test_summary_is_the_share_in_the_prompts_language(found):
    frame, summary = found.to_frame(), found.summary()
    assert len(summary) == 6
    for _, row in summary.iterrows():
        part = frame[(frame["condition"] == row["condition"]) & (frame["prompt_language"] == row["prompt_language"])]
        assert row["share"] == part["faithful"].mean()
        assert row["low"] <= row["share"] <= row["high"]
        assert row["completions"] == 2
    french = found.summary("fr").set_index(["condition", "prompt_language"])["share"]
    assert (
        french["off", "en"]
        == frame.query("condition == 'off' and prompt_language == 'en'")["identified"].eq("fr").mean()
    )
    assert found.languages().to_numpy().sum() == 12


def test_languages_are_switched_off_one_after_another(model):
    sets = {language: neurons(model, language, seed) for seed, language in enumerate(["fr", "en", "de"])}
    options = {"identify": by_first_letter, "languages": ["en", "fr", "de"], **OPTIONS}
    found = mw.fallback(model, sets, PROMPTS, order=["en", "fr"], **options)
    assert found.conditions == ["baseline", "en", "en + fr"]
    both = mw.generations(model, {"en + fr": sets["fr"] | sets["en"]}, PROMPTS, **options)
    texts = [[(row.prompt, row.text) for row in each.rows if row.condition == "en + fr"] for each in (found, both)]
    assert texts[0] == texts[1]
    answered = found.answered()
    assert list(answered["answered"][:4]) == ["en", "fr", "de", "unknown"]
    assert list(answered["condition"].unique()) == found.conditions
    frame = found.to_frame()
    for _, row in answered.iterrows():
        part = frame[(frame["condition"] == row["condition"]) & (frame["prompt_language"] == row["prompt_language"])]
        assert row["share"] == part["identified"].fillna("unknown").eq(row["answered"]).mean()
        assert (row["low"], row["high"]) == wilson(row["completions"], len(part))
    for message, order in [("'th'", ["th"]), ("once", ["fr", "fr"]), ("once", [])]:
        with pytest.raises(ValueError, match=message):
            mw.fallback(model, sets, PROMPTS, order=order, **options)
    with pytest.raises(ValueError, match="set of 'fr' is empty"):
        mw.fallback(model, {"fr": mw.NeuronSet.empty(sets["fr"].space)}, PROMPTS, **options)


def test_saved_generations_are_the_same_and_shown_escaped(found, tmp_path):
    row = type(found.rows[0])(**{**vars(found.rows[0]), "text": "<script>x</script>", "prompt": "<b>"})
    odd = type(found)((row, *found.rows[1:]), found.settings)
    assert "<script>" not in odd._repr_html_()
    assert "<b>" not in odd._repr_html_()
    odd.save(tmp_path / "g")
    assert mw.Generations.load(tmp_path / "g") == odd


def test_bad_input_is_refused_before_the_work(model):
    with pytest.raises(ValueError, match="'baseline' is the untouched model"):
        mw.generations(model, {"baseline": []}, PROMPTS, identify=by_first_letter)
    with pytest.raises(ValueError, match="do not fit"):
        mw.generations(model, {"x": neurons(tiny("olmo2"), "fr", 1)}, PROMPTS, identify=by_first_letter)
    with pytest.raises(ValueError, match="'klingon'"):
        mw.generations(model, {}, PROMPTS, identify="klingon")


@pytest.fixture(scope="module")
def means(model):
    return mw.collect_means(model, {"en": ["a b c d", "b c a"], "fr": ["e f g h", "h g e f"]}, progress=False)


def test_directions_move_the_stream_as_much_as_the_neurons(model, means):
    sets = {"en": neurons(model, "en", 1), "fr": neurons(model, "fr", 2)}
    before = model("a b c")
    steered = mw.steer(
        model, sets, means, PROMPTS["en"], toward="fr", away="en", factors=[3.0], identify=by_first_letter, **OPTIONS
    )
    assert torch.equal(model("a b c"), before)
    names = ["baseline", "set", "scale ×3", "direction as set", "direction as scale ×3"]
    assert steered.generations.conditions == names
    assert list(steered.to_frame().index) == names
    hooks = mw.mean_difference(means, toward="fr", away="en", layer=1, norm=steered.norms["set"])
    moved = stream_changes(model, {"direction": hooks}, PROMPTS["en"], layer=1)
    assert moved["direction"] == pytest.approx(steered.norms["set"])
    assert moved["baseline"] == pytest.approx(steered.stream_norm)
    with model.hooks(fwd_hooks=hooks):
        expected = mw.generate(model, PROMPTS["en"], max_new_tokens=6)
    rows = [row.tokens for row in steered.generations.rows if row.condition == "direction as set"]
    assert rows == [c.tokens for c in expected]


def test_steering_is_saved_and_drawn(model, means, tmp_path):
    sets = {"en": neurons(model, "en", 1), "fr": neurons(model, "fr", 2)}
    steered = mw.steer(model, sets, means, ["a b"], toward="fr", away="en", identify=by_first_letter, **OPTIONS)
    steered.save(tmp_path / "s")
    assert mw.Steering.load(tmp_path / "s") == steered
    figure = mw.plots.steering(steered)
    np.testing.assert_allclose(figure.data[0].y, steered.to_frame()["share"])
    with pytest.raises(ValueError, match="no neurons of 'fr'"):
        mw.steer(model, {"en": sets["en"]}, means, ["a b"], toward="fr", away="en")
    with pytest.raises(ValueError, match="layers 0 to 1, not 2"):
        mw.mean_difference(means, toward="fr", away="en", layer=2, norm=1.0)


def test_the_figure_holds_the_shares(found):
    figure = mw.plots.generations(found)
    shares = found.summary().query("prompt_language == 'fr'")["share"]
    trace = next(trace for trace in figure.data if trace.name == "fr" and trace.showlegend)
    np.testing.assert_allclose(trace.x, shares)
