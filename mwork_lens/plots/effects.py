"""Figures of what switching neurons off does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..effects import UNITS, Among, EffectMatrix
from ..statistics import FALSE_DISCOVERIES, counted, not_measurable
from .style import colour, error_bars, finish, groups, heat, hovering, table_axes

UNLABELLED = ("random", "shared", "top ", "specific ")
"""How the kinds of control begin that do not show their ratio, so that the others can be read."""


def effect_matrix(effects: EffectMatrix, **layout: Any) -> go.Figure:
    """Change of loss as a heat map, what is off (or was tuned) by what is read.

    A frame marks each row's own language, a star what differs from no rise (q: Benjamini-Hochberg over all cells).
    Colours end at the largest rise under a language's own set, since some controls break everything.
    """
    frame, unit = effects.to_frame(), UNITS[effects.unit]
    cells = [_cell(cell, unit, effects.decimals) for cell in effects.intervals.to_dict("records")]
    text, hover = (np.array(words, dtype=object).reshape(frame.shape) for words in zip(*cells, strict=True))
    language_rows = [row for row in frame.index if row in frame.columns]
    bound = float(np.abs(frame.loc[language_rows or frame.index].to_numpy()).max()) or 1.0
    figure = go.Figure(heat(frame, text=text, hover=hover, bound=bound, colorbar={"title": {"text": unit}}))
    for y, row in enumerate(frame.index):
        if (language := effects.languages.get(str(row))) in frame.columns:
            x = list(frame.columns).index(str(language))
            box = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.48, "y1": y + 0.48}
            figure.add_shape(type="rect", **box, line={"color": "#222222", "width": 2})
    table_axes(figure)
    detail = (
        f"{effects.settings['model']}; {effects.text_read}; frame: own language; *: not zero, q ≤ {FALSE_DISCOVERIES:g}"
    )
    title = "Change of loss when neurons are tuned" if effects.tuned else "Rise of loss when neurons are switched off"
    rows, height = f"neurons {'tuned' if effects.tuned else 'off'}", max(23 * len(frame), 46 * min(len(frame), 12))
    return finish(figure, title, detail, layout, x="language read", y=rows, height=180 + height)


def star(cell: Mapping[Any, Any]) -> str:
    """What marks a cell that differs from zero."""
    return "*" if cell["p_adjusted"] <= FALSE_DISCOVERIES else ""


def _cell(cell: Mapping[Any, Any], unit: str, decimals: int) -> tuple[str, str]:
    """What is written in a cell, and shown over it."""
    return f"{cell['rise']:.{decimals}f}{star(cell)}", (
        f"off: {cell['off']}<br>read: {cell['read']}<br>rise {cell['rise']:+.3f} {unit}<br>{tested(cell)}"
    )


def tested(cell: Mapping[Any, Any]) -> str:
    """The interval and the adjusted p value of a cell, or why there are none."""
    if np.isnan(cell["low"]):
        return not_measurable(int(cell["documents"]), passages=int(cell["passages"]))
    read = counted([cell["passages"]], [cell["documents"]])
    interval = f"95 %: {cell['low']:+.3f} to {cell['high']:+.3f}, {read}"
    return f"{interval}<br>adjusted p {cell['p_adjusted']:.2g}"


def selectivity(effects: EffectMatrix, *, among: Among = "others", **layout: Any) -> go.Figure:
    """Own rise minus the others' mean rise, a language's set next to its controls, with 95 % intervals.

    Args:
        effects: an effect matrix, e.g. of :func:`mwork_lens.with_controls`.
        among: which other languages, as in :meth:`EffectMatrix.selectivity`.

    Raises:
        ValueError: if no row has a language.
    """
    table = effects.selectivity(among).reset_index()
    if not len(table):
        raise ValueError("No row of this effect matrix belongs to a language.")
    table["bar"] = [
        "specific" if off == language else off.removesuffix(f" for {language}")
        for off, language in table[["off", "language"]].to_numpy()
    ]
    bars, done = groups(table, "bar"), "tuned" if effects.tuned else "off"
    figure = go.Figure([_bars(rows, name, i) for i, (name, rows) in enumerate(bars.items())])
    figure.add_traces([_ratios(rows, name) for name, rows in bars.items()])
    others = {"others": "others", "same_script": "others of its script", "other_script": "others of other scripts"}
    # room for the first label
    figure.update_xaxes(type="category", range=[-0.7, table["language"].nunique() - 0.4])
    look = {"barmode": "group", "scattermode": "group", "legend": {"title": {"text": f"what is {done}"}}, "height": 520}
    look["x"] = f"language whose neurons are {done}"
    look["y"] = f"own rise − mean rise of {others[among]}, {UNITS[effects.unit]}"
    compared = f"{effects.settings['model']}; {effects.text_read}"
    detail = (
        f"{compared}; labels: own : others (of controls, matched only), where q ≤ {FALSE_DISCOVERIES:g}; bars: 95 %"
    )
    detail += "".join(f"<br>of another size: {', '.join(sizes)}" for sizes in [_other_sizes(table)] if sizes)
    return finish(figure, "Selectivity of a language's neurons and of its controls", detail, layout, **look)


def _other_sizes(table: pd.DataFrame) -> list[str]:
    """Which rows have not as many neurons as the language's own set: ``shared for fr (12 of 20)``."""
    own = {row["language"]: row["neurons"] for row in table.to_dict("records") if row["off"] == row["language"]}
    return [
        f"{row['off']} ({row['neurons']:g} of {own[row['language']]:g})"
        for row in table.to_dict("records")
        if row["neurons"] != own.get(row["language"], row["neurons"])
    ]


def _bars(rows: pd.DataFrame, name: str, i: int) -> go.Bar:
    hover = [
        f"{row['off']}<br>{row['neurons']:.0f} neurons<br>own {row['own']:+.3f}, others {row['others']:+.3f}<br>"
        f"difference {row['difference']:+.3f}<br>{tested(row)}"
        for row in rows.to_dict("records")
    ]
    look = {"marker": {"color": colour(i)}, "offsetgroup": name, "error_y": error_bars(rows, "difference")}
    return go.Bar(x=rows["language"], y=rows["difference"], name=name, **look, **hovering(hover))


def _ratios(rows: pd.DataFrame, name: str) -> go.Scatter:
    """Own : others, over each bar that is clearly above zero."""
    clear = (rows["difference"] > 0) & (rows["p_adjusted"] <= FALSE_DISCOVERIES)
    labelled = clear & rows["ratio"].notna() & ~rows["kind"].astype(str).str.startswith(UNLABELLED)
    place = {"textposition": "top center", "textfont": {"size": 12}, "cliponaxis": False, "showlegend": False}
    return go.Scatter(
        x=rows["language"],
        y=rows["high"],
        text=rows["ratio"].map("{:.1f}".format).where(labelled, ""),
        mode="text",
        offsetgroup=name,
        legendgroup=name,
        hoverinfo="skip",
        **place,
    )
