"""Figures of what models write and answer under interventions."""

from typing import Any

import plotly.graph_objects as go

from ..generation import Generations, Steering
from ..tasks import ALL, GROUPS, LIKELIHOOD, MEASURED, ORIGINAL, TaskResult
from .style import SEQUENTIAL, colour, error_bars, finish, groups, hovering, panels


def generations(found: Generations, *, language: str | None = None, **layout: Any) -> go.Figure:
    """Share of completions in the prompt's language, repetition and length, by intervention.

    Args:
        found: what :func:`mwork_lens.generations` gave.
        language: show the share of this language instead.
    """
    frame = found.summary(language)
    share = f"share in {language or 'the prompt’s language'}"
    values = {"share": share, "repetition": "repeated trigrams", "tokens": "new tokens"}
    figure, cells = panels([*values.values()], shared_yaxes=True, horizontal_spacing=0.04)
    for i, (read, rows) in enumerate(groups(frame, "prompt_language").items()):
        look = {"orientation": "h", "marker": {"color": colour(i)}, **hovering(f"{read}, %{{y}}: %{{x:.2f}}")}
        for cell, value in zip(cells, values, strict=True):
            bars = error_bars(rows, "share") if value == "share" else None
            figure.add_trace(go.Bar(x=rows[value], y=rows["condition"], name=read, error_x=bars, **look), **cell)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(range=[0, 1.02], **cells[0])
    figure.update_yaxes(autorange="reversed", type="category")
    height = 220 + 28 * len(found.conditions) * max(1, frame["prompt_language"].nunique())
    numbers = ", ".join(map(str, sorted(frame["completions"].unique())))
    detail = f"{found.settings['model']}; {numbers} completions each; bars: 95 % (Wilson)"
    look = {"height": height, "legend": {"title": {"text": "prompts in"}}}
    return finish(figure, "Generation under intervention", detail, layout, **look)


def steering(found: Steering, **layout: Any) -> go.Figure:
    """Share of completions in the target language by nats per token; colours show how much they repeat."""
    frame = found.to_frame()
    hover = [
        f"{name}<br>moves the stream by {row.norm:.2f} of its norm<br>repeated trigrams {row.repetition:.2f}"
        for name, row in frame.iterrows()
    ]
    scale = {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "repeated<br>trigrams"}}}
    symbols = ["circle" if str(name).startswith("direction") else "diamond" for name in frame.index]
    # neighbours' labels stand above and below by turns
    ranks = frame["nats_per_token"].rank(na_option="bottom") - 1
    points = go.Scatter(
        x=frame["nats_per_token"],
        y=frame["share"],
        mode="markers+text",
        text=list(frame.index),
        textposition=[("top center", "bottom center")[int(rank) % 2] for rank in ranks],
        marker={"size": 14, "symbol": symbols, "color": frame["repetition"], **scale},
        error_y=error_bars(frame, "share"),
        **hovering(hover),
    )
    figure = go.Figure(points).update_xaxes(rangemode="tozero").update_yaxes(range=[-0.12, 1.12])
    detail = (
        f"{found.generations.settings['model']}; {int(frame['completions'].iloc[0])} {found.away} prompts; "
        f"diamonds: neurons, circles: a direction of the same norm after block {found.layer}; bars: 95 % (Wilson)"
    )
    look = {"y": f"share of completions in {found.toward}", "height": 560}
    look["x"] = "nats per token under the untouched model (fluent is left)"
    return finish(figure, f"Steering from {found.away} to {found.toward}", detail, layout, **look)


def task_changes(result: TaskResult, *, metric: str | None = None, scope: str = ALL, **layout: Any) -> go.Figure:
    """Change of a score by part of the model and arm: English, non-English and Δ, with intervals.

    A panel without a bar says why.

    Args:
        result: what a task experiment gave.
        metric: the leading one by default.
        scope: ``all`` languages, or one.

    Raises:
        ValueError: for a metric that was not measured.
    """
    metric = result.metrics[0] if metric is None else metric
    if metric not in result.metrics:
        raise ValueError(f"There is no metric {metric!r}; there are {', '.join(result.metrics)}.")
    changes = result.cells.query(f"metric == @metric and scope == @scope and arm != {ORIGINAL!r}")
    columns = ["change", "change_low", "change_high"]
    factor, unit = (1, "nats per token") if metric == LIKELIHOOD else (100, "percentage points")
    changes = changes.assign(**{name: factor * changes[name] for name in columns})
    figure, cells = panels(list(GROUPS), shared_yaxes=True, horizontal_spacing=0.03)
    where = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.97, "showarrow": False}
    for cell, group in zip(cells, GROUPS, strict=True):
        panel = changes.query("group == @group")
        for i, (arm, rows) in enumerate(groups(panel, "arm").items()):
            bar = go.Bar(
                x=[str(part).replace("_", "-").replace(" ", "<br>") for part in rows["part"]],
                y=rows["change"],
                name=arm,
                marker={"color": colour(i)},
                error_y=error_bars(rows, "change", "change_"),
                customdata=rows[["n", "status"]],
                hovertemplate=f"{arm}, %{{x}}: %{{y:+.2f}}<br>n %{{customdata[0]}}<extra>{group}</extra>",
            )
            figure.add_trace(bar, **cell)
        if reasons := [status for status in panel["status"].unique() if status != MEASURED]:
            figure.add_annotation(text=", ".join(reasons), **where, **cell)
    figure.update_yaxes(zeroline=True, zerolinecolor="#666666")
    numbers = ", ".join(f"{language} {len(questions)}" for language, questions in result.questions.items())
    detail = f"questions: {numbers}; bars: 95 %; Δ: English's change minus the others'"
    look = {"barmode": "group", "height": 520, "legend": {"title": {"text": "neurons off"}}}
    title, change = f"{result.task.title} with neurons off: {metric}", f"change of {metric}, {unit}"
    return finish(figure, title, detail, layout, y=change, **look)
