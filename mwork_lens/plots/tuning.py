"""Figures of tuning runs, and of the experiment that tunes a language's neurons."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..tuning import HELD_OUT, Enhancement, Rate, Tuned
from .effects import effect_matrix
from .style import colour, error_bars, finish, groups, line, panels

CHANGE = "change of loss, nats per token"
_SIZE = {"height": 480, "margin": {"t": 100}}


def tuning(tuned: Tuned, **layout: Any) -> go.Figure:
    """Loss of each step's texts, and held-out loss where it was measured, over the steps."""
    frame, held_out = tuned.to_frame(), tuned.held_out
    figure = go.Figure()
    hover = "step %{x}: %{y:.3f} nats per token, rate %{customdata:.2g}"
    steps = {"mode": "lines+markers", "customdata": frame["learning_rate"]}
    figure.add_trace(line(frame["step"] - 1, frame["loss"], "the step's texts", colour(0), hover, **steps))
    if held_out:
        hover = "after %{x} steps: %{y:.3f} nats per token"
        points = list(held_out), list(held_out.values())
        figure.add_trace(line(*points, "held-out texts", colour(4), hover, mode="lines+markers"))
    recipe = tuned.settings["recipe"]
    rate = f"learning rate {recipe['learning_rate']:g}, {recipe['batch_size']} texts per step"
    detail = f"{tuned.settings['model']}; {tuned.settings['trained_entries']:,} weights tuned; {rate}"
    look = {"x": "steps taken", "y": "loss, nats per token", "height": 460, "showlegend": True}
    return finish(figure, "Loss while tuning", detail, layout, **look)


def enhancement_matrix(
    found: Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, **layout: Any
) -> go.Figure:
    """Change of loss as a heat map, what was tuned by what is read; blue is better.

    Args:
        found: the experiment's result.
        domain: what was read.
        rate: each arm's own learning rate, or the paper's.
        documents: how many passages were tuned on; the most if None.
    """
    matrix = found.matrix(domain, rate=rate, documents=documents)
    figure = effect_matrix(matrix).update_traces(text=matrix.to_frame().map("{:+.3f}".format).to_numpy())
    number = documents or max(found.design["documents"])
    detail = f"{_detail(found, rate)}, {number} passages<br>read: {domain}; blue is better; frame: tuned language"
    return finish(figure, "Change of loss after tuning", detail, layout, y="tuned", margin={"t": 130})


def enhancement_by_documents(
    found: Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", **layout: Any
) -> go.Figure:
    """The paper's Fig. 4 in loss: change for the tuned language by number of passages, one line per arm.

    Args: as :func:`enhancement_matrix`.
    """
    rows = found.changes.query("domain == @domain and rate == @rate and read == language").sort_values("documents")
    figure = _panels(found, groups(rows, "language"), "documents", "lines+markers")
    title, detail = "What tuning does for the language, by number of passages", f"{_detail(found, rate)}; bars: 95 %"
    return finish(figure, title, detail, layout, x="passages tuned on", y=CHANGE, **_SIZE)


def enhancement_by_language(
    found: Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, **layout: Any
) -> go.Figure:
    """The paper's low-resource table in loss: change for the tuned language, and for English as a control.

    Args: as :func:`enhancement_matrix`.
    """
    number = documents or max(found.design["documents"])
    rows = found.changes.query("domain == @domain and rate == @rate and documents == @number")
    own, english = rows.query("read == language"), rows.query("read == 'en'")
    figure = _panels(found, {"read: the language itself": own, "read: English": english}, "language", "markers")
    title = "What tuning does for each language, and for English"
    detail = f"{_detail(found, rate)}, {number} passages; bars: 95 %"
    return finish(figure, title, detail, layout, x="language tuned", y=CHANGE, scattermode="group", **_SIZE)


def _panels(found: Enhancement, rows: dict[str, pd.DataFrame], x: str, mode: str) -> go.Figure:
    """One panel per frame, each arm's change with its interval over ``x``."""
    figure, cells = panels(list(rows), shared_yaxes=True)
    for cell, panel in zip(cells, rows.values(), strict=True):
        for arm, points in groups(panel, "arm").items():
            ink, hover = colour(list(found.design["arms"]).index(arm)), f"{arm}<br>%{{x}}: %{{y:+.4f}} nats per token"
            look = {"mode": mode, "marker": {"color": ink, "size": 9}, "error_y": error_bars(points, "change")}
            trace = line(points[x].astype(str), points["change"], arm, ink, hover, offsetgroup=arm, **look)
            figure.add_trace(trace, **cell)
    figure.update_xaxes(type="category")
    return figure.add_hline(y=0, line={"color": "#888888", "width": 1})


def _detail(found: Enhancement, rate: str) -> str:
    seeds = len(found.design["seeds"])
    which = "each arm's own learning rate" if rate == "own" else f"learning rate {found.design['paper_rate']:g}"
    return f"{found.settings['model']}; {which}; {seeds} seed{'s' if seeds > 1 else ''}"
