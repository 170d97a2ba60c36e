from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mwork_lens as mw
from mwork_lens.effects import pool_grids
from mwork_lens.neurons import MWORK_PARTS

from .conftest import CORPUS, STAGES


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
    pool_grids([pool_grids([grid, grid]), grid]).save(tmp_path / "pooled again")
    assert mw.StageGrid.load(tmp_path / "pooled again").layers == grid.layers
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
    np.testing.assert_allclose(frame.xs(5, level="layers")[["excess", "beyond"]], 0, atol=1e-12)


def test_each_part_of_the_sweep_is_compared_with_as_many_neurons(model, sets, sweep):
    frame = sweep.to_frame().set_index(["language", "side", "layers"]).sort_index()
    assert list(frame.loc[("fr", "first"), "neurons"]) == [1, 3, 5, 8]
    assert frame.loc[("mean", "last", 2), "neurons"] == 3
    as_many = mw.effect_matrix(model, {"fr": mw.cut_to_size(sets["fr"], 3)}, CORPUS, progress=False)
    found = frame.loc[("fr", "first", 2)]
    assert found["beyond"] == pytest.approx(found["difference"] - as_many.difference("fr").value)
    assert "(equal)" not in str(sweep.languages)
    assert "above as many of the sets' neurons of all layers" in steps(sweep, lambda side, n: n**0.5 / 5).finding()
    alone = mw.layer_sweep(model, sets, CORPUS, depths=[1], equal=False, progress=False)
    assert alone.to_frame()["beyond"].isna().all()
    assert "do was not measured" in steps(alone, lambda side, n: n**0.5 / 5).finding()
    names = [[trace.name for trace in mw.plots.layer_sweep(one).data] for one in (sweep, alone)]
    assert ["as many neurons of all layers" in each for each in names] == [True, False]


def steps(sweep, of):
    """The sweep with known differences: ``of(side, layers)`` nats per token."""
    nats = {"baseline": sweep.effects.nats["baseline"]}
    for row in sweep.effects.rows:
        language, side, layers = row.removesuffix(" (equal)").split()
        rise = {read: of(side, int(layers)) * (read == language) for read in CORPUS}
        tokens = sweep.effects.tokens
        nats[row] = {read: nats["baseline"][read] + rise[read] * tokens[read] for read in CORPUS}
    return replace(sweep, effects=replace(sweep.effects, nats=nats))


def test_the_choice_is_the_knee_of_both_curves(sweep):
    first, last = {1: 0.0, 2: 0.8, 3: 0.8, 5: 1.0}, {1: 0.4, 2: 0.45, 3: 0.5, 5: 1.0}
    known = steps(sweep, lambda side, n: (first if side == "first" else last)[n])
    assert known.choice() == (2, 1)
    assert "first 2 layers hold +0.800, +0.400 (+0.400 to +0.400) above" in known.finding()
    figure = mw.plots.layer_sweep(known)
    assert [shape.x0 for shape in figure.layout.shapes] == [2, 1]
    even = steps(sweep, lambda side, n: -n / 5)
    with pytest.raises(ValueError, match="No layers stand out"):
        even.choice()
    assert even.finding().startswith("No layers stand out: on 6 passages of 6 documents per language all together")
    with pytest.raises(ValueError, match=r"depths=\[3\] leave a layer between"):
        replace(sweep, effects=sweep.effects.select(["fr first 3", "fr last 3", "fr first 5"])).choice()


def test_a_saved_sweep_is_the_same(sweep, tmp_path):
    sweep.save(tmp_path / "sweep")
    pd.testing.assert_frame_equal(mw.LayerSweep.load(tmp_path / "sweep").to_frame(), sweep.to_frame())


def test_bad_input_is_refused_before_the_work(model, sets):
    with pytest.raises(ValueError, match=r"depths=\[4\]: give numbers of layers from 1 to 3"):
        mw.layer_sweep(model, sets, CORPUS, depths=[4])
    for measure in (mw.layer_sweep, lambda *given: mw.stage_grid(*given, mw.Stages(model, **STAGES))):
        with pytest.raises(ValueError, match="set 'th' needs neurons"):
            measure(model, {"th": sets["fr"]}, CORPUS)
