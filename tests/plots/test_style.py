import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mwork_lens.plots.style import error_bars, finish, groups, heat, line, panels


def test_a_name_that_several_panels_show_is_once_in_the_legend():
    figure, cells = panels(["one", "two", "three"], 2)
    assert cells == [{"row": 1, "col": 1}, {"row": 1, "col": 2}, {"row": 2, "col": 1}]
    for cell in cells:
        figure.add_trace(line([0, 1], [0, 1], "a", "red"), **cell)
        figure.add_trace(line([0, 1], [1, 0], "thin", "red", width=1, showlegend=False), **cell)
    figure.add_trace(line([0, 1], [0, 1], "b", "blue"), **cells[2])
    finish(figure, "Title", "detail", {})
    assert [trace.name for trace in figure.data if trace.showlegend] == ["a", "b"]
    assert {trace.legendgroup for trace in figure.data if trace.name == "a"} == {"a"}


def test_the_callers_layout_comes_last():
    figure = finish(go.Figure(), "Title", "detail", {"height": 300, "title": "Mine"}, height=500, width=700)
    assert (figure.layout.height, figure.layout.width) == (300, 700)
    assert (figure.layout.title.text, figure.layout.title.subtitle.text) == ("Mine", "detail")


def test_error_bars_reach_from_low_to_high():
    rows = pd.DataFrame({"value": [1.0, 2.0], "low": [0.5, 1.0], "high": [3.0, 2.0]})
    bars = error_bars(rows, "value")
    assert list(bars["array"]) == [2.0, 0.0]
    assert list(bars["arrayminus"]) == [0.5, 1.0]


def test_a_table_as_cells():
    table = pd.DataFrame([[1.0, np.nan]], index=["row"], columns=["a", "b"])
    cells = heat(table, text=[["1", ""]], hover="%{z}", bound=2.0)
    assert (cells.zmin, cells.zmax, cells.texttemplate, cells.hovertemplate) == (
        -2,
        2,
        "%{text}",
        "%{z}<extra></extra>",
    )
    assert list(cells.x) == ["a", "b"]
    assert heat(table, hover=[["one", "nothing"]]).hoverinfo == "text"


def test_groups_keep_their_order():
    assert list(groups(pd.DataFrame({"k": ["b", "a", "b"]}), "k")) == ["b", "a"]
