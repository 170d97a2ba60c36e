"""Distribution overlap: neurons whose activations on some languages are distributed otherwise than on the rest."""

from dataclasses import dataclass
from math import floor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CELLS = 2**20
"""Numbers that are worked on at a time: a few megabytes."""


@dataclass(frozen=True)
class Division:
    """For every neuron, the languages in two parts that are as little alike as two parts can be."""

    parts: Bool[Tensor, "language layer neuron"]
    """The languages of the smaller part."""
    costs: Float[Tensor, "layer neuron"]
    """The largest overlap between a language of one part and one of the other."""
    tied: Bool[Tensor, "layer neuron"]
    """Whether another division is as good, or the parts are of equal size: then the order of the languages decides."""


@dataclass(frozen=True)
class DistributionOverlap:
    """Neurons by what they tell apart."""

    masks: Bool[Tensor, "language layer neuron"]
    """Each language's neurons: those that are selected, and it is in the smaller part."""
    costs: Float[Tensor, "layer neuron"]
    threshold: float
    """Neurons with at most these costs are selected."""
    tied: Bool[Tensor, "layer neuron"]
    """As in :class:`Division`."""


def distribution_overlap(
    histograms: Int[Tensor, "language layer neuron bin"], *, percentile: float = 1.0
) -> DistributionOverlap:
    """Neurons whose languages fall into two parts with little overlap, of which the smaller one has them as its own.

    A neuron with one language in that part is the language's own; another is shared by those in it. Selected are
    costs up to a percentile of the overlaps of all neurons and pairs of languages.

    Args:
        histograms: tokens of each language by activation, each with the bins of its neuron.
        percentile: of all overlaps, in percent; at least the lowest counts.

    Raises:
        ValueError: for one language, a percentile outside (0, 100], or a histogram without tokens.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile} is outside (0, 100].")
    overlaps = pairwise_overlaps(histograms)
    division, threshold = smallest_division(overlaps), nth_lowest(overlaps, percentile)
    selected = division.costs <= threshold
    return DistributionOverlap(division.parts & selected, division.costs, threshold, division.tied)


def pairwise_overlaps(histograms: Int[Tensor, "language layer neuron bin"]) -> Float[Tensor, "pair layer neuron"]:
    """The mass that two languages' distributions have in common, from 0 to 1, in pairs 01, 02, …, 12, …

    In single precision, in which what is equal as a fraction is equal, whatever the order of its sum.
    """
    languages, *shape, bins = histograms.shape
    if languages < 2:
        raise ValueError(f"Histograms of {languages} language have nothing to overlap with.")
    if not (histograms.sum(-1) > 0).all():
        raise ValueError("A histogram has no tokens.")
    flat = histograms.flatten(1, 2)
    overlaps = torch.empty(languages * (languages - 1) // 2, flat.shape[1])
    size = max(1, CELLS // (languages * bins))
    for start in range(0, flat.shape[1], size):
        part = flat[:, start : start + size].double()
        part /= part.sum(-1, keepdim=True)
        pairs = [torch.minimum(one, part[i + 1 :]).sum(-1) for i, one in enumerate(part)]
        overlaps[:, start : start + size] = torch.cat(pairs)
    return overlaps.view(-1, *shape)


def nth_lowest(overlaps: Float[Tensor, "pair layer neuron"], percentile: float) -> float:
    """The overlap that this percentage of all of them, rounded down, but at least one, does not exceed."""
    number = max(1, floor(overlaps.numel() * percentile / 100 + 1e-9))
    return float(np.partition(overlaps.flatten().numpy(), number - 1)[number - 1])


def smallest_division(overlaps: Float[Tensor, "pair layer neuron"]) -> Division:
    """The division with the smallest largest overlap between its parts, for every neuron.

    Of equally good ones that with the smallest smaller part, then the first in the order of the languages. Any division
    cuts some edge of the maximum spanning tree, so that the cost is the tree's lightest edge; languages with more in
    common than that stay together.
    """
    flat = overlaps.flatten(1)
    languages = round((1 + (1 + 8 * len(flat)) ** 0.5) / 2)
    parts = torch.empty(languages, flat.shape[1], dtype=torch.bool)
    costs, tied = torch.empty(flat.shape[1]), torch.empty(flat.shape[1], dtype=torch.bool)
    size = max(1, CELLS // languages**2)
    for start in range(0, flat.shape[1], size):
        part = slice(start, start + size)
        parts[:, part], costs[part], tied[part] = _divided(_as_matrices(flat[:, part], languages))
    shape = overlaps.shape[1:]
    return Division(parts.view(-1, *shape), costs.view(shape), tied.view(shape))


def _as_matrices(
    overlaps: Float[Tensor, "pair neuron"], languages: int
) -> Float[Tensor, "neuron language {languages}"]:
    matrices = overlaps.new_ones(overlaps.shape[1], languages, languages)
    one, other = torch.triu_indices(languages, languages, 1)
    matrices[:, one, other] = matrices[:, other, one] = overlaps.T
    return matrices


def _divided(
    overlaps: Float[Tensor, "neuron language _"],
) -> tuple[Bool[Tensor, "language neuron"], Float[Tensor, " neuron"], Bool[Tensor, " neuron"]]:
    languages = overlaps.shape[1]
    order, edges = _spanning_trees(overlaps)
    costs = edges.amin(1)
    # the tree grows along the heaviest edge there is, so it leaves such a group only when it has all of it
    group = torch.empty_like(order).scatter_(1, order, (edges == costs[:, None]).cumsum(1))
    number = group.amax(1) + 1
    size = torch.zeros_like(group).scatter_add_(1, group, torch.ones_like(group)).gather(1, group)
    smaller = (2 * size < languages) | ((2 * size == languages) & (group == group[:, :1]))
    first = size.masked_fill(~smaller, languages + 1).argmin(1, keepdim=True)  # of those tied the first language
    parts = group == group.gather(1, first)
    return parts.T, costs, (number > 2) | (2 * parts.sum(1) == languages)


def _spanning_trees(
    overlaps: Float[Tensor, "neuron language _"],
) -> tuple[Int[Tensor, "neuron language"], Float[Tensor, "neuron language"]]:
    """By Prim's rule from the first language: the order in which languages join, and by which edge (none the first)."""
    neurons, languages, _ = overlaps.shape
    every, none = torch.arange(neurons), -torch.inf
    order = torch.zeros(neurons, languages, dtype=torch.long)
    edges = overlaps.new_full((neurons, languages), torch.inf)
    joined = torch.zeros(neurons, languages, dtype=torch.bool)
    joined[:, 0] = True
    nearest = overlaps[:, 0].masked_fill(joined, none)
    for step in range(1, languages):
        edges[:, step], order[:, step] = nearest.max(1)
        joined[every, order[:, step]] = True
        nearest = nearest.maximum(overlaps[every, order[:, step]]).masked_fill(joined, none)
    return order, edges
