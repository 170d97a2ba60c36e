"""LAPE: neurons that fire for few languages, by the entropy of the shares of tokens on which they fire."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BAR = 0.95
"""The quantile of all shares, of every neuron and language, above which a neuron fires often."""
DECIMALS = 12
"""Entropies that agree in these are tied."""


def lape(
    counts: Int[Tensor, "language layer neuron"], tokens: Int[Tensor, " language"], *, top: float = 0.01
) -> Bool[Tensor, "language layer neuron"]:
    """The neurons of each language by LAPE (Tang et al., ACL 2024, section 2).

    Of the neurons that fire often in some language, those with the lowest entropy over languages are chosen: ``top`` of
    all neurons of the model, or as many as there are. Each belongs to every language in which it fires often. Of tied
    ones those of lower layers come first, then those of lower index.

    Args:
        counts: on how many tokens of a language a neuron fires.
        tokens: of each language.
        top: share of all neurons.

    Raises:
        ValueError: for a share outside (0, 1], or a language without tokens.

    Example:
        >>> lape(torch.tensor([[[9, 5, 9]], [[0, 5, 9]]]), torch.tensor([10, 10]), top=0.4).long().tolist()
        [[[0, 0, 1]], [[0, 0, 1]]]
    """
    if not 0 < top <= 1:
        raise ValueError(f"top={top} is outside (0, 1].")
    if not (tokens > 0).all():
        raise ValueError(f"Language {int((tokens <= 0).nonzero()[0])} has {int(tokens.min())} tokens.")
    shares = counts.double() / tokens.double()[:, None, None]
    often = shares > _bar(shares)
    entropies = torch.stack([_entropies(layer) for layer in shares.unbind(1)])
    entropies[~often.any(0)] = torch.inf
    lowest = entropies.flatten().argsort(stable=True)[: round(top * entropies.numel())]
    chosen = torch.zeros(entropies.numel(), dtype=torch.bool)
    chosen[lowest] = True
    return often & chosen.view_as(entropies)


def _bar(shares: Float[Tensor, "language layer neuron"]) -> float:
    """The round(0.95 N)-th lowest of all N shares."""
    number = max(1, round(BAR * shares.numel()))
    return float(np.partition(shares.flatten().numpy(), number - 1)[number - 1])


def _entropies(shares: Float[Tensor, "language neuron"]) -> Float[Tensor, " neuron"]:
    """In nats, of the shares over their sum; in ascending order of shares, so that no order of languages matters."""
    ascending = shares.sort(0).values
    sums = ascending.sum(0)
    parts = ascending / sums.where(sums > 0, 1)
    return -torch.xlogy(parts, parts).sum(0).round(decimals=DECIMALS)
