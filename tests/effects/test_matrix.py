import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens.effects.joining import concat_passages, concat_rows
from mwork_lens.effects.losses import PassageLosses, passage_nats
from mwork_lens.model.forward import Encoded, encode, stream
from mwork_lens.text import as_corpus

from ..tiny import tiny, tokens

CORPUS = {
    "en": [tokens(length, seed) for seed, length in enumerate((9, 14, 6, 11, 8, 7))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((12, 7, 13, 5, 9, 8))],
}


def sets(model):
    space = mw.NeuronSpace.of(model)
    return {
        "fr": mw.NeuronSet.from_list(space, [(0, "mlp", 3), (1, "q", 5), (1, "v", 2)]),
        "nothing": mw.NeuronSet.empty(space),
    }


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_nats_are_the_models_own_loss(family, monkeypatch):
    monkeypatch.setattr("mwork_lens.model.unembedding.LOSS_TOKENS_AT_ONCE", 7)
    model = tiny(family)
    encoded = encode(model, CORPUS["en"], list("abcdef"), 512)
    nats, counted = passage_nats(model, encoded)
    for ids, found, number in zip(encoded, nats, counted, strict=True):
        loss = model(ids[None], return_type="loss").item()
        assert number == len(ids) - 1
        assert found.item() == pytest.approx(loss * (len(ids) - 1), rel=1e-10)


def test_rows_are_a_dict_and_their_languages_in_standard_form():
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"sets=NeuronSet.*: it must be a dict from strings to"):
        inspect.unwrap(mw.effect_matrix)(model, sets(model)["fr"], CORPUS, progress=False)
    effects = mw.effect_matrix(
        model, {"iw": sets(model)["fr"]}, {"iw": CORPUS["en"], "fr": CORPUS["fr"]}, progress=False
    )
    assert effects.languages == {"iw": "he"}
    assert list(effects.to_frame().columns) == ["he", "fr"]
    assert list(effects.selectivity().index) == ["iw"]


def test_losses_merge_from_any_split_to_the_same_bits(tmp_path):
    model = tiny("qwen3")
    plan = Encoded.of(model, CORPUS).plan(batch_size=1)
    whole, parts = PassageLosses.of(model, plan), [PassageLosses.empty(plan) for _ in range(3)]
    for batch, states in stream(model, reversed(list(plan))):
        parts[batch.number % 3].update(model, batch, states)
    merged = PassageLosses.empty(plan)
    for number, part in enumerate(parts[::-1]):
        part.save(tmp_path / str(number))
        merged.merge(PassageLosses.load(tmp_path / str(number)))
    for language in CORPUS:
        assert merged.nats[language].equal(whole.nats[language])
        assert merged.tokens[language].tolist() == [len(ids) - 1 for ids in CORPUS[language]]
    with pytest.raises(ValueError, match="twice"):
        merged.merge(parts[0])


def test_effects_are_rises_of_loss():
    model = tiny("llama")
    effects = mw.effect_matrix(model, sets(model), CORPUS, progress=False)
    frame = effects.to_frame()
    assert list(frame.index) == ["fr", "nothing"]
    assert list(frame.columns) == ["en", "fr"]
    assert (frame.loc["nothing"] == 0).all()
    with mw.ablate(model, sets(model)["fr"]):
        off = [model(ids[None], return_type="loss").item() * (len(ids) - 1) for ids in CORPUS["en"]]
    on = [model(ids[None], return_type="loss").item() * (len(ids) - 1) for ids in CORPUS["en"]]
    rise = (sum(off) - sum(on)) / sum(len(ids) - 1 for ids in CORPUS["en"])
    assert frame.loc["fr", "en"] == pytest.approx(rise, rel=1e-8)
    cells = effects.intervals.set_index(["off", "read"])
    assert (cells["low"] <= cells["rise"] + 1e-12).all()
    assert (cells["rise"] <= cells["high"] + 1e-12).all()
    own = effects.selectivity().loc["fr"]
    assert own["difference"] == pytest.approx(frame.loc["fr", "fr"] - frame.loc["fr", "en"])
    assert np.isnan(own["ratio"]) == (not own["others_low"] > 0)
    assert len(effects.passages()) == 3 * 12


