"""The layer sweep, the stage grid, the workflow and the run that holds them, on tiny models."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

import mwork_lens as mw
from mwork_lens.detection.controls import cut_to_size, with_controls
from mwork_lens.effects import pool_grids
from mwork_lens.experiments.effects import run_effects
from mwork_lens.experiments.settings import EffectsConfig
from mwork_lens.neurons import NeuronSpace
from mwork_lens.neurons.stages import MWORK_PARTS
from mwork_lens.text.corpora import as_corpus

from ..made_up import DETECTION, FRENCH
from ..tiny import spelled, tiny, tokens

CORPUS = {
    language: [tokens(length, seed + 10 * i) for seed, length in enumerate((9, 14, 6, 11))]
    for i, language in enumerate(("en", "fr", "ru"))
}
STAGES = {"understanding": 1, "generation": 2}


@pytest.fixture(scope="module")
def model():
    """Five layers, so that stages have neurons to lose."""
    return tiny("llama", n_layers=5)


@pytest.fixture(scope="module")
def sets(model):
    space = NeuronSpace.of(model)
    return {
        language: mw.NeuronSet.from_list(
            space, [(layer, "mlp", 3 * i + j) for layer in range(5) for j in range(1 + layer % 2)] + [(2, "q", i)]
        )
        for i, language in enumerate(("fr", "ru"))
    }


@pytest.fixture(scope="module")
def grid(model, sets):
    return mw.stage_grid(model, sets, CORPUS, mw.Stages(model, **STAGES), draws=2, progress=False)


@pytest.fixture(scope="module")
def sweep(model, sets):
    return mw.layer_sweep(model, sets, CORPUS, progress=False)


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


def test_the_grid_switches_off_each_part_alone(model, sets, grid):
    frame = grid.to_frame()
    assert list(frame["part"]) == 2 * list(MWORK_PARTS)
    stages = mw.Stages(model, **STAGES)
    for language, neurons in sets.items():
        parts = stages.split(neurons)
        effects = mw.effect_matrix(model, {language: parts["generation"]}, CORPUS, progress=False)
        found = frame[(frame["language"] == language) & (frame["part"] == "generation")].iloc[0]
        own = effects.to_frame().loc[language]
        assert found["difference"] == pytest.approx(own[language] - own.drop(language).mean())
        assert [len(part) for part in parts.values()] == list(frame.query("language == @language")["neurons"])
    equal = grid.to_frame(equal=True)
    assert (equal["neurons"] == 1).all()
    assert grid.layers == dict(stages)
    means = grid.means(without=["ru"])
    french = frame.query("language == 'fr'").set_index("part")
    np.testing.assert_allclose(means["difference"], french["difference"])
    np.testing.assert_allclose(means[["low", "high"]], french[["low", "high"]])


def test_a_part_without_neurons_has_no_data(model, sets):
    late = {"fr": sets["fr"].restrict(layers=[2, 4], sites=["mlp"])}
    grid = mw.stage_grid(model, late, CORPUS, mw.Stages(model, **STAGES), progress=False)
    frame = grid.to_frame().set_index("part")
    assert list(frame["neurons"]) == [0, 0, 1, 1]
    assert list(frame["difference"].isna()) == [True, True, False, False]
    text = mw.plots.stage_grid(grid).data[0].text[:, 0]
    assert [cell.startswith("no data") for cell in text] == [True, True, False, False]
    flow = mw.workflow(grid)
    assert [found.verdict for found in flow.of("understanding")] == ["not measured"] * 2


def test_grids_are_saved_pooled_and_drawn(model, grid, tmp_path):
    grid.save(tmp_path / "grid")
    loaded = mw.StageGrid.load(tmp_path / "grid")
    pd.testing.assert_frame_equal(loaded.to_frame(equal=True), grid.to_frame(equal=True))
    assert loaded.layers == grid.layers
    both = pool_grids([grid, grid]).to_frame()
    np.testing.assert_allclose(both["difference"], grid.to_frame()["difference"])
    figure = mw.plots.stage_grid(grid)
    table = grid.to_frame().pivot(index="part", columns="language", values="difference").loc[list(MWORK_PARTS)]
    np.testing.assert_allclose(np.array(figure.data[0].z, dtype=float), table)
    assert "(3)" in figure.data[0].text[3, 0]


def test_a_part_without_neurons_in_one_fold_has_no_row_when_pooled(grid):
    other = replace(grid, effects=grid.effects.select([row for row in grid.effects.rows if row != "fr generation"]))
    both = pool_grids([grid, other]).to_frame().set_index(["language", "part"])
    assert both.loc[("fr", "generation"), "neurons"] == 0
    assert both["difference"].isna().sum() == 1


def test_the_sweep_grows_from_either_end(model, sets, sweep):
    assert sweep.languages == ["fr", "ru"]
    assert (sweep.n_layers, sweep.depths) == (5, [1, 2, 3])
    frame = sweep.to_frame().set_index(["language", "side", "layers"]).sort_index()
    late = {"fr": sets["fr"].restrict(layers=[3, 4])}
    rises = mw.effect_matrix(model, late, CORPUS, progress=False).to_frame().loc["fr"]
    found = frame.loc[("fr", "last", 2)]
    assert found["difference"] == pytest.approx(rises["fr"] - rises[["en", "ru"]].mean())
    whole = frame.loc[("fr", "first", 5), "difference"]
    assert found["excess"] == pytest.approx(found["difference"] - 2 / 5 * whole)
    means, french, russian = (frame.loc[name]["difference"] for name in ("mean", "fr", "ru"))
    np.testing.assert_allclose(means, (french + russian) / 2)
    np.testing.assert_allclose(frame.xs(5, level="layers")["excess"], 0, atol=1e-12)


def steps(sweep, of):
    """The sweep with known differences: ``of(side, layers)`` nats a token."""
    nats = {"baseline": sweep.effects.nats["baseline"]}
    for row in sweep.effects.rows:
        language, side, layers = row.split()
        rise = {read: of(side, int(layers)) * (read == language) for read in CORPUS}
        tokens = sweep.effects.tokens
        nats[row] = {read: nats["baseline"][read] + rise[read] * tokens[read] for read in CORPUS}
    return replace(sweep, effects=replace(sweep.effects, nats=nats))


def test_the_choice_is_the_knee_of_both_curves(sweep):
    first, last = {1: 0.0, 2: 0.8, 3: 0.8, 5: 1.0}, {1: 0.4, 2: 0.45, 3: 0.5, 5: 1.0}
    known = steps(sweep, lambda side, n: (first if side == "first" else last)[n])
    assert known.choice() == (2, 1)
    assert "first 2 layers hold +0.800, +0.400 (+0.400 to +0.400)" in known.finding()
    figure = mw.plots.layer_sweep(known)
    assert [shape.x0 for shape in figure.layout.shapes] == [2, 1]
    even = steps(sweep, lambda side, n: -n / 5)
    with pytest.raises(ValueError, match="No layers stand out"):
        even.choice()
    assert even.finding().startswith("No layers stand out")


def test_a_saved_sweep_is_the_same(sweep, tmp_path):
    sweep.save(tmp_path / "sweep")
    pd.testing.assert_frame_equal(mw.LayerSweep.load(tmp_path / "sweep").to_frame(), sweep.to_frame())


def test_the_workflow_says_what_the_grid_says(grid, tmp_path):
    flow = mw.workflow(grid)
    stages = [found.stage for found in flow.evidence]
    assert stages == ["understanding"] * 2 + ["task_solving"] * 2 + ["generation"] * 2
    whole, beyond = flow.of("generation")
    means = grid.means().loc["generation"]
    assert (whole.value, whole.low, whole.high) == pytest.approx(tuple(means))
    equal = grid.means(equal=True)["difference"]
    task = equal[["task_solving attention", "task_solving feed_forward"]].mean()
    assert beyond.value == pytest.approx(equal["generation"] - task)
    assert whole.verdict == ("supported" if whole.low > 0 else "not supported")
    assert {found.verdict for found in flow.of("task_solving")} == {"not measured"}
    flow.save(tmp_path / "flow")
    pd.testing.assert_frame_equal(mw.Workflow.load(tmp_path / "flow").to_frame(), flow.to_frame())
    text = " ".join(note.text or "" for note in mw.plots.workflow(flow).layout.annotations)
    assert text.count(whole.verdict) >= 1
    assert "layers 3 to 4" in text


def test_a_single_document_supports_no_claim(model, sets):
    one = {language: texts[:1] for language, texts in CORPUS.items()}
    flow = mw.workflow(mw.stage_grid(model, sets, one, mw.Stages(model, **STAGES), progress=False))
    assert {found.verdict for found in flow.evidence} == {"not measured"}
    assert not any("nan" in (note.text or "") for note in mw.plots.workflow(flow).layout.annotations)


def test_bad_input_is_refused_before_the_work(model, sets):
    with pytest.raises(ValueError, match=r"depths=\[4\]: give numbers of layers from 1 to 3"):
        mw.layer_sweep(model, sets, CORPUS, depths=[4])
    for measure in (mw.layer_sweep, lambda *given: mw.stage_grid(*given, mw.Stages(model, **STAGES))):
        with pytest.raises(ValueError, match="set 'th' needs neurons"):
            measure(model, {"th": sets["fr"]}, CORPUS)
    grid = mw.stage_grid(model, sets, CORPUS, mw.Stages(model, **STAGES), equal=False, progress=False)
    with pytest.raises(ValueError, match="equal=True"):
        mw.workflow(grid)


@pytest.fixture(scope="module")
def texts():
    words = "abcdefghijklmnop"

    def passage(offset, i):
        return " ".join(words[(offset + i * j) % 9 + offset % 7] for j in range(3, 11))

    return as_corpus({lang: [passage(n, i) for i in range(12)] for n, lang in enumerate(("en", "fr", "ru"))})


@pytest.mark.filterwarnings("ignore:The control")
@pytest.mark.filterwarnings("ignore:.*matched neurons are specific")
def test_a_run_goes_on_where_it_stopped(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("mwork_lens.experiments.folder.write_figure", lambda path, figure: [path])
    model = spelled("gemma3")
    config = EffectsConfig(folds=2, passages=3, quorum=0.6, controls=["fr"], seeds=(0, 1), top=0.3)
    run, folder = run_effects(model, texts, tmp_path, config, progress=False)
    assert set(run.effects.folds["fr"]) == {0, 1}
    assert "matched for fr" in run.effects.rows
    assert len(run.effects.nats["matched for fr"]["en"]) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again, _ = run_effects(model, texts, tmp_path, config, progress=False)
    assert again.effects.to_frame().equals(run.effects.to_frame())
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    run.write(folder)
    table = pd.read_csv(tmp_path / "selectivity.csv")
    assert set(table["unit"]) == {"token", "byte"}
    with pytest.raises(ValueError, match="passages = 3, not 5"):
        run_effects(model, texts, tmp_path, replace(config, passages=5), progress=False)
    with pytest.raises(ValueError, match="'th' must be in the corpus"):
        run_effects(model, texts, tmp_path / "x", replace(config, controls=["th"]), progress=False)


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
    assert torch.is_tensor(CORPUS["fr"][0])
