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
DENSE = 24
"""Rows or columns up to which the cells of a table are large, with their numbers in them."""
SMALL = 11
"""The side of a small cell, in pixels: its label in letters of 8 can be read."""
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


def finish(
    figure: go.Figure, title: str, detail: str, layout: Mapping[str, Any], *, x: str = "", y: str = "", **defaults: Any
) -> go.Figure:
    """Title, a line of model and settings under it, the template, one legend, and the caller's own layout last.

    ``x`` is the title of every x-axis, ``y`` that of the first y-axis. A title of the caller's stands above the same
    line. A name that several panels show is once in the legend.
    """
    if isinstance(layout.get("title"), str):
        layout = {**layout, "title": {"text": layout["title"]}}
    traces: Any = figure.data
    names: set[str] = set()
    for trace in traces:
        if trace.name and trace.showlegend is None:
            trace.update(legendgroup=trace.legendgroup or trace.name, showlegend=trace.name not in names)
            names.add(trace.name)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_layout(yaxis_title_text=y)
    figure.update_layout(template=_template(), title={"text": title, "subtitle": {"text": detail}}, **defaults)
    return figure.update_layout(**layout)


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
    cells = [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]
    return figure.update_layout(margin={"t": 130}), cells


def hovering(hover: Any) -> dict[str, Any]:
    """What is shown over the marks of a trace: a template for all (str), a text for each, or (None) nothing."""
    if isinstance(hover, str):
        return {"hovertemplate": f"{hover}<extra></extra>"}
    return {"hoverinfo": "skip"} if hover is None else {"hovertext": hover, "hoverinfo": "text"}


def line(
    x: Any, y: Any, name: str, ink: str, hover: Any = None, *, width: Any = None, dash: Any = None, **options: Any
) -> go.Scatter:
    """A line of a colour, width and dash; ``hover`` as in :func:`hovering`."""
    stroke = {"color": ink, "width": width, "dash": dash}
    return go.Scatter(**{"x": x, "y": y, "name": name, "mode": "lines", "line": stroke, **hovering(hover), **options})


def banded_line(
    rows: pd.DataFrame, x: str, y: str, name: str, ink: str, *, prefix: str = "", **options: Any
) -> list[go.Scatter]:
    """The interval ``low`` to ``high`` of column ``y`` as a pale area over ``x``, and the column as a :func:`line`."""
    area = [*rows[x], *rows[x][::-1]], [*rows[f"{prefix}high"], *rows[f"{prefix}low"][::-1]]
    pale = {"fill": "toself", "fillcolor": f"rgba{(*hex_to_rgb(ink), 0.18)}", "showlegend": False}
    return [line(*area, name, ink, width=0, legendgroup=name, **pale), line(rows[x], rows[y], name, ink, **options)]


def error_bars(rows: pd.DataFrame, value: str, prefix: str = "") -> dict[str, Any]:
    """The intervals ``low`` to ``high`` about a column of values, as plotly's ``error_x`` or ``error_y``."""
    sides = {"array": rows[f"{prefix}high"] - rows[value], "arrayminus": rows[value] - rows[f"{prefix}low"]}
    return {"type": "data", "symmetric": False, **sides, "thickness": 1, "width": 2}


def heat(
    table: pd.DataFrame, *, text: Any = None, hover: Any = None, bound: float | None = None, **options: Any
) -> go.Heatmap:
    """A table as coloured cells with texts; colours diverge from zero up to ``bound``; ``hover``: :func:`hovering`."""
    written = {} if text is None else {"text": text, "texttemplate": "%{text}"}
    scale = {} if bound is None else {"zmin": -bound, "zmax": bound, "colorscale": DIVERGING}
    cells = {"z": table.to_numpy(dtype=float), "x": list(table.columns), "y": list(table.index)}
    return go.Heatmap(**{**cells, "xgap": 1, "ygap": 1, **written, **hovering(hover), **scale, **options})


def table_axes(figure: go.Figure, size: int = 0, **cell: Any) -> None:
    """Labels on both axes, the first row on top; all of them, in small letters, where cells are small."""
    small = {"dtick": 1, "tickfont": {"size": 8}} if size > DENSE else {}
    figure.update_xaxes(type="category", showgrid=False, **small, **cell)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, **small, **cell)
