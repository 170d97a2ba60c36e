"""Figures of changed behaviour: what models write and answer under interventions, and what tuning changes."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..generation import Generations, Steering
from ..tasks import ALL, GROUPS, LIKELIHOOD, MEASURED, ORIGINAL, TaskResult
from ..text.choices import listed, require_choice
from ..tuning import HELD_OUT, REFERENCE, Enhancement, Rate, Tuned
from .effects import effect_matrix
from .style import SEQUENTIAL, colour, error_bars, finish, groups, hovering, line, panels


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
        ValueError: for a metric that was not measured, or a scope that is not there.
    """
    metric = result.metrics[0] if metric is None else metric
    if metric not in result.metrics:
        raise ValueError(f"There is no metric {metric!r}; there are {listed(result.metrics, metric)}.")
    require_choice("scope", scope, result.scopes)
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
                customdata=rows[["n", "documents"]],
                hovertemplate=f"{arm}, %{{x}}: %{{y:+.2f}}<br>n %{{customdata[0]}} of %{{customdata[1]}} documents"
                f"<extra>{group}</extra>",
            )
            figure.add_trace(bar, **cell)
        if reasons := [status for status in panel["status"].unique() if status != MEASURED]:
            figure.add_annotation(text=", ".join(reasons), **where, **cell)
    figure.update_yaxes(zeroline=True, zerolinecolor="#666666")
    documents = result.documents
    numbers = ", ".join(f"{tag} {len(asked)} ({documents.get(tag, 0)})" for tag, asked in result.questions.items())
    detail = f"questions (of documents): {numbers}; bars: 95 %; Δ: English's change minus the others'"
    look = {"barmode": "group", "height": 520, "legend": {"title": {"text": "neurons off"}}}
    title, change = f"{result.task.title} with neurons off: {metric}", f"change of {metric}, {unit}"
    return finish(figure, title, detail, layout, y=change, **look)


CHANGE = "change of loss, nats per token"
_SIZE = {"height": 480, "margin": {"t": 100}}


def tuning(tuned: Tuned, **layout: Any) -> go.Figure:
    """Held-out loss over the steps, of every language that was measured; pale dots are the losses of steps' texts.

    Each step reads other texts, so that its dots are no curve, and say little of what tuning does.
    """
    frame, names = tuned.to_frame().query("step > 0"), tuned.losses.index
    hover = "step %{x}, its own texts: %{y:.3f} nats per token, rate %{customdata:.2g}"
    look = {"mode": "markers", "customdata": frame["learning_rate"], "opacity": 0.35}
    figure = go.Figure(line(frame["step"] - 1, frame["loss"], "each step's own texts", "#777777", hover, **look))
    for i, (name, losses) in enumerate(zip(names, filter(None, [tuned.held_out, *tuned.others.values()]), strict=True)):
        hover = f"{name}, held out, after %{{x}} steps: %{{y:.3f}} nats per token"
        look = {"mode": "lines+markers"}
        figure.add_trace(line(list(losses), list(losses.values()), f"{name}, held out", colour(i), hover, **look))
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
    read = f"read: {domain}, {matrix.text_read}"
    detail = f"{_detail(found, rate)}, {number} passages<br>{read}; blue is better; frame: tuned language"
    return finish(figure, "Change of loss after tuning", detail, layout, y="tuned", margin={"t": 130})


def enhancement_by_documents(
    found: Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", **layout: Any
) -> go.Figure:
    """The paper's Fig. 4 in loss: change for the tuned language by number of passages, one line per arm.

    Args: as :func:`enhancement_matrix`.
    """
    read = found.matrix(domain, rate=rate).text_read
    rows = found.changes.query("domain == @domain and rate == @rate and read == language").sort_values("documents")
    figure = _panels(found, groups(rows, "language"), "documents", "lines+markers")
    title, detail = (
        "What tuning does for the language, by number of passages",
        f"{_detail(found, rate)}; read: {read}; bars: 95 %",
    )
    return finish(figure, title, detail, layout, x="passages tuned on", y=CHANGE, **_SIZE)


def enhancement_by_language(
    found: Enhancement, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, **layout: Any
) -> go.Figure:
    """The paper's low-resource table in loss: change for the tuned language, and for English as a control.

    Args: as :func:`enhancement_matrix`.
    """
    number = max(found.design["documents"]) if documents is None else documents
    read = found.matrix(domain, rate=rate, documents=number).text_read
    rows = found.changes.query("domain == @domain and rate == @rate and documents == @number")
    own, english = rows.query("read == language"), rows.query("read == 'en'")
    figure = _panels(found, {"read: the language itself": own, "read: English": english}, "language", "markers")
    title = "What tuning does for each language, and for English"
    detail = f"{_detail(found, rate)}, {number} passages; read: {read}; bars: 95 %"
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
    reference = f"; all: {REFERENCE}" if "all" in found.design["arms"] else ""
    return f"{found.settings['model']}; {which}{reference}; {seeds} seed{'s' if seeds > 1 else ''}"
