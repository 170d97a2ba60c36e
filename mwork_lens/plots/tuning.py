"""Figures of tuning runs."""

from typing import Any

import plotly.graph_objects as go

from ..tuning import Tuned as _Tuned
from .style import colour, finish, line


def tuning(tuned: _Tuned, **layout: Any) -> go.Figure:
    """Loss of each step's texts, and held-out loss where it was measured, over the steps.

    Args:
        tuned: what :func:`mwork_lens.tune` returned.
        layout: passed on to ``figure.update_layout``.
    """
    frame, held_out = tuned.to_frame(), tuned.held_out
    figure = go.Figure()
    hover = "step %{x}: %{y:.3f} nats per token, rate %{customdata:.2g}"
    steps = {"mode": "lines+markers", "customdata": frame["learning_rate"]}
    figure.add_trace(line(frame["step"] - 1, frame["loss"], "the step's texts", {"color": colour(0)}, hover, **steps))
    if held_out:
        hover = "after %{x} steps: %{y:.3f} nats per token"
        points, losses = list(held_out), list(held_out.values())
        figure.add_trace(line(points, losses, "held-out texts", {"color": colour(4)}, hover, mode="lines+markers"))
    figure.update_xaxes(title_text="steps taken")
    figure.update_yaxes(title_text="loss, nats per token")
    recipe = tuned.settings["recipe"]
    rate = f"learning rate {recipe['learning_rate']:g}, {recipe['batch_size']} texts per step"
    detail = f"{tuned.settings['model']}; {tuned.settings['trained_entries']:,} weights tuned; {rate}"
    return finish(figure, "Loss while tuning", detail, layout, height=460, showlegend=True)
