"""Figures of MWork's three stages."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..effects import MEAN, SIDES
from ..effects import Evidence as _Evidence
from ..effects import LayerSweep as _LayerSweep
from ..effects import StageGrid as _StageGrid
from ..effects import Workflow as _Workflow
from ..neurons import MWORK_PARTS, STAGES
from .effects import FALSE_DISCOVERIES
from .style import COLOURS, DASHES, DIVERGING, band, finish

PARTS = {part: part.replace("_", "-").replace("-forward", "-forward").replace(" ", "<br>") for part in MWORK_PARTS}
MARKS = {"supported": ("✓", "#009E73"), "not supported": ("✗", "#D55E00"), "not measured": ("–", "#777777")}


def stage_grid(grid: _StageGrid, **layout: Any) -> go.Figure:
    """Own rise minus the others' mean rise of each part of each language's set, with its neurons printed.

    On the left whole parts, on the right (if measured) parts of equal size. A star marks what differs from zero
    (Benjamini-Hochberg over all rows, 5 %).

    Args:
        grid: a stage grid.
        layout: passed on to ``figure.update_layout``.
    """
    versions = {"all neurons of each part": False} | ({"equally many in each part": True} if grid.has_equal else {})
    figure = make_subplots(1, len(versions), shared_yaxes=True, subplot_titles=list(versions), horizontal_spacing=0.04)
    frames = [grid.to_frame(equal=equal) for equal in versions.values()]
    bound = float(np.nanmax(np.abs(pd.concat(frames)["difference"].to_numpy(dtype=float)))) or 1.0
    for column, frame in enumerate(frames, start=1):
        values, text, hover = (
            _table(frame.assign(cell=[shown(row) for row in frame.to_dict("records")]), grid) for shown in _SHOWN
        )
        heat = go.Heatmap(
            z=values.to_numpy(dtype=float),
            x=list(values.columns),
            y=[PARTS[part] for part in values.index],
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING,
            showscale=False,
            text=text.to_numpy(),
            texttemplate="%{text}",
            hovertext=hover.to_numpy(),
            hoverinfo="text",
            xgap=2,
            ygap=2,
        )
        figure.add_trace(heat, row=1, col=column)
    figure.update_xaxes(title_text="language whose neurons are off", type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_layout(height=430, width=max(950, 250 + 160 * len(grid.languages)), margin={"t": 130})
    layers = ", ".join(f"{stage.replace('_', '-')} {a.start}–{a.stop - 1}" for stage, a in grid.layers.items())
    detail = f"{grid.effects.settings['model']}; layers: {layers}; nats a token (neurons off)"
    return finish(figure, "What each stage’s neurons do for their own language: own rise − others’", detail, layout)


def _table(frame: pd.DataFrame, grid: _StageGrid) -> pd.DataFrame:
    table = frame.pivot(index="part", columns="language", values="cell")
    return table.loc[list(MWORK_PARTS), grid.languages]


def _text(row: Mapping[Any, Any]) -> str:
    if not row["neurons"]:
        return "no data<br>(0)"
    star = "*" if row["p_adjusted"] <= FALSE_DISCOVERIES else ""
    return f"{row['difference']:.2f}{star}<br>({row['neurons']:.0f})"


def _hover(row: Mapping[Any, Any]) -> str:
    if not row["neurons"]:
        return f"{row['language']}, {row['part']}: no neurons"
    return (
        f"{row['language']}, {row['part']}: {row['neurons']:.0f} neurons off<br>own {row['own']:+.3f}, others "
        f"{row['others']:+.3f} nats a token<br>difference {row['difference']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f})"
    )


_SHOWN = (lambda row: row["difference"], _text, _hover)


def layer_sweep(sweep: _LayerSweep, **layout: Any) -> go.Figure:
    """Own rise minus the others', of the part of a set in the first and in the last n layers, with 95 % bands.

    The thick line is the mean over languages, the dashed one an even share of the whole set's; where the thick line
    lies highest above it, the dotted lines place N1 and N2.

    Args:
        sweep: a layer sweep.
        layout: passed on to ``figure.update_layout``.
    """
    frame = sweep.to_frame()
    titles = ["the first n layers’ neurons off", "the last n layers’ neurons off"]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05)
    for column, side in enumerate(SIDES, start=1):
        rows = frame.query("side == @side")
        for i, language in enumerate([*sweep.languages, MEAN]):
            for trace in _curve(rows.query("language == @language"), language, i, side == SIDES[0]):
                figure.add_trace(trace, row=1, col=column)
        whole = rows.query("language == @MEAN")["difference"].to_numpy()[-1]
        even = {"x": [0, sweep.n_layers], "y": [0, whole], "mode": "lines", "showlegend": column == 1}
        line = {"dash": "dash", "color": "#777777"}
        figure.add_trace(go.Scatter(**even, line=line, name="even share", hoverinfo="skip"), row=1, col=column)
    said = _mark_choice(figure, sweep)
    figure.update_xaxes(title_text="layers n", dtick=2)
    figure.update_yaxes(title_text="own rise − others’, nats a token", row=1, col=1)
    figure.update_layout(height=520, margin={"t": 130})
    return finish(
        figure, "Which layers a language’s neurons matter in", f"{sweep.effects.settings['model']}; {said}", layout
    )


def _curve(rows: pd.DataFrame, language: str, i: int, legend: bool) -> list[go.Scatter]:
    mean = language == MEAN
    colour = "#222222" if mean else COLOURS[i % len(COLOURS)]
    line = go.Scatter(
        x=rows["layers"],
        y=rows["difference"],
        name=language,
        mode="lines+markers" if mean else "lines",
        line={"color": colour, "width": 4 if mean else 1.5, "dash": DASHES[i // len(COLOURS) % len(DASHES)]},
        legendgroup=language,
        showlegend=legend,
        hovertemplate=f"{language}, %{{x}} layers: %{{y:.3f}}<extra></extra>",
    )
    if not mean:
        return [line]
    columns = {"layers": "layer", "difference_low": "low", "difference_high": "high"}
    return [band(rows.rename(columns=columns), colour, language), line]


def _mark_choice(figure: go.Figure, sweep: _LayerSweep) -> str:
    try:
        chosen = sweep.choice()
    except ValueError:
        return "no layers stand out"
    for column, number in enumerate(chosen, start=1):
        figure.add_vline(x=number, line={"dash": "dot", "color": "#222222"}, col=column)  # pyright: ignore[reportArgumentType]
    return f"chosen: the first {chosen[0]} and the last {chosen[1]} of {sweep.n_layers}"


def workflow(found: _Workflow, **layout: Any) -> go.Figure:
    """The three stages from left to right, each with its claims, this model's evidence and what it says.

    Args:
        found: what :func:`mwork_lens.workflow` gave.
        layout: passed on to ``figure.update_layout``.
    """
    figure = go.Figure()
    for i, stage in enumerate(STAGES):
        first, last = found.layers[stage]
        figure.add_shape(
            type="rect", x0=i + 0.02, x1=i + 0.92, y0=0, y1=1, line={"color": "#888888"}, fillcolor="#f7f7f7"
        )
        head = f"<b>{stage.replace('_', '-')}</b><br>layers {first} to {last}"
        lines = "<br><br>".join(_evidence(evidence) for evidence in found.of(stage))
        for y, text in ((0.97, head), (0.80, lines)):
            figure.add_annotation(
                x=i + 0.05, y=y, text=text, showarrow=False, xanchor="left", yanchor="top", align="left"
            )
    for i in range(len(STAGES) - 1):
        figure.add_annotation(
            x=i + 1.02,
            y=0.5,
            ax=i + 0.92,
            ay=0.5,
            axref="x",
            ayref="y",
            showarrow=True,
            arrowhead=2,
            arrowwidth=2,
            text="",
        )
    figure.update_xaxes(visible=False, range=[0, len(STAGES) - 0.06])
    figure.update_yaxes(visible=False, range=[0, 1])
    figure.update_layout(height=460, width=1150, margin={"l": 20, "r": 20, "t": 90, "b": 20})
    detail = f"{found.settings['model']}; 95 % intervals; a claim is supported where the whole interval is above zero"
    return finish(figure, "MWork’s workflow and this model’s evidence", detail, layout)


def _evidence(evidence: _Evidence) -> str:
    mark, colour = MARKS[evidence.verdict]
    measured = "" if np.isnan(evidence.value) else f": {evidence.value:+.2f}"
    measured += "" if np.isnan(evidence.low) else f" ({evidence.low:+.2f} to {evidence.high:+.2f})"
    said = "<br>".join([*textwrap.wrap(evidence.claim, 42), *textwrap.wrap(evidence.measure + measured, 46)])
    return f'{said}<br><span style="color:{colour}"><b>{mark} {evidence.verdict}</b></span>'
