"""Figures of which language each layer speaks, and of what its neurons write."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import regex
from plotly.colors import hex_to_rgb

from ..lens import LanguageRatio, LatentLanguages, LensGrid, NeuronCards
from ..statistics import counted, interval_words
from ..text import OTHER, SHARED
from ..text.choices import require_choice
from .style import COLOURS, DENSE, DIVERGING, SEQUENTIAL, SMALL, banded_line, colour, finish, groups, heat, line, panels

OWN, REST = "the prompts' own", "other languages"
GREYS = {SHARED: "#999999", OTHER: "#666666"}
MOST_LINES = 4
"""Languages of a panel that are drawn one by one."""
MOST_PANELS = 24
"""Prompt languages that are drawn; ``LanguageRatio.only`` selects others."""
TOKEN_LENGTH, HOVER_LENGTH = 11, 60
"""Characters of a token in a cell, and over it."""
GRID_COLOURS = COLOURS[:7]
LAYERS = "layer (0: embedding)"
Panels = tuple[go.Figure, list[dict[str, Any]]]
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")


def language_ratio(ratio: LanguageRatio, *, pivot: str = "en", columns: int = 3, **layout: Any) -> go.Figure:
    """Share of decoded tokens by layer, one panel per prompt language, with 95 % bands; dotted: random directions.

    With more than four languages, a panel shows the prompts' own, the pivot, and all others together. Of more than 24
    prompt languages the first 24 are drawn; ``ratio.only("sw")`` is another one's.

    Args:
        ratio: what :func:`mwork_lens.language_ratio` gave, or its ``two_way()`` form.
        pivot: the language to show in every panel.
        columns: panels in a row.

    Raises:
        ValueError: for a pivot that tokens were not identified as.
    """
    if pivot != "en":  # which need not be among the languages
        require_choice("pivot", pivot, (*ratio.languages, *ratio.names[:-2]))
    by_prompt = {prompt: _panel(ratio, prompt, pivot) for prompt in [*ratio.counts][:MOST_PANELS]}
    figure, cells = _layer_panels([f"prompts in {escape(prompt)}" for prompt in by_prompt], columns, 0.24, 0.05)
    colours = _colours([name for panel in by_prompt.values() for name in panel], pivot)
    for cell, (prompt, panel) in zip(cells, by_prompt.items(), strict=True):
        for name, rows in panel.items():
            for trace in _lines(prompt, name, rows, colours[name]):
                figure.add_trace(trace.update(legendrank=list(colours).index(name) + 1), **cell)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title_text="share of decoded tokens", col=1)
    dotted = "; dotted: random directions" if ratio.chance.shape[1] else ""
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    look = {"height": 210 + 235 * cells[-1]["row"], "margin": {"t": 120, "b": 100}, "legend": legend}
    return finish(figure, "Which language each layer speaks", _detail(ratio) + dotted, layout, **look)


def _layer_panels(titles: Sequence[str], columns: int, vertical: float, horizontal: float) -> Panels:
    """Panels over the same layers, which stand under the lowest panel of each column."""
    columns = min(columns, len(titles))
    spacing = {"vertical_spacing": vertical / -(-len(titles) // columns), "horizontal_spacing": horizontal}
    figure, cells = panels(titles, columns, shared_xaxes="all", shared_yaxes="all", **spacing)
    for cell in cells[-columns:]:
        figure.update_xaxes(title_text=LAYERS, showticklabels=True, **cell)
    return figure, cells


def _panel(ratio: LanguageRatio, prompt: str, pivot: str) -> dict[str, pd.DataFrame]:
    """The lines of one panel, by name."""
    panel, names = ratio.only(prompt), ratio.names[:-2]
    if len(ratio.languages) > MOST_LINES:
        single = [name for name in dict.fromkeys((pivot, prompt)) if name in names]
        alone = {name if name == pivot else OWN: [name] for name in single}
        panel = panel.grouped({**alone, REST: [name for name in names if name not in single]})
    return groups(panel.to_frame(), "language")


def _colours(names: Sequence[str], pivot: str) -> dict[str, str]:
    """A colour for every line, in the order of the legend."""
    first = [name for name in (pivot, OWN) if name in names]
    languages = [name for name in dict.fromkeys((*first, *names)) if name not in GREYS]
    # the pivot is blue, the prompts' own vermilion where they are drawn under that name
    palette = [COLOURS[i] for i in (0, 4, 2, 1, 3, 5, 6)]
    return {**{name: palette[i % len(palette)] for i, name in enumerate(languages)}, **GREYS}


def _lines(prompt: str, name: str, rows: pd.DataFrame, stroke: str) -> list[go.Scatter]:
    """Band, share and, of languages, chance."""
    hover = [
        f"{prompt} prompts, layer {row['layer']}<br>{name}: {row['share']:.1%} "
        f"{interval_words(row['low'], row['high'], '.1%', row['documents'])}"
        f"<br>random directions: {row['chance']:.1%}<br>vocabulary: {row['vocabulary']:.1%}"
        f"<br>lift: {100 * row['lift']:+.1f} points "
        f"{interval_words(100 * row['lift_low'], 100 * row['lift_high'], '+.1f', row['documents'])}"
        for row in rows.to_dict("records")
    ]
    if name in GREYS:
        return [line(rows["layer"], rows["share"], name, stroke, hover, width=1.2, dash="dash")]
    dotted = {"dash": "dot", "width": 1.5, "legendgroup": name, "showlegend": False}
    band, share = banded_line(rows, "layer", "share", name, stroke, hover=hover, width=2.5)
    return [band, line(rows["layer"], rows["chance"], name, stroke, **dotted), share]


def language_heatmap(ratio: LanguageRatio, *, value: str = "share", columns: int = 3, **layout: Any) -> go.Figure:
    """Language by layer as heat maps, one panel per prompt language (of the first 24).

    Args:
        ratio: what :func:`mwork_lens.language_ratio` gave.
        value: ``"share"``, or ``"lift"`` over random directions.
        columns: panels in a row.

    Raises:
        ValueError: for another value, or a lift without a baseline.
    """
    require_choice("value", value, ("share", "lift"))
    if value == "lift" and not ratio.chance.shape[1]:
        raise ValueError("Without a baseline (directions=0) there is no lift to show.")
    tables, unit = _tables(ratio, value), "%" if value == "share" else "points"
    figure, cells = _layer_panels(list(tables), columns, 0.26, 0.06)
    for cell, table in zip(cells, tables.values(), strict=True):
        hover = f"%{{y}}, layer %{{x}}: %{{z:.1f}} {unit}"
        figure.add_trace(heat(table, hover=hover, coloraxis="coloraxis"), **cell)
    figure.update_xaxes(showgrid=False)
    dense = len(ratio.labels) > DENSE
    small = {"dtick": 1, "tickfont": {"size": 8}} if dense else {}
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, **small)
    largest = max(float(np.nanmax(np.abs(table.to_numpy()))) for table in tables.values())
    scale, lowest = (SEQUENTIAL, 0) if value == "share" else (DIVERGING, -largest)
    bar = {"title": {"text": f"{value}, {unit}"}, "lenmode": "pixels", "len": 260, "y": 1, "yanchor": "top"}
    axis = {"colorscale": scale, "cmin": lowest, "cmax": largest, "colorbar": bar}
    title = "Which language each layer speaks" + (", above and below random directions" if value == "lift" else "")
    height = 170 + cells[-1]["row"] * (70 + (SMALL if dense else 20) * len(ratio.labels))
    return finish(figure, title, _detail(ratio), layout, height=height, coloraxis=axis)


def _tables(ratio: LanguageRatio, value: str) -> dict[str, pd.DataFrame]:
    """Language by layer for each panel, in per cent; shares are followed by what random directions give."""
    by_prompt = dict(islice(groups(ratio.to_frame(), "prompt_language").items(), MOST_PANELS))
    sources = {f"prompts in {escape(prompt)}": (rows, value) for prompt, rows in by_prompt.items()}
    if value == "share" and ratio.chance.shape[1]:
        sources["random directions"] = next(iter(by_prompt.values())), "chance"
    return {
        title: 100 * rows.pivot(index="language", columns="layer", values=column).loc[list(ratio.labels)]
        for title, (rows, column) in sources.items()
    }


def _detail(ratio: LanguageRatio) -> str:
    settings = ratio.settings
    read = f"top {settings['top_k']} tokens" if settings["by"] == "count" else "probability mass"
    documents = ratio.documents.values()
    number = counted(map(len, documents), (len(set(names)) for names in documents), "prompts")
    norm = "" if settings["normalize"] else "; without the final norm"
    norm += f"; {MOST_PANELS} of {len(documents)} prompt languages" if len(documents) > MOST_PANELS else ""
    return f"{settings['model']}; {read} by {settings.get('identifier')}; {number} per language{norm}"


def lens_grid(grid: LensGrid, *, layers: Sequence[int] | None = None, **layout: Any) -> go.Figure:
    """Layer by token: the most probable decoded token in each cell, coloured by its language.

    Args:
        grid: what :func:`mwork_lens.lens_grid` gave.
        layers: some rows only; by default all.
    """
    rows = list(range(len(grid.ids)) if layers is None else layers)
    best = [[grid.decoded[i] for i in grid.ids[layer, :, 0].tolist()] for layer in rows]
    counts = Counter(language for row in best for _, language in row)
    by_number = [name for name, _ in counts.most_common() if name not in GREYS]
    # the rarest languages go together where colours run out
    names = {name: name if i < len(GRID_COLOURS) else REST for i, name in enumerate(by_number)}
    names |= {name: name for name in GREYS if name in counts}
    shown = list(dict.fromkeys(names.values()))
    places = pd.DataFrame([[shown.index(names[language]) for _, language in row] for row in best])
    shares = [sum(grid.vocabulary[label] for label, called in names.items() if called == name) for name in shown]
    cells = heat(
        places,
        text=[[_label(text, TOKEN_LENGTH) for text, _ in row] for row in best],
        hover=[[_grid_hover(grid, layer, pos) for pos in range(len(grid.tokens))] for layer in rows],
        zmin=-0.5,
        zmax=len(shown) - 0.5,
        colorscale=_steps([{**GREYS, REST: "#BBBBBB"}.get(name) or colour(i) for i, name in enumerate(shown)]),
        colorbar={
            "tickvals": [*range(len(shown))],
            "ticktext": [f"{name} ({share:.0%})" for name, share in zip(shown, shares, strict=True)],
            "title": {"text": "language<br>(of vocabulary)"},
        },
        textfont={"size": 11, "color": "#111111"},
    )
    tokens = [_label(token, TOKEN_LENGTH) for token in grid.tokens]
    bare = {"showgrid": False, "zeroline": False}
    figure = go.Figure(cells).update_yaxes(tickvals=[*range(len(rows))], ticktext=[*map(str, rows)], **bare)
    figure.update_xaxes(side="bottom", tickangle=-45, tickvals=[*range(len(tokens))], ticktext=tokens, **bare)
    look = {"x": "token read", "y": LAYERS, "height": 220 + 24 * len(rows), "width": max(520, 190 + 88 * len(tokens))}
    detail = f"{grid.settings['model']}; languages by {grid.settings.get('identifier')}; · is a space"
    return finish(figure, "What each layer decodes to", detail, layout, **look)


def _grid_hover(grid: LensGrid, layer: int, pos: int) -> str:
    """All tokens that a cell decodes to."""
    cell = zip(grid.ids[layer, pos].tolist(), grid.probabilities[layer, pos].tolist(), strict=True)
    lines = [f"{_label(grid.decoded[i][0], HOVER_LENGTH)} ({grid.decoded[i][1]}) {p:.1%}" for i, p in cell]
    return "<br>".join([f"layer {layer}, after {_label(grid.tokens[pos], HOVER_LENGTH)}", *lines])


def _label(token: str, longest: int) -> str:
    """A token for a label: spaces and line ends visible, cut where too long, no markup for plotly to act on."""
    text = "".join("·" if c == " " else repr(c)[1:-1] if not c.isprintable() else c for c in token)
    text = escape(text if len(text) <= longest else text[: longest - 1] + "…") or "∅"
    return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.search(text) else text


def _steps(colours: Sequence[str]) -> list[list[Any]]:
    """A colour scale of pale steps, so that black text can be read on them."""
    pale = ["rgb({}, {}, {})".format(*(round(255 - 0.45 * (255 - c)) for c in hex_to_rgb(one))) for one in colours]
    return [[(i + side) / len(pale), step] for i, step in enumerate(pale) for side in (0, 1)]


def latent_languages(found: LatentLanguages, **layout: Any) -> go.Figure:
    """Probability of each language's answer by layer with 95 % bands; below, its median rank and the entropy."""
    frame = found.to_frame()
    titles = ("probability of the answer", "median rank of its likeliest token", "entropy of all tokens")
    figure, (top, middle, bottom) = panels(titles, 1, shared_xaxes=True, vertical_spacing=0.08)
    for i, language in enumerate(found.languages):
        rows, where = frame.query("language == @language"), f"{language}, layer %{{x}}: "
        look = {"hover": where + "%{y:.3f}", "width": 2.5}
        for trace in banded_line(rows, "layer", "probability", language, colour(i), **look):
            figure.add_trace(trace, **top)
        look["hover"] = where + "rank %{y}"
        figure.add_trace(line(rows["layer"], rows["rank"], language, colour(i), **look), **middle)
    rows = frame[frame["language"] == found.languages[0]]
    hover = "layer %{x}: %{y:.2f} nats"
    figure.add_trace(line(rows["layer"], rows["entropy"], "entropy", "#666666", hover, showlegend=False), **bottom)
    figure.update_yaxes(rangemode="tozero", tickformat="~g", **top)
    figure.update_yaxes(type="log", dtick=1, tickformat=",", autorange="reversed", **middle)
    figure.update_yaxes(title_text="nats", rangemode="tozero", **bottom)
    figure.update_xaxes(title_text=LAYERS, **bottom)
    detail = f"{found.settings['model']}; {len(found.prompts)} prompts, last token of each"
    return finish(figure, "Which language's answer is coming", detail, layout, height=820, margin={"t": 120})


