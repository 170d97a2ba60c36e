"""What a softmax does when its scores change, with small differences kept."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def changed_rows(
    pattern: Float[Tensor, "*#unit query key"], change: Float[Tensor, "unit query key"], *, sinks: bool
) -> Float[Tensor, "unit query"]:
    """Σ_j (softmax(S + x) − P)² of each row for x = ``change``; uses ``change`` up.

    softmax(S + x) − P = P ∘ (expm1(x) − E) / (1 + E) with E = Σ_j P expm1(x). The softmax does not see a shift of x,
    so its mean under P is taken out first, which leaves E small. Rows with such x that the squares would overflow are
    taken from their new scores instead.
    """
    mean = (change * pattern).sum(-1)
    x = change.sub_(mean[..., None])
    sink = (1 - pattern.sum(-1)).clamp(min=0) if sinks else None
    limit = 0.45 * math.log(torch.finfo(x.dtype).max)
    far = (x.amax(-1) if sink is None else torch.maximum(x.amax(-1), -mean)) > limit
    turned = None
    if far.any():
        seen = x.masked_fill(pattern == 0, -torch.inf).amax(-1)
        far &= (seen if sink is None else torch.maximum(seen, -mean)) > limit
        of_sink = None if sink is None else (sink.expand_as(mean)[far], -mean[far])
        turned = _turned_rows(pattern.expand_as(x)[far], x[far], of_sink)
    weighted = x.clamp_(max=limit).expm1_().mul_(pattern)
    total = weighted.sum(-1)
    if sink is not None:
        total += sink * torch.expm1(-mean)
    weighted.addcmul_(total[..., None], pattern, value=-1)
    squares = (torch.linalg.vector_norm(weighted, dim=-1) / (1 + total)).square()
    return squares if turned is None else squares.masked_scatter_(far, turned)


def _turned_rows(
    pattern: Float[Tensor, "row key"],
    change: Float[Tensor, "row key"],
    sink: tuple[Float[Tensor, " row"], Float[Tensor, " row"]] | None,
) -> Float[Tensor, " row"]:
    """The same without regard to small differences, for any change; ``sink`` is its weight and its change."""
    scores = pattern.log() + change
    if sink is not None:
        weight, its_change = sink
        scores = torch.cat([scores, (weight.log() + its_change)[:, None]], -1)
    return (scores.softmax(-1)[:, : pattern.shape[-1]] - pattern).square().sum(-1)


def capped_change(
    cap: float, scores: Float[Tensor, "*#unit query key"], change: Float[Tensor, "unit query key"]
) -> Float[Tensor, "unit query key"]:
    """cap tanh((R + x) / cap) − cap tanh(R / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    after = torch.tanh((scores + change) / cap)
    return cap * torch.tanh(change / cap) * (1 - torch.tanh(scores / cap) * after)
