"""Figures of tasks with neurons off."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..tasks import ALL, GROUPS, LIKELIHOOD, MEASURED, ORIGINAL, TaskResult
from .style import COLOURS, finish


def task_changes(result: TaskResult, *, metric: str | None = None, scope: str = ALL, **layout: Any) -> go.Figure:
    """Change of a score by part of the model and arm: English, non-English and Δ, with intervals.

    A panel without a bar says why.

    Args:
        result: what a task experiment gave.
        metric: the leading one by default.
        scope: ``all`` languages, or one.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: for a metric that is not there.
    """
    metric = result.metrics[0] if metric is None else metric
    if metric not in result.metrics:
        raise ValueError(f"There is no metric {metric!r}; there are {', '.join(result.metrics)}.")
    cells = result.cells.query(f"metric == @metric and scope == @scope and arm != {ORIGINAL!r}")
    factor = 1 if metric == LIKELIHOOD else 100
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=list(GROUPS), horizontal_spacing=0.03)
    for column, group in enumerate(GROUPS, start=1):
        panel = cells.query("group == @group")
        for i, (arm, rows) in enumerate(panel.groupby("arm", sort=False)):
            change = factor * rows["change"]
            bar = go.Bar(
                x=[str(part).replace("_", "-").replace(" ", "<br>") for part in rows["part"]],
                y=change,
                name=str(arm),
                legendgroup=str(arm),
                showlegend=column == 1,
                marker={"color": COLOURS[i % len(COLOURS)]},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": factor * rows["change_high"] - change,
                    "arrayminus": change - factor * rows["change_low"],
                    "thickness": 1,
                },
                customdata=rows[["n", "status"]],
                hovertemplate=f"{arm}, %{{x}}: %{{y:+.2f}}<br>n %{{customdata[0]}}<extra>{group}</extra>",
            )
            figure.add_trace(bar, row=1, col=column)
        reasons = [status for status in panel["status"].unique() if status != MEASURED]
        if reasons:
            where = {"xref": f"x{column if column > 1 else ''} domain", "yref": "y domain"}
            figure.add_annotation(text=", ".join(reasons), x=0.5, y=0.97, showarrow=False, **where)
    unit = "nats a token" if metric == LIKELIHOOD else "percentage points"
    figure.update_yaxes(title_text=f"change of {metric}, {unit}", row=1, col=1)
    figure.update_yaxes(zeroline=True, zerolinecolor="#666666")
    figure.update_layout(barmode="group", height=520, margin={"t": 130}, legend={"title": {"text": "neurons off"}})
    asked = ", ".join(f"{language} {len(given)}" for language, given in result.questions.items())
    detail = f"questions: {asked}; bars: 95 %; Δ: English's change minus the others'"
    return finish(figure, f"{result.task.title} with neurons off: {metric}", detail, layout)
