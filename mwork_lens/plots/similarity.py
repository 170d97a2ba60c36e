"""Languages in the order of their similarity, and the tree that gave this order, drawn above a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .style import DENSE, line

Order = Literal["given", "similarity"]
TREE_HEIGHT = 110
"""Pixels."""


@dataclass(frozen=True)
class Tree:
    """Average linkage over the distances of each two languages, leaves ordered so that neighbours are alike."""

    languages: Sequence[str]
    """In the order of the leaves."""
    places: np.ndarray
    """Of each joint: four corners, 0 being the first leaf."""
    heights: np.ndarray
    """At what distance these corners lie."""

    @classmethod
    def of(cls, distances: pd.DataFrame) -> "Tree":
        """From a square table; what is NaN counts as 1."""
        from scipy.cluster.hierarchy import dendrogram, linkage
        from scipy.spatial.distance import squareform

        values = np.nan_to_num(distances.to_numpy(dtype=float), nan=1.0).clip(0)
        values = (values + values.T) / 2
        np.fill_diagonal(values, 0)
        drawn = dendrogram(linkage(squareform(values), "average", optimal_ordering=True), no_plot=True)
        places, heights = (np.array(drawn[name]) for name in ("icoord", "dcoord"))
        return cls([str(distances.index[i]) for i in drawn["leaves"]], (places - 5) / 10, heights)  # leaves at 5, 15, …

    def line(self, **axes: Any) -> go.Scatter:
        """The tree, its root on top."""
        gap = np.full((len(self.places), 1), np.nan)
        x, y = (np.hstack([each, gap]).ravel() for each in (self.places, self.heights))
        return line(x, y, "similarity", "#666666", "distance %{y:.2f}", width=1, showlegend=False, **axes)


def tree_of(distances: pd.DataFrame, order: Order | None) -> Tree | None:
    """The tree of a table of distances; None where languages stay as they are: as asked, or up to :data:`DENSE`."""
    by_similarity = len(distances) > DENSE if order is None else order == "similarity"
    return Tree.of(distances) if by_similarity and len(distances) > 2 else None


def draw_above(figure: go.Figure, tree: Tree, columns: int, height: int) -> None:
    """Draw the tree above each of the first ``columns`` panels; these and all below are ``height`` pixels high."""
    share, gap = height / (height + TREE_HEIGHT), 34 / (height + TREE_HEIGHT)
    number = len(list(figure.select_xaxes()))
    for part in (*figure.select_yaxes(), *figure.layout.annotations):  # pyright: ignore[reportAttributeAccessIssue]
        place = "y" if isinstance(part, go.layout.Annotation) else "domain"
        part[place] = share * np.asarray(part[place]) if part[place] is not None else [0, share]
    for i, panel in zip(range(columns), list(figure.select_xaxes()), strict=False):
        x, y = f"x{number + i + 1}", f"y{number + i + 1}"
        figure.add_trace(tree.line(xaxis=x, yaxis=y))
        bare = {"visible": False, "fixedrange": True}
        ends = [-0.5, len(tree.languages) - 0.5]
        across = {"domain": panel.domain or [0, 1], "range": ends, "anchor": y, **bare}
        upwards = {"domain": [share + gap, 1], "rangemode": "tozero", "anchor": x, **bare}
        figure.update_layout({x.replace("x", "xaxis"): across, y.replace("y", "yaxis"): upwards})
