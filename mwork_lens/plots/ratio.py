"""Figures of which language each layer speaks."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import regex
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from ..lens import LanguageRatio, LensGrid
from ..text import OTHER, SHARED
from .style import COLOURS, DIVERGING, band, finish

OWN, REST = "the prompts' own", "other languages"
GREYS = {SHARED: "#999999", OTHER: "#666666"}
FEW = 4
LONGEST = 11
GRID_COLOURS = COLOURS[:7]
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")


def language_ratio(ratio: LanguageRatio, *, pivot: str = "en", columns: int = 3, **layout: Any) -> go.Figure:
    """Share of decoded tokens by layer, a panel a prompt language, with 95 % bands; dotted: random directions.

    With more than four languages, a panel shows the prompts' own, the pivot, and all others together.

    Args:
        ratio: what :func:`mwork_lens.language_ratio` gave, or its ``two_way()`` form.
        pivot: the language to show in every panel.
        columns: panels in a row.
        layout: passed on to ``figure.update_layout``.
    """
    prompts = list(ratio.counts)
    panels = {prompt: _panel(ratio, prompt, pivot) for prompt in prompts}
    columns = min(columns, len(prompts))
    rows = math.ceil(len(prompts) / columns)
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        subplot_titles=[f"prompts in {escape(prompt)}" for prompt in prompts],
        vertical_spacing=0.24 / rows,
        horizontal_spacing=0.05,
    )
    colours = _colours([name for panel in panels.values() for name in panel], pivot)
    for i, (prompt, panel) in enumerate(panels.items()):
        for name, rows_of in panel.items():
            for trace in _lines(prompt, name, rows_of, colours[name], first=_first(panels, prompt, name)):
                trace.legendrank = list(colours).index(name) + 1
                figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title_text="share of decoded tokens", col=1)
    _name_layers(figure, len(panels), columns)
    figure.update_layout(
        height=210 + 235 * rows,
        margin={"t": 120, "b": 100},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    )
    dotted = "; dotted: random directions" if ratio.chance.shape[1] else ""
    return finish(figure, "Which language each layer speaks", _detail(ratio) + dotted, layout)


def _panel(ratio: LanguageRatio, prompt: str, pivot: str) -> dict[str, pd.DataFrame]:
    """The lines of one panel, by name."""
    mine = ratio.only(prompt)
    if len(ratio.languages) > FEW:
        known = [name for name in dict.fromkeys((pivot, prompt)) if name in ratio.names[:-2]]
        rest = [name for name in ratio.names[:-2] if name not in known]
        own = {OWN: [prompt]} if prompt in known and prompt != pivot else {}
        english = {pivot: [pivot]} if pivot in known else {}
        mine = mine.grouped({**english, **own, **({REST: rest} if rest else {})})
    return {str(name): rows for name, rows in mine.to_frame().groupby("language", sort=False)}


def _colours(names: Sequence[str], pivot: str) -> dict[str, str]:
    """A colour for every line, in the order of the legend."""
    first = [name for name in (pivot, OWN) if name in names]
    languages = [name for name in dict.fromkeys((*first, *names)) if name not in GREYS]
    # the pivot is blue, the prompts' own vermilion where they are drawn under that name
    palette = [COLOURS[0], COLOURS[4], COLOURS[2], COLOURS[1], COLOURS[3], COLOURS[5], COLOURS[6]]
    return {**{name: palette[i % len(palette)] for i, name in enumerate(languages)}, **GREYS}


def _first(panels: Mapping[str, Mapping[str, Any]], prompt: str, name: str) -> bool:
    return prompt == next(other for other, panel in panels.items() if name in panel)


def _lines(prompt: str, name: str, rows: pd.DataFrame, colour: str, first: bool) -> list[go.Scatter]:
    """Band, share and, of languages, chance."""
    shared = {"x": rows["layer"], "legendgroup": name, "hoverinfo": "skip", "showlegend": False}
    chance = go.Scatter(**shared, y=rows["chance"], mode="lines", line={"color": colour, "dash": "dot", "width": 1.5})
    hover = [
        f"{prompt} prompts, layer {row['layer']}<br>{name}: {row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        f"<br>random directions: {row['chance']:.1%}<br>vocabulary: {row['vocabulary']:.1%}"
        f"<br>lift: {100 * row['lift']:+.1f} points ({100 * row['lift_low']:+.1f} to {100 * row['lift_high']:+.1f})"
        for row in rows.to_dict("records")
    ]
    line = go.Scatter(
        **{**shared, "showlegend": first, "hoverinfo": "text"},
        y=rows["share"],
        name=name,
        mode="lines",
        line={"color": colour, "width": 2.5} if name not in GREYS else {"color": colour, "width": 1.2, "dash": "dash"},
        hovertext=hover,
    )
    return [line] if name in GREYS else [band(rows, colour, name), chance, line]


def language_heatmap(ratio: LanguageRatio, *, value: str = "share", columns: int = 3, **layout: Any) -> go.Figure:
    """Language by layer as heat maps, a panel a prompt language.

    Args:
        ratio: what :func:`mwork_lens.language_ratio` gave.
        value: ``"share"``, or ``"lift"`` over random directions.
        columns: panels in a row.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: for another value, or a lift without a baseline.
    """
    if value not in ("share", "lift"):
        raise ValueError(f"value={value!r}: it must be 'share' or 'lift'.")
    if value == "lift" and not ratio.chance.shape[1]:
        raise ValueError("Without a baseline (directions=0) there is no lift to show.")
    panels, unit = _cells(ratio, value), "%" if value == "share" else "points"
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = make_subplots(
        rows,
        columns,
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        subplot_titles=list(panels),
        vertical_spacing=0.26 / rows,
        horizontal_spacing=0.06,
    )
    for i, cells in enumerate(panels.values()):
        heat = go.Heatmap(
            z=100 * cells.loc[list(ratio.labels)],
            x=list(ratio.layers),
            y=list(ratio.labels),
            coloraxis="coloraxis",
            hovertemplate=f"%{{y}}, layer %{{x}}: %{{z:.1f}} {unit}<extra></extra>",
            xgap=1,
            ygap=1,
        )
        figure.add_trace(heat, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(showgrid=False)
    _name_layers(figure, len(panels), columns)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    largest = max(float(np.nanmax(np.abs(100 * cells.to_numpy()))) for cells in panels.values())
    scale = ("Viridis", 0) if value == "share" else (DIVERGING, -largest)
    bar = {"title": {"text": f"{value}, {unit}"}, "lenmode": "pixels", "len": 260, "y": 1, "yanchor": "top"}
    axis = {"colorscale": scale[0], "cmin": scale[1], "cmax": largest, "colorbar": bar}
    figure.update_layout(height=170 + rows * (70 + 20 * len(ratio.labels)), margin={"t": 130}, coloraxis=axis)
    title = "Which language each layer speaks" + (", above and below random directions" if value == "lift" else "")
    return finish(figure, title, _detail(ratio), layout)


def _name_layers(figure: go.Figure, panels: int, columns: int) -> None:
    """Layers under the lowest panel of each column."""
    for i in range(max(0, panels - columns), panels):
        row, column = i // columns + 1, i % columns + 1
        figure.update_xaxes(title_text="layer (0: embedding)", showticklabels=True, row=row, col=column)


def _cells(ratio: LanguageRatio, value: str) -> dict[str, pd.DataFrame]:
    """Language by layer for each panel; beside shares also what random directions give."""
    frame = ratio.to_frame()
    by_prompt = dict(tuple(frame.groupby("prompt_language", sort=False)))
    panels = {
        f"prompts in {escape(str(prompt))}": rows.pivot(index="language", columns="layer", values=value)
        for prompt, rows in by_prompt.items()
    }
    if value == "share" and ratio.chance.shape[1]:
        rows = next(iter(by_prompt.values()))
        panels["random directions"] = rows.pivot(index="language", columns="layer", values="chance")
    return panels


def lens_grid(grid: LensGrid, *, layers: Sequence[int] | None = None, **layout: Any) -> go.Figure:
    """Layer by token: the most probable decoded token in each cell, coloured by its language.

    Args:
        grid: what :func:`mwork_lens.lens_grid` gave.
        layers: some rows only; by default all.
        layout: passed on to ``figure.update_layout``.
    """
    rows = list(range(len(grid.ids)) if layers is None else layers)
    found = [[[grid.decoded[i] for i in cell] for cell in grid.ids[layer].tolist()] for layer in rows]
    probabilities = grid.probabilities[rows].tolist()
    names = _grid_names(grid, Counter(cell[0][1] for row in found for cell in row))
    shown = list(dict.fromkeys(names.values()))
    colours = [_pale({**GREYS, REST: "#BBBBBB"}.get(name) or GRID_COLOURS[i]) for i, name in enumerate(shown)]
    steps = [[(i + side) / len(shown), colour] for i, colour in enumerate(colours) for side in (0, 1)]
    hover = [
        [
            f"layer {layer}, after {_shown(grid.tokens[pos], 60)}<br>"
            + "<br>".join(f"{_shown(text, 60)} ({language}) {p:.1%}" for (text, language), p in zip(c, ps, strict=True))
            for pos, (c, ps) in enumerate(zip(cells, by_cell, strict=True))
        ]
        for layer, cells, by_cell in zip(rows, found, probabilities, strict=True)
    ]
    heat = go.Heatmap(
        z=[[shown.index(names[cell[0][1]]) for cell in row] for row in found],
        x=list(range(len(grid.tokens))),
        y=list(range(len(rows))),
        zmin=-0.5,
        zmax=len(shown) - 0.5,
        colorscale=steps,
        colorbar={
            "tickvals": list(range(len(shown))),
            "ticktext": [_with_share(grid, names, name) for name in shown],
            "title": {"text": "language<br>(of vocabulary)"},
        },
        text=[[_shown(cell[0][0], LONGEST) for cell in row] for row in found],
        texttemplate="%{text}",
        textfont={"size": 11, "color": "#111111"},
        hovertext=hover,
        hoverinfo="text",
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(heat)
    ticks = {"tickvals": list(range(len(grid.tokens))), "ticktext": [_shown(token, LONGEST) for token in grid.tokens]}
    figure.update_xaxes(**ticks, title_text="token read", side="bottom", showgrid=False, zeroline=False, tickangle=-45)
    layer_ticks = {"tickvals": list(range(len(rows))), "ticktext": [str(layer) for layer in rows]}
    figure.update_yaxes(**layer_ticks, title_text="layer (0: embedding)", showgrid=False, zeroline=False)
    figure.update_layout(height=220 + 24 * len(rows), width=max(520, 190 + 88 * len(grid.tokens)))
    detail = f"{grid.settings['model']}; languages by {grid.settings['identifier']}; · is a space"
    return finish(figure, "What each layer decodes to", detail, layout)


def _shown(token: str, longest: int) -> str:
    """A token for a label: spaces and line ends visible, cut where too long, no markup for plotly to act on."""
    text = "".join("·" if c == " " else repr(c)[1:-1] if not c.isprintable() else c for c in token)
    text = escape(text if len(text) <= longest else text[: longest - 1] + "…") or "∅"
    return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.search(text) else text


def _grid_names(grid: LensGrid, counts: Counter[str]) -> dict[str, str]:
    """What the grid calls each label that is decoded: the rarest languages go together where colours run out."""
    languages = [name for name, _ in counts.most_common() if name not in GREYS]
    own = {*languages[: len(GRID_COLOURS)], *GREYS}
    return {name: name if name in own else REST for name in [*languages, *GREYS] if name in counts}


def _with_share(grid: LensGrid, names: Mapping[str, str], name: str) -> str:
    """A label of the legend with its share of the vocabulary."""
    return f"{name} ({sum(grid.vocabulary[one] for one, called in names.items() if called == name):.0%})"


def _pale(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(round(255 - 0.45 * (255 - part)) for part in hex_to_rgb(colour)))


def _detail(ratio: LanguageRatio) -> str:
    settings = ratio.settings
    read = f"top {settings['top_k']} tokens" if settings["by"] == "count" else "probability mass"
    number = sum(map(len, ratio.counts.values()))
    norm = "" if settings["normalize"] else "; without the final norm"
    return f"{settings['model']}; {read} by {settings['identifier']}; {number} prompts{norm}"
