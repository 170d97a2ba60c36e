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
    so its mean under P is taken out first, which leaves E small.
    """
    mean = (change * pattern).sum(-1)
    limit = 0.9 * math.log(torch.finfo(change.dtype).max)
    weighted = change.sub_(mean[..., None]).clamp_(max=limit).expm1_().mul_(pattern)
    total = weighted.sum(-1)
    if sinks:
        total += (1 - pattern.sum(-1)).clamp(min=0) * torch.expm1(-mean)
    weighted.addcmul_(total[..., None], pattern, value=-1)
    return (torch.linalg.vector_norm(weighted, dim=-1) / (1 + total)).square()


def capped_change(
    cap: float, scores: Float[Tensor, "*#unit query key"], change: Float[Tensor, "unit query key"]
) -> Float[Tensor, "unit query key"]:
    """cap tanh((R + x) / cap) − cap tanh(R / cap), from tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    after = torch.tanh((scores + change) / cap)
    return cap * torch.tanh(change / cap) * (1 - torch.tanh(scores / cap) * after)
