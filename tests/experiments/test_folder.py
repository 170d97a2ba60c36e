import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mwork_lens.experiments.folder import ResultsFolder, load_detections
from mwork_lens.report import write_figures
from mwork_lens.report.page import Section

SETTINGS = {"model": "tiny", "arms": ("random", "specific"), "stages": {"understanding": 2}}


def test_a_folder_is_begun_once_and_resumed_with_the_same_settings(tmp_path):
    begun = ResultsFolder.open(tmp_path / "run", "reasoning", SETTINGS)
    again = ResultsFolder.open(tmp_path / "run", "reasoning", SETTINGS)
    assert again.settings == begun.settings
    other = {**SETTINGS, "stages": {"understanding": 3}}
    with pytest.raises(ValueError, match=r"stages\.understanding = 2, not 3"):
        ResultsFolder.open(tmp_path / "run", "reasoning", other)
    with pytest.raises(ValueError, match='experiment = "reasoning", not "knowledge"'):
        ResultsFolder.open(tmp_path / "run", "knowledge", SETTINGS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="mine"):
        ResultsFolder.open(tmp_path / "mine", "reasoning", SETTINGS)


def test_names_that_some_systems_take_for_one_are_refused(tmp_path):
    folder = ResultsFolder.open(tmp_path / "run", "name", {"a": 1})
    table = pd.DataFrame({"a": [1]})
    for name in ("French", "été", "b"):
        folder.write({name: table})
        folder.write({name: table})
    for name in ("french", "FRENCH", "été", "B"):
        with pytest.raises(ValueError, match="are one file on some systems: choose another name"):
            folder.write({name: table})
        with pytest.raises(ValueError, match="are one file on some systems"):
            folder.document(name, [])
    assert len([path for path in folder.path.iterdir() if path.suffix == ".csv"]) == 3
    for names in (["A", "a"], ["été", "e\u0301te\u0301"]):
        with pytest.raises(ValueError, match=rf"{names[0]}\.html and .*{names[1]}\.html are one file on some systems"):
            folder.write(figures=dict.fromkeys(names, go.Figure()))
        with pytest.raises(ValueError, match="are one file on some systems"):
            write_figures({tmp_path / name: go.Figure() for name in names})
    with pytest.raises(ValueError, match=r"figures .*a and .*a\.html are one file"):
        write_figures({tmp_path / name: go.Figure() for name in ("a", "a.html")})
    assert not [path for path in (*folder.path.iterdir(), *tmp_path.iterdir()) if path.suffix == ".html"]
    for one, other in (("Run", "run"), ("x/detection", "X/detection")):
        with pytest.raises(ValueError, match=r"Two detections are called '[Rx].*' and '[rX].*': rename a directory"):
            load_detections([tmp_path / one, tmp_path / other])


def test_numbers_that_are_not_finite_resume_and_settings_are_not_overwritten(tmp_path):
    unfinished = {**SETTINGS, "rate": float("nan"), "rates": [1.0, float("inf")]}
    folder = ResultsFolder.open(tmp_path / "run", "reasoning", unfinished)
    assert ResultsFolder.open(tmp_path / "run", "reasoning", unfinished).settings == folder.settings
    with pytest.raises(ValueError, match=r"'settings' is the name of the settings of .*run: choose another one"):
        folder.document("settings", {})
    assert ResultsFolder.open(tmp_path / "run", "reasoning", unfinished).settings == folder.settings


def test_tables_are_written_with_their_index_and_without_nan(tmp_path):
    folder = ResultsFolder.open(tmp_path / "run", "reasoning", SETTINGS)
    frame = pd.DataFrame({"score": [0.5, np.nan], "note": ["é", None]}, index=pd.Index(["en", "zh"], name="language"))
    folder.write({"scores": frame})
    assert json.loads((folder.path / "scores.json").read_text(encoding="utf-8")) == [
        {"language": "en", "score": 0.5, "note": "é"},
        {"language": "zh", "score": None, "note": None},
    ]
    assert (folder.path / "scores.csv").read_text(encoding="utf-8").splitlines()[0] == "language,score,note"
    folder.page("Scores <b>", [Section("All", (), frame)])
    assert "Scores &lt;b&gt;" in (folder.path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in folder.written] == ["settings.json", "scores.csv", "scores.json", "report.html"]


def test_a_section_shows_what_is_written(tmp_path):
    folder = ResultsFolder.open(tmp_path / "run", "reasoning", SETTINGS)
    table = pd.DataFrame([[1.0, 2.0]], columns=pd.MultiIndex.from_tuples([("all", "N1"), ("n", "")]))
    section = folder.section("Scores", "scores", table)
    assert (section.title, section.content.columns.nlevels) == ("Scores", 2)
    assert list(pd.read_csv(folder.path / "scores.csv", index_col=0)) == ["all / N1", "n"]
