"""Figures of what switching neurons off does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..effects import UNITS, Among
from ..effects import EffectMatrix as _EffectMatrix
from .style import COLOURS, DIVERGING, finish

FALSE_DISCOVERIES = 0.05
"""Cells are marked where their adjusted p value is at most this."""
UNLABELLED = ("random", "shared", "top ", "specific ")
"""How the kinds of control begin that do not show their ratio, so that the others can be read."""


def effect_matrix(effects: _EffectMatrix, **layout: Any) -> go.Figure:
    """Change of loss as a heat map, what is off (or was tuned) by what is read.

    A frame marks each row's own language, a star what differs from no rise (q: Benjamini-Hochberg over all cells).
    Colours end at the largest rise under a language's own set, since some controls break everything.

    Args:
        effects: an effect matrix.
        layout: passed on to ``figure.update_layout``.
    """
    frame, unit = effects.to_frame(), UNITS[effects.unit]
    cells = [_cell(cell, unit, effects.decimals) for cell in effects.intervals.to_dict("records")]
    text, hover = (np.array(shown, dtype=object).reshape(frame.shape) for shown in zip(*cells, strict=True))
    own_sets = [row for row in frame.index if row in frame.columns]
    bound = float(np.abs(frame.loc[own_sets or frame.index].to_numpy()).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=frame.to_numpy(),
            x=list(frame.columns),
            y=list(frame.index),
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING,
            text=text,
            texttemplate="%{text}",
            hovertext=hover,
            hoverinfo="text",
            colorbar={"title": {"text": unit}},
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
    done = "tuned" if effects.tuned else "off"
    figure.update_yaxes(title_text=f"neurons {done}", type="category", autorange="reversed", showgrid=False)
    figure.update_layout(height=180 + max(23 * len(frame), 46 * min(len(frame), 12)))
    passages = sum(map(len, effects.documents.values()))
    detail = (
        f"{effects.settings['model']}; {passages} held-out passages; frame: own language; "
        f"*: not zero, q ≤ {FALSE_DISCOVERIES:g}"
    )
    title = "Change of loss when neurons are tuned" if effects.tuned else "Rise of loss when neurons are switched off"
    return finish(figure, title, detail, layout)


def _cell(cell: Mapping[Any, Any], unit: str, decimals: int) -> tuple[str, str]:
    """What is written in a cell, and shown over it."""
    star = "*" if cell["p_adjusted"] <= FALSE_DISCOVERIES else ""
    return f"{cell['rise']:.{decimals}f}{star}", (
        f"off: {cell['off']}<br>read: {cell['read']}<br>rise {cell['rise']:+.3f} {unit}<br>"
        f"95 %: {cell['low']:+.3f} to {cell['high']:+.3f}<br>adjusted p {cell['p_adjusted']:.2g}"
    )


def selectivity(effects: _EffectMatrix, *, among: Among = "others", **layout: Any) -> go.Figure:
    """Own rise minus the others' mean rise, a language's set beside its controls, with 95 % intervals.

    Args:
        effects: an effect matrix, e.g. of :func:`mwork_lens.with_controls`.
        among: which other languages, as in :meth:`EffectMatrix.selectivity`.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: if no row has a language.
    """
    table = effects.selectivity(among)
    if not len(table):
        raise ValueError("No row of this effect matrix belongs to a language.")
    bars: dict[str, list[dict[Any, Any]]] = {}
    for row in table.reset_index().to_dict("records"):
        own = row["off"] == row["language"]
        bars.setdefault("specific" if own else row["off"].removesuffix(f" for {row['language']}"), []).append(row)
    figure = go.Figure([_bars(rows, kind, COLOURS[i % len(COLOURS)]) for i, (kind, rows) in enumerate(bars.items())])
    figure.add_traces([_ratios(rows, kind) for kind, rows in bars.items()])
    others = {"others": "others", "same_script": "others of its script", "other_script": "others of other scripts"}
    unit = UNITS[effects.unit]
    done = "tuned" if effects.tuned else "off"
    languages = len({row["language"] for rows in bars.values() for row in rows})
    # room for the first label
    figure.update_xaxes(title_text=f"language whose neurons are {done}", type="category", range=[-0.7, languages - 0.4])
    figure.update_yaxes(title_text=f"own rise − mean rise of {others[among]}, {unit}")
    figure.update_layout(
        barmode="group", scattermode="group", height=520, legend={"title": {"text": f"what is {done}"}}
    )
    detail = f"{effects.settings['model']}; labels: own : others (of controls, matched only); bars: 95 %"
    return finish(figure, "Selectivity of a language's neurons and of its controls", detail, layout)


def _bars(rows: Sequence[Mapping[Any, Any]], kind: str, colour: str) -> go.Bar:
    hover = [
        f"{row['off']}<br>{row['neurons']:.0f} neurons<br>own {row['own']:+.3f}, others {row['others']:+.3f}<br>"
        f"difference {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        for row in rows
    ]
    above = [row["high"] - row["difference"] for row in rows]
    below = [row["difference"] - row["low"] for row in rows]
    return go.Bar(
        x=[row["language"] for row in rows],
        y=[row["difference"] for row in rows],
        name=kind,
        marker={"color": colour},
        offsetgroup=kind,
        error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1, "width": 2},
        hovertext=hover,
        hoverinfo="text",
    )


def _ratios(rows: Sequence[Mapping[str, Any]], kind: str) -> go.Scatter:
    """Own : others, over each bar that is clearly above zero."""
    return go.Scatter(
        x=[row["language"] for row in rows],
        y=[row["high"] for row in rows],
        text=[f"{row['ratio']:.1f}" if _is_labelled(row) else "" for row in rows],
        mode="text",
        textposition="top center",
        textfont={"size": 12},
        cliponaxis=False,
        offsetgroup=kind,
        legendgroup=kind,
        showlegend=False,
        hoverinfo="skip",
    )


def _is_labelled(row: Mapping[str, Any]) -> bool:
    clear = not np.isnan(row["ratio"]) and row["low"] > 0
    return bool(clear and not str(row["kind"]).startswith(UNLABELLED))
