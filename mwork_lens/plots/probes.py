"""Figures of which language's word a layer is about to say."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..lens import LatentLanguages
from .style import COLOURS, band, finish


def latent_languages(found: LatentLanguages, **layout: Any) -> go.Figure:
    """Probability of each language's answer by layer with 95 % bands; below, its median rank and the entropy.

    Args:
        found: what :func:`mwork_lens.latent_languages` gave.
        layout: passed on to ``figure.update_layout``.
    """
    frame = found.to_frame()
    titles = ("probability of the answer", "median rank of its likeliest token", "entropy of all tokens")
    figure = make_subplots(3, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.08)
    for i, language in enumerate(found.languages):
        rows, colour = frame.loc[frame["language"] == language], COLOURS[i % len(COLOURS)]
        shared = {"legendgroup": language, "line": {"color": colour, "width": 2.5}, "name": language}
        hover = f"{language}, layer %{{x}}: %{{y:.3f}}<extra></extra>"
        line = go.Scatter(x=rows["layer"], y=rows["probability"], mode="lines", hovertemplate=hover, **shared)
        ranks = f"{language}, layer %{{x}}: rank %{{y}}<extra></extra>"
        rank = go.Scatter(
            x=rows["layer"], y=rows["rank"], mode="lines", showlegend=False, hovertemplate=ranks, **shared
        )
        figure.add_traces([band(rows, colour, language), line, rank], rows=[1, 1, 2], cols=[1, 1, 1])
    one = frame[frame["language"] == found.languages[0]]
    entropy = {"x": one["layer"], "y": one["entropy"], "mode": "lines", "line": {"color": "#666666"}}
    hover = "layer %{x}: %{y:.2f} nats<extra></extra>"
    figure.add_trace(go.Scatter(**entropy, showlegend=False, hovertemplate=hover), row=3, col=1)
    figure.update_yaxes(rangemode="tozero", tickformat="~g", row=1)
    figure.update_yaxes(type="log", dtick=1, tickformat=",", autorange="reversed", row=2)
    figure.update_yaxes(title_text="nats", rangemode="tozero", row=3)
    figure.update_xaxes(title_text="layer (0: embedding)", row=3)
    figure.update_layout(height=820, margin={"t": 120})
    detail = f"{found.settings['model']}; {len(found.prompts)} prompts, last token of each"
    return finish(figure, "Which language's answer is coming", detail, layout)
