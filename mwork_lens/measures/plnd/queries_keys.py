"""The change that deactivating a query or key neuron makes: the attention pattern moves.

For a query neuron d the scores become R'_ijd = ρ_id (R_ij − u_ijd), with
u_ijd = q̂_id (c_id k̃_jd + s_id k̃_j,pair(d)) / m, and score² = Σ_ij (softmax_j(f(R'_ijd)) − P_ij)², where f is the
soft cap, biases, masks and sinks (P already holds them). For a key neuron the roles of q and k swap, and the squares
add up over the query heads of its group.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ...model import HookedModel, TokenBatch
from ..measure import Activations, LayerMeasure, Selection, SiteMasks, SiteScores, refine, root_mean
from .attention import READS, Attention, Geometry
from .backend import backend_of
from .compiled import threads
from .compiled_rows import KEYS_AT_ONCE, sums_of_rows, weights_of_rows
from .qk_dense import LOST, PatternSite, exact_squares
from .qk_screen import screen
from .sides import Coefficients

SITES: tuple[PatternSite, ...] = ("q", "k")


def pattern_change(model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> LayerMeasure:
    """The change of the attention pattern, exactly, for every query and key neuron of one layer.

    On a GPU Triton kernels take every neuron's exact score, for a whole batch (``batched``); on a CPU, except in double
    precision, compiled loops do, document by document. Elsewhere, and there for soft caps, sinks or norms across heads,
    tensor operations do (``qk_dense``), which cost more: there the screen gives the same active neurons from a
    second-order estimate of all (``qk_screen``) and the exact change of those near the cut.

    With ``rotated_neurons`` the coordinates of q and k after normalisation and rotation are neurons, as in the paper:
    one off takes q̃_id k̃_jd / m off the scores. Deactivating a column of W_Q or W_K acts before these.
    """
    geometry = Geometry.of(model, layer, rotated_neurons=rotated_neurons)

    def score(seen: Activations, batch: TokenBatch) -> SiteScores:
        if backend_of(seen[READS[0]]) == "triton":
            from .batched import pattern_squares

            return {site: root_mean(squares, batch) for site, squares in pattern_squares(geometry, seen, batch).items()}
        squares = [_dense(attention) for attention in geometry.documents(seen, batch)]
        return {site: root_mean(torch.stack([by_site[site] for by_site in squares]), batch) for site in SITES}

    def screened(seen: Activations, batch: TokenBatch, selection: Selection) -> tuple[SiteScores, SiteMasks]:
        if backend_of(seen[READS[0]]) == "triton":
            scores = score(seen, batch)
            return scores, {site: torch.ones_like(values).bool() for site, values in scores.items()}
        pairs = [_screened(attention, selection) for attention in geometry.documents(seen, batch)]
        scores, exact = ({site: torch.stack([pair[site][i] for pair in pairs]) for site in SITES} for i in range(2))
        return scores, exact

    return LayerMeasure(READS, score, None if geometry.dense_only and not rotated_neurons else screened)


def require_told(site: str, scores: Float[Tensor, "*shape"]) -> None:
    """Refuse query and key scores where the kernels could not tell which weights the softmax lost."""
    if site in SITES and scores.isnan().any():
        raise ValueError(LOST)


def _dense(attention: Attention) -> dict[PatternSite, Float[Tensor, " neuron"]]:
    """Squared changes of every neuron."""
    if supports(attention):
        return compiled_squares(attention)
    return {site: exact_squares(attention, site) for site in SITES}


def _screened(attention: Attention, selection: Selection) -> dict[PatternSite, tuple[Tensor, Tensor]]:
    """By site: scores, exact where they decide the selection, and which are exact."""
    rows = attention.rows
    if supports(attention):
        return {site: ((s / rows).sqrt(), torch.ones_like(s).bool()) for site, s in compiled_squares(attention).items()}
    # In a single row the second-order screen is off by up to its bound u on |Δ|; over many rows errors average out,
    # so β starts at 1/8 + 8 / rows (at most 1). It is then measured on the neurons that are refined.
    beta = min(1.0, 0.125 + 8 / rows)

    def refined(site: PatternSite, squares: Tensor, uncertainty: Tensor) -> tuple[Tensor, Tensor]:
        def exact(neurons: Tensor) -> Tensor:
            return (exact_squares(attention, site, neurons) / rows).sqrt()

        return refine((squares / rows).sqrt(), uncertainty, beta, exact, selection)

    return {site: refined(site, *estimate) for site, estimate in zip(SITES, screen(attention), strict=True)}


def supports(attention: Attention) -> bool:
    """Whether this form applies: a CPU, not double precision, a plain softmax, RMS norms within each head."""
    geometry = attention.geometry
    plain = not (geometry.cap or geometry.sinks or geometry.dense_only or attention.doubtful)
    return backend_of(attention.pattern) == "compiled" and plain


def compiled_squares(attention: Attention) -> dict[PatternSite, Float[Tensor, " neuron"]]:
    """Squared pattern change of every query and key neuron, summed over the query heads that it reaches."""
    length, positions, pair = attention.keys.shape[-1], attention.positions, attention.pair.numpy()
    seen = np.full(attention.rows, length) if positions is None else positions.numpy() + 1
    seen, rest = -(-seen // KEYS_AT_ONCE) * KEYS_AT_ONCE, -length % KEYS_AT_ONCE
    padded = (pad(x, (0, rest)) if rest else x for x in (attention.pattern, attention.scores))
    pattern, scores = (x.contiguous().numpy() for x in padded)
    logs = np.empty((0, 0, 0), np.float32)
    if attention.log_pattern is not None:
        logs = pad(attention.log_pattern, (0, rest), value=-math.inf).contiguous().numpy()
    with threads():
        rows = (pattern, logs), scores, seen, weights_of_rows(pattern, scores, seen)
        by_query = sums_of_rows(*rows, _tables(attention.query_neurons), _met(attention.keys, pair))
        by_key = sums_of_rows(*rows, _met(attention.queries, pair), _tables(attention.key_neurons))
    if len(logs) and (np.isnan(by_query).any() or np.isnan(by_key).any()):
        raise ValueError(LOST)
    by_group = by_key.reshape(len(attention.keys), -1, len(pair)).sum(1)
    return {"q": torch.from_numpy(by_query.ravel()), "k": torch.from_numpy(by_group.ravel())}


def _tables(neurons: Coefficients) -> tuple[np.ndarray, ...]:
    return tuple(x.mT.contiguous().numpy() for x in (neurons.direct, neurons.paired, neurons.shrink))


def _met(other_side: Float[Tensor, "head d_head pos"], pair: np.ndarray) -> tuple[np.ndarray, ...]:
    """What neurons meet there: their coordinate, its partner, and 1 at every position."""
    itself = other_side.mT.contiguous().numpy()
    return itself, itself.take(pair, -1), np.ones((len(itself), 1, len(pair)), np.float32)
