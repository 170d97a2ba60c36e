"""Figures of what neurons write."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from ..lens import NeuronCards
from .style import COLOURS, band, finish


def promoted_language(cards: NeuronCards | Mapping[str, NeuronCards], language: str, **layout: Any) -> go.Figure:
    """How much of what neurons promote is in one language, by layer; one line a set, with 95 % bands.

    Args:
        cards: of one set, or of several by name, e.g. French's and a control's.
        language: e.g. the set's own.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: for a language that tokens were not identified over.
    """
    named = {"neurons": cards} if isinstance(cards, NeuronCards) else dict(cards)
    figure = go.Figure()
    for i, (name, found) in enumerate(named.items()):
        whole = found.summary(language)
        rows = found.written()
        rows, colour = rows.loc[rows["language"] == language], COLOURS[i % len(COLOURS)]
        line = go.Scatter(
            x=rows["layer"],
            y=rows["share"],
            name=f"{name}: {whole['share']:.1%} in all ({whole['low']:.1%} to {whole['high']:.1%})",
            legendgroup=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            customdata=rows["neurons"],
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.1%}} of what %{{customdata}} neurons promote<extra></extra>",
        )
        figure.add_traces([band(rows, colour, name), line])
    first = next(iter(named.values()))
    vocabulary = first.vocabulary[language]
    figure.add_hline(y=vocabulary, line={"dash": "dot", "color": "#666666"})
    figure.update_yaxes(title_text=f"promoted tokens in {language}", tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(title_text="layer of the neurons (0: the first block)")
    figure.update_layout(
        height=480, margin={"t": 125}, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    )
    settings = first.settings
    detail = (
        f"{settings['model']}; top {first.promoted.shape[1]} tokens of each v and mlp neuron by "
        f"{settings['identifier']}; dotted: share of the vocabulary"
    )
    return finish(figure, f"How much of what neurons promote is {language}", detail, layout)
