"""Figures of sets of neurons."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..neurons import NeuronSet
from ..sites import SITES
from .style import COLOURS, DASHES, finish

STRUCTURES = {"attention": "attention (q, k, v)", "feed_forward": "feed-forward (mlp)"}


def neuron_counts(sets: NeuronSet | Mapping[str, NeuronSet], **layout: Any) -> go.Figure:
    """Neurons by layer, attention and feed-forward apart, one line a set.

    Args:
        sets: one set, or several by name (e.g. by language).
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: if there is no set.
    """
    named = {"neurons": sets} if isinstance(sets, NeuronSet) else dict(sets)
    if not named:
        raise ValueError("There is no set to draw.")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(STRUCTURES.values()))
    for i, (name, neurons) in enumerate(named.items()):
        counts = neurons.counts()
        for column, structure in enumerate(STRUCTURES, start=1):
            sites = [site for site in counts if SITES[str(site)].structure == structure]
            line = go.Scatter(
                x=counts[sites].sum(axis=1),
                y=counts.index,
                name=name,
                mode="lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]},
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"{name}, layer %{{y}}: %{{x}} neurons<extra></extra>",
            )
            figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(title_text="neurons", rangemode="tozero")
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_layout(height=560, margin={"t": 130})
    space = next(iter(named.values())).space
    widths = ", ".join(f"{site} {width}" for site, width in space.widths.items())
    return finish(figure, "Neurons by layer", f"{space.model}; neurons in a layer: {widths}", layout)
