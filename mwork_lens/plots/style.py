"""What all figures share: one plotly template, colours fit for colour-blind readers, panels, lines, heat maps, bars."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

# Okabe and Ito's palette, grey last
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#999999")
DASHES = ("solid", "dash", "dot", "dashdot")
DIVERGING, SEQUENTIAL = "RdBu_r", "Viridis"

_AXIS = {"gridcolor": "#e5e5e5", "zerolinecolor": "#bbbbbb", "automargin": True, "title": {"standoff": 10}}


@cache
def _template() -> go.layout.Template:
    """Of every figure; made with the first one, as plotly takes long to import what checks it."""
    layout = {
        "font": {"family": "system-ui, 'Noto Sans', sans-serif", "size": 14, "color": "#222222"},
        "title": {"font": {"size": 17}, "x": 0, "xref": "paper", "xanchor": "left"},
        "colorway": COLOURS,
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 30, "t": 100, "b": 70},
    }
    return go.layout.Template(layout=layout)


def finish(figure: go.Figure, title: str, detail: str, layout: Mapping[str, Any], **defaults: Any) -> go.Figure:
    """Title, a line of model and settings under it, the template, one legend, and the caller's own layout last.

    A title of the caller's stands above the same line. A name that several panels show is once in the legend.
    """
    if isinstance(layout.get("title"), str):
        layout = {**layout, "title": {"text": layout["title"]}}
    _share_legend(figure)
    figure.update_layout(template=_template(), title={"text": title, "subtitle": {"text": detail}}, **defaults)
    return figure.update_layout(**layout)


def _share_legend(figure: go.Figure) -> None:
    names: set[str] = set()
    for trace in figure.data:
        name = getattr(trace, "name", None)
        if name and trace.showlegend is None:  # pyright: ignore[reportAttributeAccessIssue]
            trace.update(legendgroup=trace.legendgroup or name, showlegend=name not in names)  # pyright: ignore[reportAttributeAccessIssue]
            names.add(name)


def colour(i: int) -> str:
    """The palette's ``i``-th colour, from the start again where it ends."""
    return COLOURS[i % len(COLOURS)]


def groups(frame: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """The rows of each value of a column, in order of appearance."""
    return {str(value): rows for value, rows in frame.groupby(column, sort=False)}


def panels(titles: Sequence[str], columns: int | None = None, **options: Any) -> tuple[go.Figure, list[dict[str, Any]]]:
    """An empty panel for each title, ``columns`` side by side (all by default), and where each is (row and col)."""
    columns = min(columns or len(titles), len(titles))
    figure = make_subplots(math.ceil(len(titles) / columns), columns, subplot_titles=list(titles), **options)
    return figure, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def line(x: Any, y: Any, name: str, stroke: Mapping[str, Any], hover: str | None = None, **options: Any) -> go.Scatter:
    """A line of this ``stroke`` (colour, width, dash); ``hover`` is a template, None shows nothing."""
    shown = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return go.Scatter(**{"x": x, "y": y, "name": name, "mode": "lines", "line": dict(stroke), **shown, **options})


def band(rows: pd.DataFrame, colour: str, group: str) -> go.Scatter:
    """The interval from ``low`` to ``high`` over ``layer``, as a pale area behind a line of ``colour``."""
    return go.Scatter(
        x=[*rows["layer"], *rows["layer"][::-1]],
        y=[*rows["high"], *rows["low"][::-1]],
        fill="toself",
        fillcolor=f"rgba{(*hex_to_rgb(colour), 0.18)}",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )


def error_bars(rows: pd.DataFrame, value: str, prefix: str = "") -> dict[str, Any]:
    """The intervals ``low`` to ``high`` about a column of values, as plotly's ``error_x`` or ``error_y``."""
    sides = {"array": rows[f"{prefix}high"] - rows[value], "arrayminus": rows[value] - rows[f"{prefix}low"]}
    return {"type": "data", "symmetric": False, **sides, "thickness": 1, "width": 2}


def heat(
    table: pd.DataFrame, *, text: Any = None, hover: Any = None, bound: float | None = None, **options: Any
) -> go.Heatmap:
    """A table as coloured cells, with a text in each and another over it (or a template for all).

    Colours diverge from zero up to ``bound``, if there is one.
    """
    written = {} if text is None else {"text": text, "texttemplate": "%{text}"}
    template = {"hovertemplate": f"{hover}<extra></extra>"}
    shown = template if isinstance(hover, str) else {"hovertext": hover, "hoverinfo": "text"}
    scale = {} if bound is None else {"zmin": -bound, "zmax": bound, "colorscale": DIVERGING}
    cells = {"z": table.to_numpy(dtype=float), "x": list(table.columns), "y": list(table.index)}
    return go.Heatmap(**{**cells, "xgap": 1, "ygap": 1, **written, **shown, **scale, **options})


def table_axes(figure: go.Figure) -> None:
    """Labels on both axes, the first row on top."""
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
