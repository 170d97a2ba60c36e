"""The change that deactivating a query or key neuron makes: the attention pattern moves.

For a query neuron d the scores become R'_ijd = ρ_id (R_ij − u_ijd), with
u_ijd = q̂_id (c_id k̃_jd + s_id k̃_j,pair(d)) / m, and score² = Σ_ij (softmax_j(f(R'_ijd)) − P_ij)², where f is the
soft cap, biases, masks and sinks (P already holds them). For a key neuron the roles of q and k swap, and the squares
add up over the query heads of its group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..batches import TokenBatch
from ..sites import HookedModel
from .attention import KEYS, PATTERN, QUERIES, Attention, Geometry
from .measure import Activations, LayerMeasure, SiteMasks, SiteScores, root_mean
from .screening import Screened, relative, screen
from .selection import Estimate, Selection, refine
from .units import PatternSite, exact_squares, row_squares

SITES: tuple[PatternSite, ...] = ("q", "k")
EXACT_ROWS = 6
"""One row in so many, those that the doubt about a neuron comes from, is computed exactly before the others are."""


def pattern_change(model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer.

    Its screen gives the same active neurons from a second-order estimate (``screening.py``) of all of them, the exact
    change of a few rows of those near the cut (``units.py``), and the exact score of those that are still nearer.

    Args:
        model: a hooked model.
        layer: which layer.
        rotated_neurons: take the coordinates of q and k after normalisation and rotation as neurons, as the paper
            does; deactivating a column of W_Q or W_K acts before these.
    """
    geometry = Geometry.of(model, layer, rotated_neurons=rotated_neurons)

    def documents(seen: Activations, batch: TokenBatch) -> Iterator[Attention]:
        for i, length in enumerate(batch.lengths):
            yield geometry.attention(
                seen[QUERIES][i, :length],
                seen[KEYS][i, :length],
                seen[PATTERN][i, :, :length, :length],
                batch.content[i, :length],
            )

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        found = [{site: exact_squares(a, site) for site in SITES} for a in documents(seen, batch)]
        return {site: root_mean(torch.stack([f[site] for f in found]), batch) for site in SITES}

    def screened(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        found = [_screened(attention, selection) for attention in documents(seen, batch)]
        scores = {site: torch.stack([f[site][0] for f in found]) for site in SITES}
        return scores, {site: torch.stack([f[site][1] for f in found]) for site in SITES}

    return LayerMeasure(geometry.reads, score, None if geometry.across_heads and not rotated_neurons else screened)


def _screened(attention: Attention, selection: Selection) -> dict[str, tuple[Tensor, Tensor]]:
    screened = dict(zip(SITES, screen(attention), strict=True))
    return {site: _refined(attention, screened[site], selection, site) for site in SITES}


def _refined(
    attention: Attention, screened: Screened, selection: Selection, site: PatternSite
) -> tuple[Tensor, Tensor]:
    """One site's scores, exact where they decide the selection.

    In a single row the second-order screen is off by up to its bound u on |Δ|; over many rows errors average out, so
    its β starts at 1/8 + 8 / rows (at most 1). Where some rows are exact, u is the mean bound of the others, weighted
    by their share of the score, and β starts there too. Both are then measured on the neurons that are refined.
    """
    rows = attention.rows
    beta = min(1.0, 0.125 + 8 / rows)

    def few_rows(neurons: Tensor) -> Estimate:
        rest = screened.undecided(neurons, EXACT_ROWS)
        squares = rest.squares + row_squares(attention, site, neurons, rest.rows)
        return Estimate((squares / rows).sqrt(), relative(rest.doubt, squares), beta)

    def exact(neurons: Tensor) -> Estimate:
        squares = exact_squares(attention, site, neurons)
        return Estimate((squares / rows).sqrt(), torch.zeros_like(squares))

    return refine(Estimate((screened.squares / rows).sqrt(), screened.uncertainty, beta), (few_rows, exact), selection)
