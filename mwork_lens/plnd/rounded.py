"""Scores from products rounded to bfloat16, which processors with such units compute several times faster."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..batches import TokenBatch
from .compiled import applies
from .measure import root_mean
from .selection import Estimate, Selection, refine

ROUNDING = 2.0**-8
"""By Cauchy and Schwarz a product of two rounded vectors is off by at most this times their lengths."""


_setting = threading.Lock()


def rounds(weights: Tensor) -> bool:
    """Whether products with these weights can be rounded: single precision on a CPU."""
    return applies(weights) and hasattr(torch.backends.mkldnn, "matmul")


@contextmanager
def products(precision: Literal["bf16", "ieee"]) -> Iterator[None]:
    """Matrix products of float32 may round what they multiply to bfloat16 (without units for it they do not), or not.

    One thread at a time, as the setting is the whole process's.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    with _setting:
        before, matmul.fp32_precision = matmul.fp32_precision, precision
        try:
            yield
        finally:
            matmul.fp32_precision = before


def settle(
    rough: Float[Tensor, "batch neuron"],
    leading: Float[Tensor, "batch neuron"],
    exact: Callable[[int, Int[Tensor, " chosen"]], Float[Tensor, " chosen"]],
    batch: TokenBatch,
    selection: Selection,
) -> tuple[Float[Tensor, "batch neuron"], Bool[Tensor, "batch neuron"]]:
    """Scores that select what exact ones would, and which of them are exact.

    Args:
        rough: squared changes after a post-norm, from rounded products.
        leading: the part of them that takes no product, ‖g∘w‖² / r². With gains alike the others are at most as large
            and may cancel it, so that rounding changes the squares by a share of this; how large a share is measured.
        exact: squared changes of some neurons of one document of the batch, without rounding.
        batch: the documents.
        selection: what has to be decided.
    """
    scores, uncertainty = root_mean(rough, batch), ROUNDING * leading / rough.clamp(min=torch.finfo(rough.dtype).tiny)
    positions = batch.content.sum(-1)

    def settled(document: int) -> tuple[Tensor, Tensor]:
        estimate = Estimate(scores[document], uncertainty[document], beta=1.0)
        root = positions[document]
        return refine(estimate, lambda some: (exact(document, some).clamp(min=0) / root).sqrt(), selection)

    found = [settled(document) for document in range(len(scores))]
    return torch.stack([score for score, _ in found]), torch.stack([known for _, known in found])
