"""Figures of what models write under interventions."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..generation import Generations as _Generations
from ..generation import Steering as _Steering
from .style import COLOURS, finish


def generations(found: _Generations, *, language: str | None = None, **layout: Any) -> go.Figure:
    """Share of completions in the prompt's language, repetition and length, by intervention.

    Args:
        found: what :func:`mwork_lens.generations` gave.
        language: show the share of this language instead.
        layout: passed on to ``figure.update_layout``.
    """
    frame = found.summary(language)
    titles = [f"share in {language or 'the prompt’s language'}", "repeated trigrams", "new tokens"]
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    for i, (read, rows) in enumerate(frame.groupby("prompt_language", sort=False)):
        errors = {"array": rows["high"] - rows["share"], "arrayminus": rows["share"] - rows["low"]}
        for column, value in enumerate(("share", "repetition", "tokens"), start=1):
            bar = go.Bar(
                x=rows[value],
                y=rows["condition"],
                name=str(read),
                orientation="h",
                marker={"color": COLOURS[i % len(COLOURS)]},
                legendgroup=str(read),
                showlegend=column == 1,
                error_x={"type": "data", "symmetric": False, **errors, "thickness": 1} if column == 1 else None,
                hovertemplate=f"{read}, %{{y}}: %{{x:.2f}}<extra></extra>",
            )
            figure.add_trace(bar, row=1, col=column)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(autorange="reversed", type="category")
    height = 220 + 28 * len(found.conditions) * max(1, frame["prompt_language"].nunique())
    figure.update_layout(height=height, margin={"t": 130}, legend={"title": {"text": "prompts in"}})
    each = ", ".join(str(n) for n in sorted(frame["completions"].unique()))
    detail = f"{found.settings['model']}; {each} completions each; bars: 95 % (Wilson)"
    return finish(figure, "Generation under intervention", detail, layout)


def steering(found: _Steering, **layout: Any) -> go.Figure:
    """Share of completions in the target language by nats a token, a point an intervention, repetition as its colour.

    Args:
        found: what :func:`mwork_lens.steer` gave.
        layout: passed on to ``figure.update_layout``.
    """
    frame = found.to_frame()
    errors = {"array": frame["high"] - frame["share"], "arrayminus": frame["share"] - frame["low"], "thickness": 1}
    hover = [
        f"{name}<br>moves the stream by {row.norm:.2f} of its norm<br>repeated trigrams {row.repetition:.2f}"
        for name, row in frame.iterrows()
    ]
    symbols = ["circle" if str(name).startswith("direction") else "diamond" for name in frame.index]
    points = go.Scatter(
        x=frame["nats_per_token"],
        y=frame["share"],
        mode="markers+text",
        text=list(frame.index),
        # neighbours' labels stand above and below by turns
        textposition=[("top center", "bottom center")[int(rank) % 2] for rank in frame["nats_per_token"].rank() - 1],
        marker={
            "size": 14,
            "symbol": symbols,
            "color": frame["repetition"],
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "repeated<br>trigrams"}},
        },
        error_y={"type": "data", "symmetric": False, **errors},
        hovertext=hover,
        hoverinfo="text",
    )
    figure = go.Figure(points)
    figure.update_xaxes(title_text="nats a token under the untouched model (fluent is left)", rangemode="tozero")
    figure.update_yaxes(title_text=f"share of completions in {found.toward}", range=[-0.12, 1.12])
    figure.update_layout(height=560)
    detail = (
        f"{found.generations.settings['model']}; {int(frame['completions'].iloc[0])} {found.away} prompts; "
        f"diamonds: neurons, circles: a direction of the same norm after block {found.layer}; bars: 95 % (Wilson)"
    )
    return finish(figure, f"Steering from {found.away} to {found.toward}", detail, layout)
