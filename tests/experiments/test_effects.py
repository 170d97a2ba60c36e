"""The run that holds effects, and what it is made of."""

from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest

import mwork_lens as mw
from mwork_lens.detection import cut_to_size, with_controls
from mwork_lens.experiments.effects import run_effects, write_effects
from mwork_lens.settings import EffectsConfig
from mwork_lens.text import as_corpus

from ..made_up import DETECTION, FRENCH
from ..tiny import spelled


def test_cut_sets_keep_some_of_their_neurons():
    cut = cut_to_size(FRENCH, 5, seed=1)
    assert len(cut) == 5
    assert len(cut - FRENCH) == 0
    assert cut == cut_to_size(FRENCH, 5, seed=1)
    assert cut != cut_to_size(FRENCH, 5, seed=2)
    assert cut_to_size(FRENCH, len(FRENCH)) == FRENCH
    with pytest.raises(ValueError, match=f"{len(FRENCH) + 1} neurons cannot be drawn"):
        cut_to_size(FRENCH, len(FRENCH) + 1)


@pytest.mark.filterwarnings("ignore:The control 'shared' lacks")
@pytest.mark.filterwarnings("ignore:.*matched neurons are specific")
def test_controls_are_rows_with_a_draw_a_seed():
    sets = {language: DETECTION.specific(language) for language in DETECTION.languages}
    rows = with_controls(sets, DETECTION, languages=["fr"], seeds=[3, 4])
    kinds = ["random", "matched", "shared", "top en"]
    assert list(rows) == [*sets, *(f"{kind} for fr" for kind in kinds)]
    assert rows["matched for fr"] == [mw.matched_control(sets["fr"], DETECTION, seed=seed) for seed in (3, 4)]
    with pytest.raises(ValueError, match="no neurons of 'th'"):
        with_controls(sets, DETECTION, languages=["th"])


@pytest.fixture(scope="module")
def texts():
    def passage(offset, i):
        return " ".join("abcdefgh"[((offset + i * j) % 9 + offset + i // 9) % 8] for j in range(3, 11))

    return as_corpus({lang: [passage(n, i) for i in range(12)] for n, lang in enumerate(("en", "fr", "ru"))})


@pytest.mark.filterwarnings("ignore:The control")
@pytest.mark.filterwarnings("ignore:.*matched neurons are specific")
def test_a_run_goes_on_where_it_stopped(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("mwork_lens.experiments.folder.write_figures", list)
    model = spelled("gemma3")
    config = EffectsConfig(folds=2, passages=3, quorum=0.6, controls=["fr"], seeds=(0, 1), top=0.3)
    effects, _, folder = run_effects(model, texts, tmp_path, config, progress=False)
    assert set(effects.folds["fr"]) == {0, 1}
    assert "matched for fr" in effects.rows
    assert len(effects.nats["matched for fr"]["en"]) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again, *_ = run_effects(model, texts, tmp_path, config, progress=False)
    assert again.to_frame().equals(effects.to_frame())
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    write_effects(folder, effects)
    table = pd.read_csv(tmp_path / "selectivity.csv")
    assert set(table["unit"]) == {"token", "byte"}
    with pytest.raises(ValueError, match="passages = 3, not 5"):
        run_effects(model, texts, tmp_path, replace(config, passages=5), progress=False)
    with pytest.raises(ValueError, match="there is no 'th'; the corpus has"):
        run_effects(model, texts, tmp_path / "x", replace(config, controls=["th"]), progress=False)


@pytest.mark.filterwarnings("ignore:Of these documents")
def test_stages_of_a_language_without_neurons_are_refused(texts, tmp_path):
    model = spelled("llama", n_layers=3)
    every = mw.detect(model, texts, top=1.0, progress=False)
    config = EffectsConfig(stages=["fr"], understanding=1, generation=1)
    with pytest.raises(ValueError, match="stages: 'fr' has no specific neurons; there are none"):
        run_effects(model, texts, tmp_path, config, detection=every, progress=False)


def test_folds_divide_the_documents(texts):
    parts = texts.folds(3, seed=1)
    held = [set(out.documents["fr"]) for _, out in parts]
    assert set().union(*held) == set(texts.documents["fr"])
    assert all(not a & b for a, b in pairwise(held))
    for train, out in parts:
        assert set(train.documents["fr"]) | set(out.documents["fr"]) == set(texts.documents["fr"])
        assert out.documents["fr"] == out.documents["en"]
    with pytest.raises(ValueError, match="too few for 13 folds"):
        texts.folds(13)