def promoted_language(cards: NeuronCards | Mapping[str, NeuronCards], language: str, **layout: Any) -> go.Figure:
    """How much of what neurons promote is in one language, by layer; one line per set, with 95 % bands.

    Args:
        cards: of one set, or of several by name, e.g. French's and a control's.
        language: e.g. the set's own.

    Raises:
        ValueError: for a language that tokens were not identified over.
    """
    by_name = {"neurons": cards} if isinstance(cards, NeuronCards) else dict(cards)
    figure = go.Figure()
    for i, (name, one) in enumerate(by_name.items()):
        whole, rows = one.summary(language), one.written().query("language == @language")
        interval = interval_words(whole["low"], whole["high"], ".1%", int(whole["neurons"]), "neurons")
        label = f"{name}: {whole['share']:.1%} in all {interval}" if len(rows) else f"{name}: no v or mlp neurons"
        look = {"hover": f"{name}, layer %{{x}}: %{{y:.1%}} of what %{{customdata}} neurons promote", "width": 2.5}
        look |= {"mode": "lines+markers", "customdata": rows["neurons"]}
        figure.add_traces(banded_line(rows, "layer", "share", label, colour(i), **look))
    first = next(iter(by_name.values()))
    figure.add_hline(y=first.vocabulary[language], line={"dash": "dot", "color": "#666666"})
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    read = f"top {first.promoted.shape[1]} tokens of each v and mlp neuron by {first.settings.get('identifier')}"
    models = ", ".join(dict.fromkeys(str(cards.settings["model"]) for cards in by_name.values()))
    detail = f"{models}; {read}; dotted: share of the vocabulary"
    axes = {"x": "layer of the neurons (0: the first block)", "y": f"promoted tokens in {language}"}
    look = {"height": 480, "margin": {"t": 125}, "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}}
    return finish(figure, f"How much of what neurons promote is {language}", detail, layout, **axes, **look)
