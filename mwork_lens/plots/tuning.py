"""Figures of tuning runs."""

from typing import Any

import plotly.graph_objects as go

from ..tuning import Tuned as _Tuned
from .style import COLOURS, finish


def tuning(tuned: _Tuned, **layout: Any) -> go.Figure:
    """Loss of each step's texts, and held-out loss where it was measured, over the steps.

    Args:
        tuned: what :func:`mwork_lens.tune` returned.
        layout: passed on to ``figure.update_layout``.
    """
    frame, held_out = tuned.to_frame(), tuned.held_out
    hover = "step %{x}: %{y:.3f} nats a token, rate %{customdata:.2g}<extra></extra>"
    figure = go.Figure(
        go.Scatter(
            x=frame["step"] - 1,
            y=frame["loss"],
            customdata=frame["learning_rate"],
            mode="lines+markers",
            name="the step's texts",
            line={"color": COLOURS[0]},
            hovertemplate=hover,
        )
    )
    if held_out:
        figure.add_scatter(
            x=list(held_out),
            y=list(held_out.values()),
            mode="lines+markers",
            name="held-out texts",
            line={"color": COLOURS[4]},
            hovertemplate="after %{x} steps: %{y:.3f} nats a token<extra></extra>",
        )
    figure.update_xaxes(title_text="steps taken")
    figure.update_yaxes(title_text="loss, nats a token")
    figure.update_layout(height=460, showlegend=True)
    recipe = tuned.settings["recipe"]
    rate = f"learning rate {recipe['learning_rate']:g}, {recipe['batch_size']} texts a step"
    detail = f"{tuned.settings['model']}; {tuned.settings['trained_entries']:,} weights tuned; {rate}"
    return finish(figure, "Loss while tuning", detail, layout)
