import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens.batches import encode
from mwork_lens.evaluation.loss import passage_nats

from .tiny import tiny, tokens

CORPUS = {
    "en": [tokens(length, seed) for seed, length in enumerate((9, 14, 6, 11))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((12, 7, 13, 5))],
}


def sets(model):
    space = mw.NeuronSpace.of(model)
    return {
        "fr": mw.NeuronSet.from_list(space, [(0, "mlp", 3), (1, "q", 5), (1, "v", 2)]),
        "nothing": mw.NeuronSet.empty(space),
    }


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_nats_are_the_models_own_loss(family, monkeypatch):
    monkeypatch.setattr("mwork_lens.evaluation.loss.TOKENS_AT_ONCE", 7)
    model = tiny(family)
    encoded = encode(model, CORPUS["en"], list("abcd"), 512)
    nats, counted = passage_nats(model, encoded, batch_size=3)
    for ids, found, number in zip(encoded, nats, counted, strict=True):
        loss = model(ids[None], return_type="loss").item()
        assert number == len(ids) - 1
        assert found.item() == pytest.approx(loss * (len(ids) - 1), rel=1e-10)


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
    assert len(effects.passages()) == 3 * 8


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


def test_loss_is_not_finite_is_said():
    model = tiny("gpt2", seed=5)
    broken = model.blocks[1].mlp.W_out
    kept = broken.data.clone()
    broken.data[0, 0] = torch.nan
    try:
        with pytest.raises(ValueError, match="not finite"):
            mw.detect(model, CORPUS, progress=False)
    finally:
        broken.data = kept
