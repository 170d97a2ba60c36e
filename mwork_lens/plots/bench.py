"""Figures of what detection costs."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..bench import Benchmark
from .style import COLOURS, finish

MEMORY = "megabytes_above_forward"
PANELS = {
    "ratio": "time over the bare forward pass",
    MEMORY: "peak memory above it, MB (1 or less: 1)",
}


def benchmark(found: Benchmark, **layout: Any) -> go.Figure:
    """Time and peak memory of each method by length of a document, both axes logarithmic.

    Up to a megabyte is the noise of measuring and drawn as one.

    Args:
        found: what ``mwork-lens bench`` measured.
        layout: passed on to ``figure.update_layout``.
    """
    figure = make_subplots(1, 2, subplot_titles=list(PANELS.values()), horizontal_spacing=0.12)
    frame = found.to_frame()
    for column, value in enumerate(PANELS, start=1):
        for i, (method, rows) in enumerate(frame.groupby("method", sort=False)):
            lowest = 1 if value == MEMORY else None
            line = go.Scatter(
                x=rows["tokens"],
                y=rows[value].clip(lower=lowest),
                name=str(method),
                mode="lines+markers",
                line={"color": COLOURS[i]},
                legendgroup=str(method),
                showlegend=column == 1,
                hovertemplate=f"{method}, %{{x}} tokens: %{{y:.3~r}}<extra></extra>",
            )
            figure.add_trace(line, row=1, col=column)
    lengths = sorted(frame["tokens"].unique())
    figure.update_xaxes(type="log", title_text="tokens of a document", tickvals=lengths, ticktext=[*map(str, lengths)])
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(height=520, margin={"t": 130}, legend={"orientation": "h", "y": -0.2})
    told = found.settings
    detail = f"{told['model']}, {told['dtype'].removeprefix('torch.')}, {told['device']}, {told['threads']} threads"
    return finish(figure, "What detection costs", detail, layout)