def made_up(own=0.6, others=0.1, languages=("en", "fr", "vi", "ru"), documents=8, draws=1, seed=0, fold=0):
    """An effect matrix with known mean rises; German's set off, German is the last language."""
    generator, reads = torch.Generator().manual_seed(seed), [*languages, "de"]
    names = [f"{fold}-{i}" for i in range(documents)]
    tokens = {read: torch.full((documents,), 10) for read in reads}
    base = {read: torch.full((1, documents), 30.0, dtype=torch.float64) for read in reads}

    def off(read):
        noise = torch.randn(draws, documents, generator=generator, dtype=torch.float64)
        return base[read] + 10 * (own if read == "de" else others) + 0.1 * (noise - noise.mean(1, keepdim=True))

    origin = {"neurons": 7, "origin": {"kind": "specific"}}
    corpus = {"parallel": True, "hash": str(fold), "passages": dict.fromkeys(reads, documents)}
    return mw.EffectMatrix(
        nats={"baseline": base, "de": {read: off(read) for read in reads}},
        tokens=tokens,
        utf8_bytes={read: torch.full((documents,), 40 if read == "ru" else 20) for read in reads},
        documents=dict.fromkeys(reads, names),
        folds=dict.fromkeys(reads, [0] * documents),
        languages={"de": "de"},
        settings={"model": "made-up", "corpus": corpus, "sets": {"de": [origin] * draws}},
    )


def test_selectivity_compares_with_languages_of_the_same_and_of_other_scripts():
    effects = made_up()
    assert effects.selectivity().loc["de", "others"] == pytest.approx(0.1)
    raised = dict(effects.nats["de"])
    raised["ru"] = raised["ru"] + 3
    effects = replace(effects, nats={**effects.nats, "de": raised})
    for among, others in (("others", 0.175), ("same_script", 0.1), ("other_script", 0.4)):
        row = effects.selectivity(among).loc["de"]
        assert row["others"] == pytest.approx(others)
        assert row["difference"] == pytest.approx(0.6 - others)
        assert row["low"] < 0.6 - others < row["high"]
        assert row["ratio_low"] < row["ratio"] == pytest.approx(0.6 / others)
        assert row["p_adjusted"] < 1e-6
        assert (row["kind"], row["neurons"]) == ("specific", 7)
    alone = made_up(languages=("ru",)).selectivity("same_script").loc["de"]
    assert np.isnan([alone["difference"], alone["ratio"], alone["p"]]).all()


def test_a_ratio_needs_a_denominator_above_zero():
    row = made_up(others=0.0).selectivity().loc["de"]
    assert np.isnan(row["ratio"])
    assert row["others_low"] < 0 < row["others_high"]


def test_units_divide_the_same_nats():
    effects = made_up()
    tokens, size = effects.to_frame().loc["de"], {"byte": 20, "passage": 1}
    for unit, each in size.items():
        found = effects.per(unit)
        expected = {read: rise * 10 / (40 if (unit, read) == ("byte", "ru") else each) for read, rise in tokens.items()}
        assert found.to_frame().loc["de"].to_dict() == pytest.approx(expected)
        assert found.baseline["de"] == pytest.approx(30 / each)
    model = tiny("llama")
    ids = mw.effect_matrix(model, sets(model), CORPUS, progress=False)
    with pytest.raises(ValueError, match="no bytes"):
        ids.per("byte")
    with pytest.raises(ValueError, match="not parallel"):
        ids.per("passage")


def test_parts_of_a_matrix_are_joined_again():
    model = tiny("llama")
    effects = mw.effect_matrix(model, sets(model), CORPUS, progress=False)
    halves = [effects.select([row]) for row in effects.rows]
    assert concat_rows(halves).intervals.equals(effects.intervals)
    assert list(effects.select(languages=["fr"]).to_frame().columns) == ["fr"]
    with pytest.raises(ValueError, match="th"):
        effects.select(languages=["th"])
    with pytest.raises(ValueError, match="cannot be joined"):
        concat_rows([effects, effects])


def test_draws_are_averaged_and_widen_the_interval():
    model = tiny("llama")
    space = mw.NeuronSpace.of(model)
    drawn = [mw.NeuronSet.from_list(space, [(layer, "mlp", i)]) for layer, i in ((0, 3), (1, 7), (1, 9))]
    rows = {"all": drawn, **{str(i): one for i, one in enumerate(drawn)}}
    effects = mw.effect_matrix(model, rows, CORPUS, progress=False)
    frame = effects.to_frame()
    np.testing.assert_allclose(frame.loc["all"], frame.loc[["0", "1", "2"]].mean())
    assert len(effects.passages()) == 7 * 12
    same = made_up(draws=2)
    apart = {read: x + torch.tensor([[-3.0], [3.0]]) for read, x in same.nats["de"].items()}
    wide = replace(same, nats={**same.nats, "de": apart})
    np.testing.assert_allclose(wide.to_frame(), same.to_frame())
    assert wide.intervals["high"].iloc[0] - wide.intervals["low"].iloc[0] > 0.5


def test_cells_are_marked_by_false_discoveries():
    effects = made_up(others=0.0)
    cells = effects.intervals
    assert list(cells["p_adjusted"] <= 0.05) == [read == "de" for read in effects.tokens]
    figure = mw.plots.effect_matrix(effects)
    assert [text.endswith("*") for text in figure.data[0].text[0]] == [read == "de" for read in effects.tokens]


