"""A post-norm's output without a part of its input: what the part changes, without cancellation."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...model import TokenBatch, at_least_float32
from .backend import backend_of
from .compiled import threads
from .normed import Normed

Pair = tuple[Tensor, ...]
"""Two: without and with the norm's gain g."""


def change_after_norm(
    squares: Pair, along: Float[Tensor, "which batch pos neuron"], output: Normed
) -> Float[Tensor, "batch neuron"]:
    """‖N(y) − N(y − w)‖² of each neuron's w over positions, without cancellation; overwrites ``squares`` and ``along``.

    ``squares`` are ‖w‖² and ‖g∘w‖², ``along`` ⟨y/r, w⟩ and ⟨g∘y/r, g∘w⟩. With r² = ‖y‖²/D + eps,
    r'² = r² + (‖w‖² − 2⟨y, w⟩)/D and e = 1/r − 1/r' = (r'² − r²) / (r r' (r + r')):
    e² ‖g∘y‖² + 2 (e / r') ⟨g∘y, g∘w⟩ + ‖g∘w‖² / r'².
    """
    scale = output.scale
    difference = squares[0].addcmul_(along[0], scale, value=-2).div_(len(output.norm.gain))  # r'² − r²
    new_scale = (difference + scale.square()).clamp_(min=0).sqrt_()
    e_r = difference.div_(along[0].copy_(new_scale).add_(scale).mul_(new_scale))  # e · r
    change = squares[1].div_(new_scale).addcmul_(e_r, along[1], value=2).div_(new_scale)
    return change.addcmul_(e_r.square_(), output.size[..., None]).sum(1)


def sums_of_changes(
    squares: Float[Tensor, "which *position neuron"],
    along: Float[Tensor, "which batch pos neuron"],
    output: Normed,
    batch: TokenBatch,
    hidden: Float[Tensor, "batch pos neuron"] | None = None,
) -> Float[Tensor, "batch neuron"]:
    """:func:`change_after_norm`, whose arguments are those of h = 1 where ``hidden`` is given; overwrites ``along``."""
    if backend_of(along) == "triton":
        from .batched import sums_after_norm  # which needs Triton

        return sums_after_norm(squares, along, output, batch, hidden)
    if hidden is not None:
        hidden = at_least_float32(hidden) * batch.content[..., None]
        along, squares = along.mul_(hidden), hidden.square_() * squares[:, None, None]
    return change_after_norm(tuple(squares), along, output)


def compiled_sums(
    loop: Callable[..., np.ndarray], by_batch: tuple[Tensor, ...], by_neuron: Pair, output: Normed
) -> Float[Tensor, "batch *neuron"]:
    """A compiled form of :func:`change_after_norm`, document by document."""
    squares, per_d_model = tuple(x.numpy() for x in by_neuron), np.float32(1 / len(output.norm.gain))
    documents = zip(*(x.contiguous().numpy() for x in (*by_batch, output.scale[..., 0], output.size)), strict=True)
    with threads():
        sums = [
            loop(values, content, (one, gained), squares, (r, gained_square, per_d_model))
            for values, content, one, gained, r, gained_square in documents
        ]
    return torch.from_numpy(np.stack(sums))
