"""What all figures share: one plotly template, colours fit for colour-blind readers, layers upward."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

# Okabe and Ito's palette, grey last
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#999999")
DASHES = ("solid", "dash", "dot", "dashdot")
DIVERGING = "RdBu_r"


def template() -> go.layout.Template:
    """The plotly template of every figure."""
    axis = {"gridcolor": "#e5e5e5", "zerolinecolor": "#bbbbbb", "automargin": True, "title": {"standoff": 10}}
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, 'Noto Sans', sans-serif", "size": 14, "color": "#222222"},
            "title": {"font": {"size": 17}, "x": 0, "xref": "paper", "xanchor": "left"},
            "colorway": COLOURS,
            "plot_bgcolor": "white",
            "paper_bgcolor": "white",
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 70, "r": 30, "t": 100, "b": 70},
        }
    )


def finish(figure: go.Figure, title: str, detail: str, layout: dict[str, Any]) -> go.Figure:
    """Title, a line of model and settings under it, the template, and the caller's own layout last.

    A title of the caller's stands above the same line.
    """
    if isinstance(layout.get("title"), str):
        layout = {**layout, "title": {"text": layout["title"]}}
    figure.update_layout(template=template(), title={"text": title, "subtitle": {"text": detail}})
    return figure.update_layout(**layout)


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
