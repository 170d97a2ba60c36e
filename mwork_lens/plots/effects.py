"""Figures of what switching neurons off does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..effects import UNITS, Among, EffectMatrix
from ..statistics import FALSE_DISCOVERIES, counted, not_measurable
from .similarity import TREE_HEIGHT, Order, draw_above, tree_of
from .style import DENSE, SMALL, colour, error_bars, finish, groups, heat, hovering, table_axes

UNLABELLED = ("random", "shared", "top ", "specific ")
"""How the kinds of control begin that do not show their ratio, so that the others can be read."""


def effect_matrix(effects: EffectMatrix, *, order: Order | None = None, **layout: Any) -> go.Figure:
    """Change of loss as a heat map, what is off (or was tuned) by what is read.

    A frame marks each row's own language, a star what differs from no rise (q: Benjamini-Hochberg over all cells).
    Colours end at the largest rise under a language's own set, since some controls break everything.

    Args:
        effects: an effect matrix.
        order: of languages, ``"given"`` or by ``"similarity"`` (the correlation of their columns; average linkage,
            drawn above); by default so with more than 24 languages. Cells then have no numbers but over them.
    """
    frame = effects.to_frame()
    tree = tree_of(1 - frame.corr(), order) if len(frame) > 2 else None
    if tree:
        first = [language for language in tree.languages if language in frame.index]
        frame = frame.loc[[*first, *frame.index.difference(first, sort=False)], list(tree.languages)]
    dense = max(frame.shape) > DENSE
    figure = go.Figure(_cells(effects, frame, dense))
    for y, row in enumerate(frame.index):
        if (language := effects.languages.get(str(row))) in frame.columns:
            x = list(frame.columns).index(str(language))
            box = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.48, "y1": y + 0.48}
            figure.add_shape(type="rect", **box, line={"color": "#222222", "width": 1 if dense else 2})
    table_axes(figure, max(frame.shape))
    look: dict[str, Any] = {"height": max(23 * len(frame), 46 * min(len(frame), 12))}
    if dense:
        look = {"height": max(SMALL * len(frame), 160), "width": 300 + SMALL * len(frame.columns)}
    detail = f"{effects.settings['model']}; {effects.text_read}; frame: own language"
    detail += "" if dense else f"; *: not zero, q ≤ {FALSE_DISCOVERIES:g}"
    if tree:
        draw_above(figure, tree, 1, look["height"])
        look["height"] += TREE_HEIGHT
        detail += "; order: correlation of columns"
    title = "Change of loss when neurons are tuned" if effects.tuned else "Rise of loss when neurons are switched off"
    look |= {
        "x": "language read",
        "y": f"neurons {'tuned' if effects.tuned else 'off'}",
        "height": 180 + look["height"],
    }
    return finish(figure, title, detail, layout, **look)


def _cells(effects: EffectMatrix, frame: pd.DataFrame, dense: bool) -> go.Heatmap:
    """The rises in the order of a table, with what was tested over them and, if there is room, numbers in them."""
    unit, shape = UNITS[effects.unit], frame.shape
    places = pd.MultiIndex.from_product([frame.index, frame.columns], names=["off", "read"])
    cells = effects.intervals.set_index(["off", "read"]).loc[places].to_dict("records")
    text = np.array([f"{cell['rise']:.{effects.decimals}f}{star(cell)}" for cell in cells], dtype=object).reshape(shape)
    over = np.array([*map(tested, cells)], dtype=object).reshape(shape)
    language_rows = [row for row in frame.index if row in frame.columns]
    look: dict[str, Any] = {"bound": float(np.abs(frame.loc[language_rows or frame.index].to_numpy()).max()) or 1.0}
    look |= {"xgap": 0, "ygap": 0} if dense else {"text": text}
    hover = f"off: %{{y}}<br>read: %{{x}}<br>rise %{{z:+.3f}} {unit}<br>%{{hovertext}}"
    return heat(frame, hover=hover, hovertext=over, colorbar={"title": {"text": unit}}, **look)


def star(cell: Mapping[Any, Any]) -> str:
    """What marks a cell that differs from zero."""
    return "*" if cell["p_adjusted"] <= FALSE_DISCOVERIES else ""


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
    number = len(groups(table, "language"))
    dense = number > DENSE
    figure.add_traces([] if dense else [_ratios(rows, name) for name, rows in bars.items()])
    others = {"others": "others", "same_script": "others of its script", "other_script": "others of other scripts"}
    # room for the first label
    figure.update_xaxes(type="category", range=[-0.7, number - 0.4])
    look = {"barmode": "group", "scattermode": "group", "legend": {"title": {"text": f"what is {done}"}}, "height": 520}
    look["x"] = f"language whose neurons are {done}"
    look["y"] = f"own rise − mean rise of {others[among]}, {UNITS[effects.unit]}"
    compared = f"{effects.settings['model']}; {effects.text_read}"
    ratios = f"; labels: own : others (of controls, matched only), where q ≤ {FALSE_DISCOVERIES:g}"
    detail = f"{compared}{'' if dense else ratios}; bars: 95 %"
    if dense:
        figure.update_xaxes(dtick=1, tickfont={"size": 8})
        look["width"] = 320 + max(SMALL, 6 * len(bars)) * number
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
