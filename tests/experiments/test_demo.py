"""The demo on a tiny model: what it writes, that it resumes, and that its numbers are those of its parts."""

import random

import pandas as pd
import pytest

import mwork_lens as mw
from mwork_lens.experiments.report import findings, run_demo
from mwork_lens.settings import ReportConfig
from mwork_lens.text import as_corpus

from ..tiny import spelled

CONFIG = ReportConfig(top=0.3, quorum=0.6, held_out=0.2)
LETTERS = {"en": "abc", "fr": "def", "ru": "gh"}


@pytest.mark.filterwarnings("ignore:.*matched neurons are specific")
@pytest.mark.filterwarnings("ignore:.*NaN")
def test_the_demo_ends_in_a_table_findings_and_a_page(tmp_path):
    model = spelled("llama", n_layers=3)
    draws = [random.Random(i) for i in range(20)]
    corpus = as_corpus({tag: [" ".join(draw.choices(some, k=14)) for draw in draws] for tag, some in LETTERS.items()})
    demo = run_demo(model, corpus, tmp_path / "demo", CONFIG)
    names = {path.name for path in demo.write()}
    assert names == {"report.html", "effects.csv", "effects", "detection", "neurons"}
    rows = [*LETTERS, "matched fr", "random fr"]
    assert list(demo.table().index) == rows == list(pd.read_csv(tmp_path / "demo" / "effects.csv")["off"])
    assert {path.name for path in (tmp_path / "demo" / "neurons").iterdir()} == {row.replace(" ", "-") for row in rows}
    held_out = corpus.split(0.2)[1]
    french = mw.detect(model, corpus.split(0.2)[0], top=0.3, progress=False).specific("fr", quorum=0.6)
    matrix = mw.effect_matrix(model, {"fr": french}, held_out, progress=False).to_frame()
    assert demo.effects.to_frame().loc["fr"].tolist() == pytest.approx(matrix.loc["fr"].tolist())
    first, read, *others = demo.findings()
    assert read.startswith("Detection has seen none of the documents")
    assert first.startswith("Switching off a language's own neurons")
    assert others == [demo.effects.finding(row) for row in ("fr", "matched fr", "random fr")]
    without = mw.effect_matrix(model, {"en": french - french, "fr": french}, held_out, progress=False)
    assert f"own neurons ({len(french)} neurons): whose loss rises the most" in findings(without)[0]
    before = (tmp_path / "demo" / "effects" / "tensors.safetensors").stat().st_mtime_ns
    run_demo(model, corpus, tmp_path / "demo", CONFIG)
    assert (tmp_path / "demo" / "effects" / "tensors.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="nothing to be compared with"):
        run_demo(model, corpus.select({"en": range(20)}), tmp_path / "one", CONFIG)
