from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch

import mwork_lens as mw
from mwork_lens.effects.joining import concat_rows
from mwork_lens.lens import LanguageRatio
from mwork_lens.model import Fingerprint, of_one_model

from .conftest import CORPUS, STAGES


def test_the_workflow_says_what_the_grid_says(grid, tmp_path):
    flow = mw.workflow(grid)
    stages = [found.stage for found in flow.evidence]
    assert stages == ["understanding"] * 2 + ["task_solving"] * 2 + ["generation"] * 2
    whole, beyond = flow.of("generation")
    means = grid.means().loc["generation"]
    columns = ["difference", "low", "high", "documents", "p_adjusted"]
    assert (whole.value, whole.low, whole.high, whole.documents, whole.p_adjusted) == pytest.approx(
        tuple(means[columns])
    )
    equal = grid.means(equal=True)["difference"]
    task = equal[["task_solving attention", "task_solving feed_forward"]].mean()
    assert beyond.value == pytest.approx(equal["generation"] - task)
    starred = whole.value > 0 and whole.p_adjusted <= 0.05
    assert whole.verdict == ("supported" if starred else "not supported")
    assert whole.claim != whole.hypothesis == "puts the answer back into the query’s language"
    assert {found.verdict for found in flow.of("task_solving")} == {"not measured"}
    flow.save(tmp_path / "flow")
    pd.testing.assert_frame_equal(mw.Workflow.load(tmp_path / "flow").to_frame(), flow.to_frame())
    text = " ".join(note.text or "" for note in mw.plots.workflow(flow).layout.annotations)
    assert text.count(whole.verdict) >= 1
    assert "layers 3 to 4" in text


def test_results_of_two_models_are_refused(grid):
    def of(result, **record):
        return replace(result, settings={**result.settings, **record})

    def ratio(**record):
        return LanguageRatio({}, torch.ones(1, 0, 1), torch.ones(1), (0,), ("en",), ("en",), {}, record)

    ours, other = grid.effects.settings, asdict(Fingerprint("float32", "0" * 16, "1" * 16))
    for record in ({**ours, "fingerprint": other}, {"model": "another"}):
        with pytest.raises(ValueError, match=r"results of different models.*the language ratio is of"):
            mw.workflow(grid, ratio(**record))
    with pytest.raises(ValueError, match="matrix 2 is of another"):
        concat_rows([grid.effects, of(grid.effects, model="another", fingerprint=None)])
    read = {"the stage grid": ours, "the language ratio": {"model": ours["model"]}}
    assert of_one_model(read)["fingerprint"] == "unknown"
    rounded = {**ours["fingerprint"], "dtype": "float32", "exact": "0" * 16}
    assert of_one_model({"one": ours, "in another dtype": {**ours, "fingerprint": rounded}})["model"] == ours["model"]


def test_a_single_document_supports_no_claim(model, sets):
    one = {language: texts[:1] for language, texts in CORPUS.items()}
    flow = mw.workflow(mw.stage_grid(model, sets, one, mw.Stages(model, **STAGES), progress=False))
    assert {found.verdict for found in flow.evidence} == {"not measurable", "not measured"}
    text = " ".join(note.text or "" for note in mw.plots.workflow(flow).layout.annotations)
    assert "not measurable on 1 document (1 passage)" in " ".join(text.split("<br>"))
    assert not any("nan" in (note.text or "") for note in mw.plots.workflow(flow).layout.annotations)


def test_parts_of_other_sizes_support_no_claim(model, sets):
    grid = mw.stage_grid(model, sets, CORPUS, mw.Stages(model, **STAGES), equal=False, progress=False)
    with pytest.raises(ValueError, match="equal=True"):
        mw.workflow(grid)
