"""Figures of detections: where the neurons are, what detections and languages have in common, what detecting costs."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..bench import Benchmark
from ..statistics import counted as in_words
from ..text.choices import named, require_choice
from .similarity import TREE_HEIGHT, Order, draw_above, tree_of
from .style import DENSE, SEQUENTIAL, SMALL, colour, finish, groups, heat, line, panels, table_axes

STRUCTURES = {"attention": "attention (q, k, v)", "feed_forward": "feed-forward (mlp)"}
MEMORY = "megabytes_above_forward"
COSTS = {"ratio": "time over the bare forward pass", MEMORY: "peak memory above it, MB (1 or less: 1)"}


def neuron_counts(counted: pd.DataFrame, *, title: str = "Neurons by layer", **layout: Any) -> go.Figure:
    """Neurons by layer as a share of their structure's width: attention and feed-forward, one panel per detection.

    Thick lines are means over languages; thin ones are the languages.

    Args:
        counted: what :func:`mwork_lens.neuron_counts` gave.
        title: of the figure.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not len(counted):
        raise ValueError("There are no neurons to draw.")
    by_detection = groups(counted, "detection")
    figure, cells = panels(list(by_detection), shared_yaxes=True)
    for cell, rows in zip(cells, by_detection.values(), strict=True):
        for trace in _share_lines(rows):
            figure.add_trace(trace, **cell)
    figure.update_xaxes(rangemode="tozero", tickformat=".1%")
    figure.update_yaxes(dtick=max(1, counted["layer"].nunique() // 10))
    models, languages = ", ".join(counted["model"].unique()), named(counted["language"].unique(), "in all")
    detail = f"{models}; languages: {languages}; {_read(counted)}thin: each language"
    return finish(figure, title, detail, layout, x="share of the structure's neurons", y="layer", height=560)


def _read(table: pd.DataFrame) -> str:
    """How much text a table of neurons rests on; nothing where that was not recorded."""
    documents = table["documents"].dropna().tolist()
    return f"{in_words(table['passages'], documents)} per language; " if len(documents) == len(table) else ""


def _share_lines(counted: pd.DataFrame) -> Iterator[go.Scatter]:
    """Of each structure the languages, where there are several, and their mean."""
    hover = "<br>layer %{y}: %{x:.2%}"
    for i, (structure, rows) in enumerate(groups(counted, "structure").items()):
        by_layer = rows.pivot_table(index="layer", columns="language", values=["neurons", "width"], aggfunc="sum")
        shares: pd.DataFrame = by_layer["neurons"] / by_layer["width"]  # pyright: ignore[reportAssignmentType, reportOperatorIssue]
        several = shares.shape[1] > 1
        for tag in shares if several else ():
            name, pale = f"{tag}, {STRUCTURES[structure]}", {"opacity": 0.45, "showlegend": False}
            yield line(shares[tag], shares.index, name, colour(i), name + hover, width=1, **pale)
        name = f"{STRUCTURES[structure]}, {'mean' if several else shares.columns[0]}"
        yield line(shares.mean(axis=1), shares.index, name, colour(i), name + hover, width=3)


def agreement(compared: pd.DataFrame, *, title: str = "Agreement of two detections", **layout: Any) -> go.Figure:
    """Rank correlation and top overlap by layer, one line per site, mean over languages; dashes mark chance.

    Args:
        compared: what :func:`mwork_lens.agreement` gave.
        title: of the figure.
    """
    values = {"spearman": "Spearman correlation of mean scores", "top_overlap": "overlap of the top fraction"}
    figure, cells = panels([*values.values()], shared_yaxes=True)
    for i, (site, rows) in enumerate(groups(compared, "site").items()):
        by_layer = pd.DataFrame(rows.groupby("layer")[list(values)].mean())
        look = {"hover": f"{site}, layer %{{y}}: %{{x:.3f}}", "mode": "lines+markers"}
        for cell, value in zip(cells, values, strict=True):
            figure.add_trace(line(by_layer[value], by_layer.index, site, colour(i), **look), **cell)
    figure.add_vline(x=float(compared["expected"].mean()), line={"dash": "dash", "color": "#999999"}, col=2)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(range=[0, 1.02])
    models, languages = ", ".join(compared["model"].unique()), named(compared["language"].unique(), "languages")
    detail = f"{models}; mean over {languages}; {_read(compared)}dashed: overlap by chance"
    return finish(figure, title, detail, layout, y="layer", height=520)


def overlap(compared: pd.DataFrame, *, value: str = "share", order: Order | None = None, **layout: Any) -> go.Figure:
    """Heat maps of what each two languages have in common, attention and feed-forward apart, one row per detection.

    Args:
        compared: what :func:`mwork_lens.overlap` gave.
        value: which column to colour: ``share``, ``jaccard`` or ``overlap_coefficient``.
        order: of languages, ``"given"`` or by ``"similarity"`` (the mean ``jaccard`` of all panels; average linkage,
            drawn above); by default so with more than 24 languages. Cells then have no numbers but over them.

    Raises:
        ValueError: for a column that does not exist.
    """
    require_choice("value", value, ("share", "jaccard", "overlap_coefficient"))
    titles = compared["detection"] + ": " + compared["structure"].str.replace("_", "-")
    parts, names = groups(compared.assign(panel=titles), "panel"), list(compared["language"].unique())
    columns = len(groups(compared, "structure")) if len(names) <= DENSE else 1
    figure, cells = panels(list(parts), columns, shared_yaxes=True, vertical_spacing=0.08 / len(parts))
    alike = compared.pivot_table(index="language", columns="other", values="jaccard").reindex(
        index=names, columns=names
    )
    tree = tree_of(1 - alike, order)
    names = list(tree.languages) if tree else names
    for cell, rows in zip(cells, parts.values(), strict=True):
        figure.add_trace(_common(rows, value, names), **cell)
    table_axes(figure, len(names))
    axis = {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": value}}}
    rows = cells[-1]["row"]
    look: dict[str, Any] = {"height": rows * max(320, 44 * len(names))}
    if len(names) > DENSE:
        look = {"height": rows * (SMALL * len(names) + 60), "width": 300 + SMALL * len(names)}
    models, chance = ", ".join(compared["model"].unique()), compared["expected_share"].mean()
    detail = f"{models}; {_read(compared)}rows in columns; mean share by chance {chance:.2f}"
    if tree:
        draw_above(figure, tree, columns, look["height"])
        look["height"] += TREE_HEIGHT
        detail += "; order: mean jaccard"
    look["height"] += 180
    return finish(figure, "Active neurons in common", detail, layout, coloraxis=axis, **look)


def _common(rows: pd.DataFrame, value: str, names: Sequence[str]) -> go.Heatmap:
    """One panel, its languages in this order; numbers in its cells if there is room."""
    table, chance = (
        rows.pivot(index="language", columns="other", values=column).reindex(index=names, columns=names)
        for column in (value, "expected_share")
    )
    hover = "%{y} in %{x}: %{z:.3f}<br>share by chance %{customdata:.3f}"
    look = {"hover": hover, "customdata": chance.to_numpy(dtype="float32"), "coloraxis": "coloraxis"}
    if len(names) > DENSE:
        return heat(table, xgap=0, ygap=0, **look)
    text = table.map(lambda share: "" if share != share else f"{share:.2f}").to_numpy()
    return heat(table, text=text, **look)


def benchmark(found: Benchmark, **layout: Any) -> go.Figure:
    """Time and peak memory of each method by length of a document, both axes logarithmic.

    Up to a megabyte is the noise of measuring and drawn as one.
    """
    figure, cells = panels([*COSTS.values()], horizontal_spacing=0.12)
    frame = found.to_frame()
    for cell, value in zip(cells, COSTS, strict=True):
        for i, (method, rows) in enumerate(groups(frame, "method").items()):
            costs = rows[value].clip(lower=1 if value == MEMORY else None)
            look = {"hover": f"{method}, %{{x}} tokens: %{{y:.3~r}}", "mode": "lines+markers"}
            figure.add_trace(line(rows["tokens"], costs, method, colour(i), **look), **cell)
    lengths = sorted(frame["tokens"].unique())
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[*map(str, lengths)])
    figure.update_yaxes(type="log", dtick=1)
    settings = {**found.settings, "dtype": found.settings["dtype"].removeprefix("torch.")}
    detail = "{model}, {dtype}, {device}, {threads} threads".format(**settings)
    look = {"x": "tokens of a document", "height": 520, "legend": {"orientation": "h", "y": -0.2}}
    return finish(figure, "What detection costs", detail, layout, **look)