def test_folds_are_pooled_and_shown_apart():
    first, second = made_up(own=0.5, fold=1), made_up(own=0.9, fold=2, seed=1)
    both = concat_passages([first, second])
    assert both.to_frame().loc["de", "de"] == pytest.approx(0.7)
    apart = both.by_fold()
    assert list(apart["own"]) == pytest.approx([0.5, 0.9])
    assert both.fold(1).to_frame().equals(second.to_frame())
    with pytest.raises(ValueError, match="no fold 2"):
        both.fold(2)
    with pytest.raises(ValueError, match="languages"):
        concat_passages([first, made_up(languages=("en",), fold=2)])


def test_folded_effects_detect_on_the_other_documents():
    model, seen = tiny("llama"), []

    def build(detection):
        seen.append(detection.documents)
        return {"fr": detection.active("fr", quorum=0.5)}

    effects = mw.folded_effects(model, CORPUS, build, detection={"top": 0.3}, progress=False)
    assert seen == [{"en": 3, "fr": 3}] * 2
    assert sorted(effects.documents["fr"]) == [*"012345"]
    assert sorted(effects.folds["en"]) == [0, 0, 0, 1, 1, 1]
    for number, (train, held_out) in enumerate(as_corpus(CORPUS).folds(2)):
        sets = build(mw.detect(model, train, top=0.3, progress=False))
        alone = mw.effect_matrix(model, sets, held_out, progress=False)
        assert alone.to_frame().equals(effects.fold(number).to_frame())


def test_a_finding_tells_the_numbers_of_its_row():
    effects = mw.effect_matrix(tiny("llama"), sets(tiny("llama")), CORPUS, progress=False)
    row = effects.selectivity().loc["fr"]
    said = effects.finding("fr")
    assert f"the loss of fr changes by {row['own']:+.2f}, that of en by {row['others']:+.2f}" in said
    assert f"({row['low']:+.2f} to {row['high']:+.2f}, 6 passages of 6 documents)" in said
    assert "the loss changes by en" in effects.finding("nothing")
    single = {language: texts[:1] for language, texts in CORPUS.items()}
    few = mw.effect_matrix(tiny("llama"), {"fr": sets(tiny("llama"))["fr"]}, single, progress=False)
    assert few.finding("fr").endswith("not measurable on 1 document (1 passage).")
    small = {off: {read: nats / 1000 for read, nats in of.items()} for off, of in effects.nats.items()}
    difference = effects.difference("fr").value / 1000
    assert f"a difference of {difference:+.5f}" in replace(effects, nats=small).finding("fr")
    with pytest.raises(ValueError, match="no row 'sw'"):
        effects.finding("sw")


def test_language_losses_are_the_baseline():
    model = tiny("llama")
    effects = mw.effect_matrix(model, {"nothing": sets(model)["nothing"]}, CORPUS, progress=False)
    found = mw.language_losses(model, CORPUS)
    np.testing.assert_allclose(found["nats_per_token"], effects.baseline)
    assert list(found["passages"]) == [6, 6]


def test_saved_effects_are_the_same(tmp_path):
    model = tiny("llama")
    effects = mw.effect_matrix(model, sets(model), CORPUS, progress=False)
    effects.save(tmp_path / "effects")
    loaded = mw.EffectMatrix.load(tmp_path / "effects")
    assert loaded.to_frame().equals(effects.to_frame())
    assert loaded.selectivity().equals(effects.selectivity())
    assert loaded.settings == effects.settings


def test_figures_hold_the_numbers():
    model = tiny("llama")
    effects = mw.effect_matrix(model, sets(model), CORPUS, progress=False)
    figure = mw.plots.effect_matrix(effects, width=700)
    assert figure.layout.width == 700
    np.testing.assert_allclose(np.array(figure.data[0].z), effects.to_frame().to_numpy())


def test_bad_input_is_refused_before_the_work():
    model = tiny("llama")
    with pytest.raises(ValueError, match="sets is empty"):
        mw.effect_matrix(model, {}, CORPUS, progress=False)
    with pytest.raises(ValueError, match="do not fit"):
        mw.effect_matrix(model, sets(tiny("olmo2")), CORPUS, progress=False)
    with pytest.raises(ValueError, match="Document 1 of 'en' is empty"):
        mw.effect_matrix(model, sets(model), {"en": ["a", " "]}, progress=False)
    with pytest.warns(UserWarning, match="tiny-gemma2"), pytest.raises(ValueError, match="no tokenizer"):
        mw.effect_matrix(model, sets(tiny("gemma2")), {"en": ["text"]}, progress=False)
