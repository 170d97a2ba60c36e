"""Figures of the experiment that tunes a language's neurons."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..experiments.enhancement.result import HELD_OUT, Rate
from ..experiments.enhancement.result import Enhancement as _Enhancement
from .effects import effect_matrix
from .style import COLOURS, finish

CHANGE = "change of loss, nats a token"


def enhancement_matrix(
    found: _Enhancement,
    domain: str = HELD_OUT,
    *,
    rate: Rate = "own",
    documents: int | None = None,
    **layout: Any,
) -> go.Figure:
    """Change of loss as a heat map, what was tuned by what is read; blue is better.

    Args:
        found: the experiment's result.
        domain: what was read.
        rate: each arm's own learning rate, or the paper's.
        documents: how many passages were tuned on; the most if None.
        layout: passed on to ``figure.update_layout``.
    """
    figure = effect_matrix(found.matrix(domain, rate=rate, documents=documents))
    figure.update_yaxes(title_text="tuned")
    cells = figure.data[0].z  # pyright: ignore[reportAttributeAccessIssue]
    figure.update_traces(text=[[f"{change:+.3f}" for change in row] for row in cells])
    number = documents or max(found.design["documents"])
    detail = f"{_detail(found, rate)}, {number} passages<br>read: {domain}; blue is better; frame: tuned language"
    figure.update_layout(margin={"l": 70, "r": 30, "t": 130, "b": 70})
    return finish(figure, "Change of loss after tuning", detail, layout)


def enhancement_by_documents(
    found: _Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", **layout: Any
) -> go.Figure:
    """The paper's Fig. 4 in loss: change for the tuned language by number of passages, a line an arm.

    Args: as :func:`enhancement_matrix`.
    """
    rows = _own(found, domain, rate)
    languages = list(dict.fromkeys(rows["language"]))
    figure = make_subplots(cols=len(languages), shared_yaxes=True, subplot_titles=languages)
    for column, language in enumerate(languages, 1):
        for arm, line in rows.query(f"language == {language!r}").groupby("arm", sort=False):
            trace = _points(line.sort_values("documents"), "documents", str(arm), found, column == 1)
            figure.add_trace(trace.update(mode="lines+markers"), row=1, col=column)
    figure.update_xaxes(title_text="passages tuned on", type="category")
    figure.update_yaxes(title_text=CHANGE, col=1)
    figure.add_hline(y=0, line={"color": "#888888", "width": 1})
    figure.update_layout(height=480)
    return finish(
        figure,
        "What tuning does for the language, by number of passages",
        f"{_detail(found, rate)}; bars: 95 %",
        layout,
    )


def enhancement_by_language(
    found: _Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, **layout: Any
) -> go.Figure:
    """The paper's low-resource table in loss: change for the tuned language, and for English as a control.

    Args: as :func:`enhancement_matrix`.
    """
    number = documents or max(found.design["documents"])
    rows = found.changes.query("domain == @domain and rate == @rate and documents == @number")
    panels = {"the language itself": rows.query("read == language"), "English": rows.query("read == 'en'")}
    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=[f"read: {name}" for name in panels])
    for column, panel in enumerate(panels.values(), 1):
        for arm, line in panel.groupby("arm", sort=False):
            trace = _points(line, "language", str(arm), found, column == 1)
            figure.add_trace(trace.update(mode="markers"), row=1, col=column)
    figure.update_xaxes(title_text="language tuned", type="category")
    figure.update_yaxes(title_text=CHANGE, col=1)
    figure.add_hline(y=0, line={"color": "#888888", "width": 1})
    figure.update_layout(height=480, scattermode="group")
    detail = f"{_detail(found, rate)}, {number} passages; bars: 95 %"
    return finish(figure, "What tuning does for each language, and for English", detail, layout)


def _own(found: _Enhancement, domain: str, rate: str) -> pd.DataFrame:
    return found.changes.query("domain == @domain and rate == @rate and read == language")


def _points(rows: pd.DataFrame, x: str, arm: str, found: _Enhancement, legend: bool) -> go.Scatter:
    colour = COLOURS[list(found.design["arms"]).index(arm) % len(COLOURS)]
    errors = {"array": rows["high"] - rows["change"], "arrayminus": rows["change"] - rows["low"]}
    return go.Scatter(
        x=rows[x].astype(str),
        y=rows["change"],
        name=arm,
        legendgroup=arm,
        offsetgroup=arm,
        showlegend=legend,
        marker={"color": colour, "size": 9},
        error_y={"type": "data", "symmetric": False, **errors, "thickness": 1.2, "width": 3},
        hovertemplate=f"{arm}<br>%{{x}}: %{{y:+.4f}} nats a token<extra></extra>",
    )


def _detail(found: _Enhancement, rate: str) -> str:
    seeds = len(found.design["seeds"])
    which = "each arm's own learning rate" if rate == "own" else f"learning rate {found.design['paper_rate']:g}"
    return f"{found.settings['model']}; {which}; {seeds} seed{'s' if seeds > 1 else ''}"
