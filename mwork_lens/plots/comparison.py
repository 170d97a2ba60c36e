"""Figures of what detections, and languages, have in common."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import COLOURS, finish

SEQUENTIAL = "Viridis"


def agreement(compared: pd.DataFrame, *, title: str = "Agreement of two detections", **layout: Any) -> go.Figure:
    """Rank correlation and top overlap by layer, one line a site, mean over languages; dashes mark chance.

    Args:
        compared: what :func:`mwork_lens.agreement` gave.
        title: of the figure.
        layout: passed on to ``figure.update_layout``.
    """
    titles = ["Spearman correlation of mean scores", "overlap of the top fraction"]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles)
    for i, (site, rows) in enumerate(compared.groupby("site", sort=False)):
        by_layer = rows.groupby("layer")[["spearman", "top_overlap", "expected"]].mean()
        for column, value in enumerate(("spearman", "top_overlap"), start=1):
            line = go.Scatter(
                x=by_layer[value],  # pyright: ignore
                y=by_layer.index,  # pyright: ignore
                name=str(site),
                mode="lines+markers",
                line={"color": COLOURS[i]},
                legendgroup=str(site),
                showlegend=column == 1,
                hovertemplate=f"{site}, layer %{{y}}: %{{x:.3f}}<extra></extra>",
            )
            figure.add_trace(line, row=1, col=column)
    figure.add_vline(x=float(compared["expected"].mean()), line={"dash": "dash", "color": "#999999"}, col=2)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_layout(height=520, margin={"t": 130})
    models, languages = (", ".join(compared[name].unique()) for name in ("model", "language"))
    return finish(figure, title, f"{models}; mean over {languages}; dashed: overlap by chance", layout)


def overlap(compared: pd.DataFrame, *, value: str = "share", **layout: Any) -> go.Figure:
    """Heat maps of what each two languages have in common, attention and feed-forward apart, a row a detection.

    Args:
        compared: what :func:`mwork_lens.overlap` gave.
        value: which column to colour: ``share``, ``jaccard`` or ``overlap_coefficient``.
        layout: passed on to ``figure.update_layout``.

    Raises:
        ValueError: for a column that is not there.
    """
    if value not in compared:
        raise ValueError(f"There is no column {value!r}; choose share, jaccard or overlap_coefficient.")
    names, structures = compared["detection"].unique(), compared["structure"].unique()
    titles = [f"{name}: {part.replace('_', '-')}" for name in names for part in structures]
    figure = make_subplots(len(names), len(structures), subplot_titles=titles, shared_yaxes=True)
    for row, name in enumerate(names, start=1):
        for column, part in enumerate(structures, start=1):
            cells = compared[(compared["detection"] == name) & (compared["structure"] == part)]
            languages = list(cells["language"].unique())  # pyright: ignore
            table, chance = (
                cells.pivot(index="language", columns="other", values=v).reindex(languages)[languages]
                for v in (value, "expected_share")
            )
            heat = go.Heatmap(
                z=table,
                x=languages,
                y=languages,
                customdata=chance,
                zmin=0,
                zmax=1,
                colorscale=SEQUENTIAL,
                coloraxis="coloraxis",
                text=[["" if v != v else f"{v:.2f}" for v in line] for line in table.to_numpy()],
                texttemplate="%{text}",
                hovertemplate="%{y} in %{x}: %{z:.3f}<br>share by chance %{customdata:.3f}<extra></extra>",
                xgap=1,
                ygap=1,
            )
            figure.add_trace(heat, row=row, col=column)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_layout(
        height=180 + len(names) * max(320, 44 * compared["language"].nunique()),
        margin={"t": 130},
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": value}}},
    )
    chance = compared["expected_share"].mean()
    detail = f"{', '.join(compared['model'].unique())}; rows in columns; mean share by chance {chance:.2f}"
    return finish(figure, "Active neurons in common", detail, layout)
