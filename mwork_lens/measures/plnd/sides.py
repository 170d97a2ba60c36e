"""What turns q into q̃, and k into k̃: clipping, normalisation, rotation; and how single coordinates come through."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ...model import HookedModel
from ...model.architecture import attention_scale
from ...model.heads import Growth, HeadNorm, clip_limit, head_norm, query_growth
from ...model.rotary import Rotary
from .backend import backend_of
from .compiled import normalise_and_rotate, threads

ByPosition = Float[Tensor, "head d_head pos"]


@dataclass(frozen=True)
class Coefficients:
    """How a neuron enters the attention scores: deactivating neuron d of position p lowers them by Δ.

    For a query, Δ_ij = shrink_id R_ij + direct_id k̃_jd + paired_id k̃_j,pair(d) − centre_id Σ_e level_ie k̃_je; for a
    key the roles swap.
    """

    shrink: ByPosition
    """1 − ρ: what normalisation gives back to the other coordinates (0 without QK-norm)."""
    direct: ByPosition
    """ρ q̂ c / m."""
    paired: ByPosition
    """ρ q̂ s / m."""
    centre: ByPosition | None = None
    """ρ q / (D r), where the norm takes off the mean: what the mean loses."""
    level: ByPosition | None = None
    """The norm's gain / m, rotated: what a mean of r takes off the side."""


@dataclass(frozen=True)
class Side:
    """Queries or keys in one layer."""

    scale: float
    clip: float | None
    norm: HeadNorm | None
    rotary: Rotary | None
    growth: Growth | None = None

    @classmethod
    def of(cls, model: HookedModel, layer: int, letter: Literal["q", "k"], rotary: Rotary | None) -> "Side":
        """Read one layer; ValueError for scores that depend on q or k in a way without a closed form here."""
        norm, clip = head_norm(model, layer, letter), clip_limit(model, layer)
        if clip is not None and norm is not None:
            raise ValueError(
                f"{model.cfg.model_name} clips normalised queries: their neurons have no closed form here."
            )
        growth = query_growth(model, layer) if letter == "q" else None
        return cls(attention_scale(model, layer), clip, norm, rotary, growth)

    def turned(
        self, x: Float[Tensor, "pos head d_head"], positions: Int[Tensor, " pos"], length: int
    ) -> tuple[ByPosition, Coefficients]:
        """x̃ at these positions of a text with so many tokens, and how its neurons enter the scores."""
        if self._is_compiled(x):
            return self._compiled(x, positions, length)
        x = rearrange(x, "pos head d_head -> head d_head pos").contiguous()
        shrink, centre, level = torch.zeros_like(x), None, None
        if self.norm is None:
            grown = x_hat = x if self.clip is None else x.clamp(-self.clip, self.clip)
        elif self.norm.centred:
            x_hat, shrink, grown, centre = _centred(x, self.norm)
            level = self.norm.gain[..., None].expand_as(x) / self.scale
        else:
            x_hat, shrink = _normalised(x, self.norm)
            grown = torch.addcmul(x_hat, x_hat, shrink, value=-1)  # ρ x̂
        if self.rotary is None:
            return x_hat, Coefficients(shrink, grown / self.scale, torch.zeros_like(grown), centre, level)
        cosine, sine = (part.mT for part in self._rotation(positions, x, length))
        level = None if level is None else self._rotated(level, cosine, sine)
        direct, paired = grown * (cosine / self.scale), grown * (sine / self.scale)
        return self._rotated(x_hat, cosine, sine), Coefficients(shrink, direct, paired, centre, level)

    def _rotated(self, x: ByPosition, cosine: Tensor, sine: Tensor) -> ByPosition:
        assert self.rotary
        return (x * sine).index_select(1, self.rotary.pair).addcmul_(x, cosine)

    def _rotation(self, positions: Int[Tensor, " pos"], like: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """What rotation makes of each coordinate and its partner: [pos, d_head]."""
        assert self.rotary
        return self._grown(*self.rotary.coefficients(positions, like, length), positions)

    def of_text(self, length: int, like: Tensor) -> tuple[Float[Tensor, "pos d_head"], Float[Tensor, "pos d_head"]]:
        """The same at every position of a text."""
        assert self.rotary
        positions = torch.arange(length, device=like.device) if self.growth else None
        return self._grown(*self.rotary.of_text(length, like), positions)

    def _grown(self, cosine: Tensor, sine: Tensor, positions: Int[Tensor, " pos"] | None) -> tuple[Tensor, Tensor]:
        assert self.rotary
        if self.growth and positions is not None:
            growth = self.growth(positions).to(cosine.dtype)[:, None]
            cosine, sine = cosine * growth, sine * growth
        if self.norm and self.norm.after_rotation:  # whose mean square is that of before
            gain = self.norm.gain[0]
            cosine, sine = cosine * gain, sine * gain[self.rotary.pair]
        return cosine, sine

    def _is_compiled(self, x: Tensor) -> bool:
        plain = self.norm is None or not (self.norm.across_heads or self.norm.centred or len(self.norm.gain) > 1)
        return backend_of(x) == "compiled" and bool(self.rotary) and plain and not self.clip

    def _compiled(
        self, x: Float[Tensor, "pos head d_head"], positions: Int[Tensor, " pos"], length: int
    ) -> tuple[ByPosition, Coefficients]:
        assert self.rotary
        rotation = tuple(part.numpy() for part in (*self._rotation(positions, x, length), self.rotary.pair))
        gain, eps = np.empty(0, np.float32), 0.0
        if self.norm:
            gain, eps = self.norm.gain_before_rotation[0].numpy(), self.norm.eps
        with threads():
            arrays = normalise_and_rotate(
                x.contiguous().numpy(), gain, np.float32(eps), rotation, np.float32(self.scale)
            )
        rotated, *parts = torch.from_numpy(arrays).mT
        return rotated, Coefficients(*parts)


def _normalised(x: ByPosition, norm: HeadNorm) -> tuple[ByPosition, ByPosition]:
    """x̂ and 1 − ρ, where share = x² / (D ms) is a coordinate's part of the mean square."""
    axes = (0, 1) if norm.across_heads else (1,)
    squares = x.square()
    width = math.prod(x.shape[axis] for axis in axes)
    total = squares.sum(axes, keepdim=True) + width * norm.eps
    x_hat = (x * (total / width).rsqrt()).mul_(norm.gain_before_rotation[..., None])
    return x_hat, _shrink(squares.div_(-total))


def _centred(x: ByPosition, norm: HeadNorm) -> tuple[ByPosition, ByPosition, ByPosition, ByPosition]:
    """x̂ = g ∘ (x − mean) / r, 1 − ρ, ρ g ∘ x / r and ρ x / (D r).

    Without coordinate d the mean falls by x_d / D, and r² by (2 x_d (x_d − mean) − x_d² (1 − 1/D)) / D.
    """
    width, gain = x.shape[1], norm.gain[..., None]
    apart = x - x.mean(1, keepdim=True)
    mean_square = apart.square().mean(1, keepdim=True) + norm.eps
    lost = x * (x * (1 - 1 / width) - 2 * apart) / (width * mean_square)
    shrink = _shrink(lost)
    grown = (1 - shrink) * x * mean_square.rsqrt()
    return apart * mean_square.rsqrt() * gain, shrink, grown * gain, grown / width


def _shrink(lost: Tensor) -> Tensor:
    """1 − ρ = 1 − (1 − share)^(−1/2) of lost = −share, without cancellation for small shares; uses ``lost`` up."""
    root = (1 + lost).sqrt_()
    return lost.div_(root.addcmul_(root, root))
