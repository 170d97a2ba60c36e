"""The change that deactivating a query or key neuron makes: the attention pattern moves.

For a query neuron d the scores become R'_ijd = ρ_id (R_ij − u_ijd), with
u_ijd = q̂_id (c_id k̃_jd + s_id k̃_j,pair(d)) / m, and score² = Σ_ij (softmax_j(f(R'_ijd)) − P_ij)², where f is the
soft cap, biases, masks and sinks (P already holds them). For a key neuron the roles of q and k swap, and the squares
add up over the query heads of its group.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ...model import HookedModel, TokenBatch
from ..measure import Activations, LayerMeasure, SiteMasks, SiteScores, root_mean
from ..selection import Estimate, Selection, refine
from .attention import KEYS, PATTERN, QUERIES, Attention, Geometry
from .qk_compiled import covers, fused_squares
from .qk_dense import PatternSite, exact_squares
from .qk_screen import screen

SITES: tuple[PatternSite, ...] = ("q", "k")


def pattern_change(model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer.

    On a CPU, except in double precision, compiled loops (``fused.py``) take every neuron's exact score. Elsewhere, and
    for soft caps, sinks or norms across heads, it takes tensor operations (``units.py``), which cost more: there the
    screen gives the same active neurons from a second-order estimate of all of them (``screening.py``) and the exact
    change of those near the cut.

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
        found = [_dense(attention) for attention in documents(seen, batch)]
        return {site: root_mean(torch.stack([f[site] for f in found]), batch) for site in SITES}

    def screened(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        found = [_screened(attention, selection) for attention in documents(seen, batch)]
        scores = {site: torch.stack([f[site][0] for f in found]) for site in SITES}
        return scores, {site: torch.stack([f[site][1] for f in found]) for site in SITES}

    return LayerMeasure(geometry.reads, score, None if geometry.across_heads and not rotated_neurons else screened)


def _dense(attention: Attention) -> dict[PatternSite, Float[Tensor, " neuron"]]:
    """Squared changes of every neuron."""
    if covers(attention):
        return fused_squares(attention)
    return {site: exact_squares(attention, site) for site in SITES}


def _screened(attention: Attention, selection: Selection) -> dict[PatternSite, tuple[Tensor, Tensor]]:
    """By site: scores, exact where they decide the selection, and which are exact."""
    rows = attention.rows
    if covers(attention):
        return {site: ((s / rows).sqrt(), torch.ones_like(s).bool()) for site, s in fused_squares(attention).items()}
    # In a single row the second-order screen is off by up to its bound u on |Δ|; over many rows errors average out,
    # so β starts at 1/8 + 8 / rows (at most 1). It is then measured on the neurons that are refined.
    beta = min(1.0, 0.125 + 8 / rows)

    def refined(site: PatternSite, squares: Tensor, uncertainty: Tensor) -> tuple[Tensor, Tensor]:
        estimate = Estimate((squares / rows).sqrt(), uncertainty, beta)
        return refine(estimate, lambda neurons: (exact_squares(attention, site, neurons) / rows).sqrt(), selection)

    return {site: refined(site, *found) for site, found in zip(SITES, screen(attention), strict=True)}
