"""Figures of MWork's three stages."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..effects import MEAN, SIDES, Evidence, LayerSweep, StageGrid, Workflow
from ..neurons import MWORK_PARTS, STAGES
from ..statistics import FALSE_DISCOVERIES, counted, not_measurable
from .effects import star, tested
from .style import COLOURS, DASHES, DENSE, banded_line, colour, finish, groups, heat, line, panels, table_axes

MARKS = {
    "supported": ("✓", "#009E73"),
    "not supported": ("✗", "#D55E00"),
    "not measured": ("–", "#777777"),
    "not measurable": ("–", "#777777"),
}


def stage_grid(grid: StageGrid, **layout: Any) -> go.Figure:
    """Own rise minus the others' mean rise of each part of each language's set, with its neurons printed.

    On the left whole parts, on the right (if measured) parts of equal size. A star marks what differs from zero
    (Benjamini-Hochberg over all rows, 5 %).
    """
    titles = ["all neurons of each part", "equally many in each part"][: 1 + grid.has_equal]
    figure, cells = panels(titles, shared_yaxes=True, horizontal_spacing=0.04)
    frames = [grid.to_frame(equal=equal) for equal in (False, True)[: len(titles)]]
    bound = float(np.nanmax(np.abs(pd.concat(frames)["difference"].to_numpy(dtype=float)))) or 1.0
    for cell, frame in zip(cells, frames, strict=True):
        frame["text"], frame["hover"] = zip(*map(_cell, frame.to_dict("records")), strict=True)
        table = frame.pivot(index="part", columns="language").loc[list(MWORK_PARTS)]
        table.index = [part.replace("_", "-").replace(" ", "<br>") for part in MWORK_PARTS]
        values, text, hover = (table[name][grid.languages] for name in ("difference", "text", "hover"))
        shown = {"text": text.to_numpy(), "hover": hover.to_numpy(), "bound": bound, "showscale": False}
        figure.add_trace(heat(values, **shown), **cell)
    table_axes(figure)
    layers = ", ".join(f"{stage.replace('_', '-')} {a.start}–{a.stop - 1}" for stage, a in grid.layers.items())
    detail = (
        f"{grid.effects.settings['model']}; {grid.effects.text_read}; layers: {layers}; nats per token (neurons off)"
    )
    title = "What each stage’s neurons do for their own language: own rise − others’"
    wide = max(950, 250 + (160 if len(grid.languages) <= DENSE else 110) * len(grid.languages))
    return finish(figure, title, detail, layout, x="language whose neurons are off", height=430, width=wide)


def _cell(row: Mapping[Any, Any]) -> tuple[str, str]:
    """What is written in a cell, and shown over it."""
    part = f"{row['language']}, {row['part']}"
    if not row["neurons"]:
        return "no data<br>(0)", f"{part}: no neurons"
    return f"{row['difference']:.2f}{star(row)}<br>({row['neurons']:.0f})", (
        f"{part}: {row['neurons']:.0f} neurons off<br>own {row['own']:+.3f}, others {row['others']:+.3f} nats per token"
        f"<br>difference {row['difference']:+.3f}<br>{tested(row)}"
    )


def layer_sweep(sweep: LayerSweep, **layout: Any) -> go.Figure:
    """Own rise minus the others', of the part of a set in the first and in the last n layers, with 95 % bands.

    The thick line is the mean over languages, the dashed one an even share of the whole set's, the dotted one as many
    of the sets' neurons drawn from all layers; where the thick line lies highest above the even share, vertical lines
    place N1 and N2.
    """
    sides = groups(sweep.to_frame(), "side")
    titles = ["the first n layers’ neurons off", "the last n layers’ neurons off"]
    figure, cells = panels(titles, shared_yaxes=True, horizontal_spacing=0.05)
    for cell, side in zip(cells, SIDES, strict=True):
        by_language = groups(sides[side], "language")
        for i, language in enumerate([*sweep.languages, MEAN]):
            for trace in _curve(by_language[language], language, i):
                figure.add_trace(trace, **cell)
        ends = [0, list(by_language[MEAN]["difference"])[-1]]
        figure.add_trace(line([0, sweep.n_layers], ends, "even share", "#777777", dash="dash"), **cell)
        if sweep.has_equal:
            rows, name = by_language[MEAN], "as many neurons of all layers"
            equal = rows["difference"] - rows["beyond"]
            figure.add_trace(line(rows["layers"], equal, name, "#D55E00", f"{name}: %{{y:.3f}}", dash="dot"), **cell)
    figure.update_xaxes(dtick=2)
    choice = _mark_choice(figure, sweep)
    detail = f"{sweep.effects.settings['model']}; {sweep.effects.text_read}; {choice}"
    look = {"x": "layers n", "y": "own rise − others’, nats per token", "height": 520}
    return finish(figure, "Which layers a language’s neurons matter in", detail, layout, **look)


def _curve(rows: pd.DataFrame, language: str, i: int) -> list[go.Scatter]:
    hover, dash = f"{language}, %{{x}} layers: %{{y:.3f}}", DASHES[i // len(COLOURS) % len(DASHES)]
    if language != MEAN:
        return [line(rows["layers"], rows["difference"], language, colour(i), hover, width=1.5, dash=dash)]
    look = {"prefix": "difference_", "hover": hover, "width": 4, "dash": dash, "mode": "lines+markers"}
    return banded_line(rows, "layers", "difference", language, "#222222", **look)


def _mark_choice(figure: go.Figure, sweep: LayerSweep) -> str:
    try:
        depths = sweep.choice()
    except ValueError as error:
        return str(error).partition(":")[0]
    for column, number in enumerate(depths, start=1):
        figure.add_vline(x=number, line={"dash": "dot", "color": "#222222"}, col=column)  # pyright: ignore[reportArgumentType]
    return f"chosen: the first {depths[0]} and the last {depths[1]} of {sweep.n_layers}"


def workflow(found: Workflow, **layout: Any) -> go.Figure:
    """The three stages from left to right: what MWork says of each, and what was tested, with its evidence.

    A mark belongs to the tested claim in its own words; that a stage does what MWork says follows from none of them.
    """
    figure = go.Figure()
    box = {"type": "rect", "y0": 0, "y1": 1, "line": {"color": "#888888"}, "fillcolor": "#f7f7f7"}
    corner = {"showarrow": False, "xanchor": "left", "yanchor": "top", "align": "left"}
    arrow = {"axref": "x", "ayref": "y", "showarrow": True, "arrowhead": 2, "arrowwidth": 2, "text": ""}
    for i, stage in enumerate(STAGES):
        first, last = found.layers[stage]
        figure.add_shape(x0=i + 0.02, x1=i + 0.92, **box)
        hypotheses = dict.fromkeys(each.hypothesis for each in found.of(stage) if each.hypothesis)
        says = "<br>".join(textwrap.wrap(f"MWork: {'; '.join(hypotheses)}", 46)) if hypotheses else ""
        head = f"<b>{stage.replace('_', '-')}</b>, layers {first} to {last}<br><i>{says}</i>"
        claims = "<br><br>".join(map(_evidence, found.of(stage)))
        figure.add_annotation(x=i + 0.05, y=0.97, text=head, **corner)
        figure.add_annotation(x=i + 0.05, y=0.76, text=claims, **corner)
    for i in range(len(STAGES) - 1):
        figure.add_annotation(x=i + 1.02, y=0.5, ax=i + 0.92, ay=0.5, **arrow)
    figure.update_xaxes(visible=False, range=[0, len(STAGES) - 0.06])
    figure.update_yaxes(visible=False, range=[0, 1])
    detail = (
        f"{found.settings['model']}; in brackets: 95 % interval, text read; ✓: the claim of that line, above zero at "
        f"q ≤ {FALSE_DISCOVERIES:g}, which is consistent with MWork’s words and no proof of them"
    )
    size = {"height": 460, "width": 1150, "margin": {"l": 20, "r": 20, "t": 90, "b": 20}}
    return finish(figure, "MWork’s workflow and this model’s evidence", detail, layout, **size)


def _evidence(evidence: Evidence) -> str:
    mark, ink = MARKS[evidence.verdict]
    value = "" if np.isnan(evidence.value) else f": {evidence.value:+.2f}"
    passages, documents = evidence.passages, evidence.documents
    if evidence.verdict == "not measurable":
        value += f", {not_measurable(documents, passages=passages)}"
    elif documents:
        texts = f", {counted([passages], [documents])}" if passages else f", {documents} documents"
        value += f" ({evidence.low:+.2f} to {evidence.high:+.2f}{texts})"
    lines = "<br>".join([*textwrap.wrap(evidence.claim, 42), *textwrap.wrap(evidence.measure + value, 46)])
    return f'{lines}<br><span style="color:{ink}"><b>{mark} {evidence.verdict}</b></span>'
