"""Whether detectors rank neurons as measured changes do, beside chance."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..model import SITES
from ..neurons import NeuronSpace
from ..neurons.sampling import THIRDS, thirds
from ..text.choices import listed

FEWEST = 3
"""Neurons below which there is no correlation."""


def rank_correlations(
    space: NeuronSpace,
    places: Sequence[tuple[int, str, int]],
    rises: Mapping[str, Float[np.ndarray, " neuron"]],
    scores: Mapping[str, Mapping[str, Mapping[str, Tensor]]],
) -> pd.DataFrame:
    """See :meth:`SingleEffects.rank_correlations`."""
    frame = pd.DataFrame(places, columns=["layer", "site", "neuron"])
    third_of = {layer: name for name, layers in thirds(space.n_layers).items() for layer in layers}
    frame["third"] = [third_of[layer] for layer in frame["layer"]]
    cells = [(site, third, frame[(frame.site == site) & (frame.third == third)]) for site, third in _cells(frame)]
    rows = []
    for detector, by_language in scores.items():
        if not (measured := [tag for tag in rises if tag in by_language]):
            read = listed(rises, next(iter(by_language), ""))
            raise ValueError(f"{detector} has no scores of a language that was measured; there are {read}.")
        for tag in measured:
            for site, third, cell in cells:
                if site in by_language[tag]:
                    values = _scores_of(space, detector, by_language[tag][site], site)
                    row = {"detector": detector, "language": tag, "site": site, "third": third}
                    rows.append(row | _correlations(values[cell["layer"], cell["neuron"]], rises[tag][cell.index]))
    return pd.DataFrame(rows)


def _cells(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Sites in their order, each with its thirds from the first layer on."""
    pairs = set(zip(frame["site"], frame["third"], strict=True))
    return [pair for pair in product(SITES, THIRDS) if pair in pairs]


def _scores_of(space: NeuronSpace, detector: str, scores: Tensor, site: str) -> Float[np.ndarray, "layer neuron"]:
    expected = (space.n_layers, space.widths[site])
    if tuple(scores.shape) != expected:
        raise ValueError(f"{detector}: scores of {site} have shape {tuple(scores.shape)}, not {expected}.")
    return scores.detach().double().cpu().numpy()


def _correlations(scores: Float[np.ndarray, " neuron"], rises: Float[np.ndarray, " neuron"]) -> dict[str, Any]:
    known = ~np.isnan(scores) & ~np.isnan(rises)
    scores, rises, number = scores[known], rises[known], int(known.sum())
    chance = 1.96 / np.sqrt(number - 1) if number >= FEWEST else np.nan
    both = {"rise": spearman(scores, rises), "size": spearman(scores, np.abs(rises))}
    return {"neurons": number, **both, "chance": min(chance, 1.0) if number >= FEWEST else np.nan}


def spearman(one: Float[np.ndarray, " neuron"], other: Float[np.ndarray, " neuron"]) -> float:
    """Correlation of ranks, ties at their mean; NaN of fewer than three, or where all are the same."""
    from scipy.stats import rankdata

    if len(one) < FEWEST:
        return np.nan
    ranks = [rankdata(each) - (len(each) + 1) / 2 for each in (one, other)]
    size = np.sqrt(np.prod([np.square(each).sum() for each in ranks]))
    return float(ranks[0] @ ranks[1] / size) if size else np.nan
