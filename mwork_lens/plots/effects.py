"""Figures of what switching neurons off does."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..evaluation import EffectMatrix as _EffectMatrix
from .style import DIVERGING, finish


def effect_matrix(effects: _EffectMatrix, **layout: Any) -> go.Figure:
    """Rise of loss as a heat map, what is off by what is read; a frame marks each row's own language.

    Args:
        effects: an effect matrix.
        layout: passed on to ``figure.update_layout``.
    """
    frame = effects.to_frame()
    intervals = effects.intervals.set_index(["off", "read"])
    hover = [
        [
            f"off: {off}<br>read: {read}<br>rise {rise:+.3f} nats a token<br>95 %: {row.low:+.3f} to {row.high:+.3f}"
            for read, rise in values.items()
            for row in [intervals.loc[(off, read)]]
        ]
        for off, values in frame.iterrows()
    ]
    bound = float(np.abs(frame.to_numpy()).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=frame.to_numpy(),
            x=list(frame.columns),
            y=list(frame.index),
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING,
            text=[[f"{value:.2f}" for value in row] for row in frame.to_numpy()],
            texttemplate="%{text}",
            hovertext=hover,
            hoverinfo="text",
            colorbar={"title": {"text": "nats a token"}},
            xgap=2,
            ygap=2,
        )
    )
    for y, off in enumerate(frame.index):
        own = effects.languages.get(str(off))
        if own in frame.columns:
            x = list(frame.columns).index(str(own))
            box = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.48, "y1": y + 0.48}
            figure.add_shape(type="rect", **box, line={"color": "#222222", "width": 2})
    figure.update_xaxes(title_text="language read", type="category", showgrid=False)
    figure.update_yaxes(title_text="neurons off", type="category", autorange="reversed", showgrid=False)
    figure.update_layout(height=180 + 46 * len(frame))
    passages = sum(map(len, effects.documents.values()))
    detail = f"{effects.settings['model']}; {passages} held-out passages; frame: the row's own language"
    return finish(figure, "Rise of loss when neurons are switched off", detail, layout)
