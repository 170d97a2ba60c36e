"""Neurons that tell a language from the others: by difference of means, and as classifiers of documents."""

from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .distributions import CELLS

Ends = Literal["both", "highest", "lowest"]


def select_by_mean_difference(
    sums: Float[Tensor, "language layer neuron"],
    squares: Float[Tensor, "language layer neuron"],
    tokens: Int[Tensor, " language"],
    *,
    size: int | float,
) -> Bool[Tensor, "language layer neuron"]:
    """For each language, the neurons whose mean is highest above the others'; see :func:`mean_differences`.

    Args:
        sums: of the activations over a language's tokens.
        squares: sums of their squares.
        tokens: of each language.
        size: how many neurons, or (as a float up to 1.0) which share of all; of tied ones those of lower layers come
            first, then those of lower index.

    Raises:
        ValueError: for one language, or a size that there is not.
    """
    differences = mean_differences(sums, squares, tokens)
    number = number_of(size, differences[0].numel())
    return torch.stack([_highest(each, number) for each in differences])


def mean_differences(
    sums: Float[Tensor, "language layer neuron"],
    squares: Float[Tensor, "language layer neuron"],
    tokens: Int[Tensor, " language"],
) -> Float[Tensor, "language layer neuron"]:
    """A language's mean minus the mean of the other languages' means, in pooled standard deviations within languages.

    Where nothing varies within a language, 0 without a difference, else infinite.
    """
    if len(tokens) < 2:
        raise ValueError("There is one language, which has nothing to differ from.")
    numbers = tokens.double()[:, None, None]
    means = sums.double() / numbers
    within = (squares.double() - means.square() * numbers).sum(0).clamp_(min=0)
    deviations = (within / (numbers.sum() - len(tokens)).clamp(min=1)).sqrt_()
    differences = means - (means.sum(0) - means) / (len(tokens) - 1)
    return (differences / deviations).where(differences != 0, 0)


def select_by_average_precision(
    means: Float[Tensor, "document layer neuron"],
    languages: Int[Tensor, " document"],
    *,
    size: int | float,
    ends: Ends = "both",
) -> Bool[Tensor, "language layer neuron"]:
    """For each language, the neurons that find its documents best, or leave them out (Kojima et al., NAACL 2024).

    Args:
        means: each document's mean activation.
        languages: whose document it is, as numbers from 0 on, each at least once.
        size: as for :func:`select_by_mean_difference`.
        ends: those with the highest average precision, the lowest, or half of each (one more of the highest).

    Raises:
        ValueError: for one language, one without documents, or a size that there is not.
    """
    precisions = average_precisions(means, languages)
    number = number_of(size, precisions[0].numel())
    highest = {"both": number - number // 2, "highest": number, "lowest": 0}[ends]
    found = [_highest(each, highest) | _highest(-each, number - highest) for each in precisions]
    return torch.stack(found)


def average_precisions(
    means: Float[Tensor, "document layer neuron"], languages: Int[Tensor, " document"]
) -> Float[Tensor, "language layer neuron"]:
    """Of each neuron's document means as scores of "this language or not"; documents with equal ones rank together."""
    numbers = torch.bincount(languages)
    if len(numbers) < 2 or not numbers.all():
        raise ValueError(f"Documents by language: {numbers.tolist()}; there must be some of two languages or more.")
    flat = means.flatten(1).T
    precisions = torch.empty(len(numbers), len(flat), dtype=torch.float64)
    size = max(1, CELLS // len(means))
    for start in range(0, len(flat), size):
        part = slice(start, start + size)
        values = flat[part].contiguous()
        # how many documents rank no lower than each
        ranks = len(means) - torch.searchsorted(values.sort(1).values, values)
        for language in range(len(numbers)):
            own = ranks[:, languages == language].sort(1).values
            precisions[language, part] = (torch.searchsorted(own, own, right=True) / own.double()).mean(1)
    return precisions.view(-1, *means.shape[1:])


def number_of(size: int | float, total: int) -> int:
    """How many neurons: as many as a whole number says, or a share of all up to 1.0."""
    whole = isinstance(size, Integral)
    number = int(size) if whole else round(size * total)
    if not (0 < number <= total and (whole or size <= 1)):
        raise ValueError(
            f"size={size}: it must be from 1 to {total} neurons, or a share of them above 0 and up to 1.0."
        )
    return number


def _highest(values: Float[Tensor, "layer neuron"], number: int) -> Bool[Tensor, "layer neuron"]:
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.flatten().argsort(descending=True, stable=True)[:number]] = True
    return mask.view_as(values)
