"""Figures of where the neurons are."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import COLOURS, finish

STRUCTURES = {"attention": "attention (q, k, v)", "feed_forward": "feed-forward (mlp)"}


def neuron_counts(counted: pd.DataFrame, *, title: str = "Neurons by layer", **layout: Any) -> go.Figure:
    """Neurons by layer as a share of their structure's width: attention against feed-forward, a panel a detection.

    Thick lines are means over languages; thin ones are the languages.

    Args:
        counted: what :func:`mwork_lens.neuron_counts` gave.
        title: of the figure.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not len(counted):
        raise ValueError("There are no neurons to draw.")
    names = list(counted["detection"].unique())
    figure = make_subplots(1, len(names), shared_yaxes=True, subplot_titles=names)
    for column, name in enumerate(names, start=1):
        of_one = counted[counted["detection"] == name]
        for colour, (structure, label) in zip(COLOURS, STRUCTURES.items(), strict=False):
            shares = _shares(of_one[of_one["structure"] == structure])  # pyright: ignore[reportArgumentType]
            several = shares.shape[1] > 1
            for language in shares if several else ():
                line = _line(shares[language], f"{language}, {label}", {"color": colour, "width": 1})
                figure.add_trace(line.update(opacity=0.45, showlegend=False), row=1, col=column)
            if len(shares):
                whose = "mean" if several else str(shares.columns[0])
                line = _line(shares.mean(axis=1), f"{label}, {whose}", {"color": colour, "width": 3})
                figure.add_trace(line.update(legendgroup=structure, showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title_text="share of the structure's neurons", rangemode="tozero", tickformat=".1%")
    figure.update_yaxes(dtick=max(1, counted["layer"].nunique() // 10))
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_layout(height=560, margin={"t": 130})
    models, languages = (", ".join(counted[name].unique()) for name in ("model", "language"))
    return finish(figure, title, f"{models}; languages: {languages}; thin: each language", layout)


def _shares(counted: pd.DataFrame) -> pd.DataFrame:
    """Layers by languages, over the sites of one structure."""
    by_layer = counted.pivot_table(index="layer", columns="language", values=["neurons", "width"], aggfunc="sum")
    return by_layer["neurons"] / by_layer["width"]  # pyright: ignore[reportReturnType, reportOperatorIssue]


def _line(shares: Any, name: str, line: dict[str, Any]) -> go.Scatter:
    hover = f"{name}<br>layer %{{y}}: %{{x:.2%}}<extra></extra>"
    return go.Scatter(x=shares, y=shares.index, name=name, mode="lines", line=line, hovertemplate=hover)
