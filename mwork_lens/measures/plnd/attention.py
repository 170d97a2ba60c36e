"""One document's attention in one layer: what every query and key score is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...model import HookedModel, TokenBatch, at_least_float32
from ...model.architecture import Rotary, attention_scale, norm_eps, norm_gain
from ..measure import Activations
from .compiled import is_cpu_float32, normalise_and_rotate, threads

READS = ("attn.hook_q", "attn.hook_k", "attn.hook_pattern")


@dataclass(frozen=True)
class Coefficients:
    """How a neuron enters the attention scores: deactivating neuron d of position p lowers them by Δ.

    For a query, Δ_ij = shrink_id R_ij + direct_id k̃_jd + paired_id k̃_j,pair(d); for a key the roles swap.
    """

    shrink: Float[Tensor, "head d_head pos"]
    """1 − ρ: what normalisation gives back to the other coordinates (0 without QK-norm)."""
    direct: Float[Tensor, "head d_head pos"]
    """ρ q̂ c / m."""
    paired: Float[Tensor, "head d_head pos"]
    """ρ q̂ s / m."""


@dataclass(frozen=True)
class Attention:
    """In float32 at least; rows without content are left out."""

    geometry: "Geometry"
    """Of the layer; for rotated neurons as if it neither normalised nor rotated."""
    pattern: Float[Tensor, "head query key"]
    scores: Float[Tensor, "head query key"]
    """Raw scores R = q̃ · k̃ / m, before soft cap, biases and mask."""
    queries: Float[Tensor, "head d_head query"]
    """q̃, rotated."""
    keys: Float[Tensor, "group d_head key"]
    """k̃, rotated."""
    query_neurons: Coefficients
    key_neurons: Coefficients
    positions: Int[Tensor, " query"] | None
    """The position of each row where a query sees no later key; None where it may see all."""

    @property
    def rows(self) -> int:
        """Queries that are scored."""
        return self.pattern.shape[1]

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key head."""
        return len(self.queries) // len(self.keys)

    @cached_property
    def pair(self) -> Int[Tensor, " d_head"]:
        """The coordinate that rotation mixes each coordinate with (itself where it is not rotated)."""
        rotary, keys = self.geometry.rotary, self.keys
        return rotary.pair if rotary else torch.arange(keys.shape[1], device=keys.device)

    def with_rotated_neurons(self) -> "Attention":
        """Coordinates of q̃ and k̃ as neurons: Δ_ij = q̃_id k̃_jd / m, as if nothing normalised or rotated them."""
        sides = (self.queries, self.keys)
        neurons = [Coefficients(torch.zeros_like(x), x / self.geometry.scale, torch.zeros_like(x)) for x in sides]
        geometry = replace(self.geometry, rotary=None, query_gain=None, key_gain=None, across_heads=False)
        return replace(self, geometry=geometry, query_neurons=neurons[0], key_neurons=neurons[1])

    def parts(self, neurons: Coefficients) -> Sequence[Float[Tensor, "head d_head pos"]]:
        """The coefficients of a neuron's coordinate and, where there is rotation, of its partner."""
        return (neurons.direct, neurons.paired) if self.geometry.rotary else (neurons.direct,)

    def row_blocks(self, size: int) -> Iterator[slice]:
        """All scored rows, ``size`` at a time."""
        return (slice(start, start + size) for start in range(0, self.rows, size))

    def seen_keys(self, rows: slice) -> slice:
        """The keys that these rows can see."""
        return slice(0, self.keys.shape[-1] if self.positions is None else int(self.positions[rows][-1]) + 1)


@dataclass(frozen=True)
class Geometry:
    """What turns q into q̃ in one layer: normalisation, clipping, rotation, scale and cap, read from the model."""

    scale: float
    cap: float | None
    clip: float | None
    rotary: Rotary | None
    query_gain: Tensor | None
    key_gain: Tensor | None
    eps: float
    across_heads: bool
    """Whether normalisation runs over all heads, so that a neuron rescales the other heads' scores too."""
    causal: bool
    sinks: bool
    """Whether every row also attends to a sink, which has a score but no key."""
    rotated_neurons: bool = False
    """Whether a neuron is a coordinate of q̃ and k̃, after normalisation and rotation (as in the paper)."""

    @property
    def normalises(self) -> bool:
        """Whether a neuron rescales the others of its head; without it ``shrink`` is zero."""
        return self.query_gain is not None

    @classmethod
    def of(cls, model: HookedModel, layer: int, *, rotated_neurons: bool = False) -> "Geometry":
        """Read one layer; ValueError for scores that depend on q and k in a way without a closed form here."""
        cfg, attn = model.cfg, model.blocks[layer].attn
        cap = getattr(cfg, "attn_scores_soft_cap", -1.0) or -1.0
        clip = getattr(cfg, "clip_qkv", None)
        query_norm, key_norm = getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)
        if clip is not None and query_norm is not None:
            raise ValueError(f"{cfg.model_name} clips normalised queries: their neurons have no closed form here.")
        rotary = Rotary(model, layer) if cfg.positional_embedding_type == "rotary" else None
        gains = [None if norm is None else norm_gain(model, norm) for norm in (query_norm, key_norm)]
        return cls(
            scale=attention_scale(model, layer),
            cap=float(cap) if cap > 0 else None,
            clip=clip,
            rotary=rotary,
            query_gain=gains[0],
            key_gain=gains[1],
            eps=0.0 if query_norm is None else norm_eps(query_norm),
            across_heads=gains[0] is not None and gains[0].numel() != cfg.d_head,
            causal=getattr(cfg, "attention_dir", "causal") == "causal",
            sinks=bool(getattr(cfg, "use_attention_sinks", False)),
            rotated_neurons=rotated_neurons,
        )

    def documents(self, seen: Activations, batch: TokenBatch) -> Iterator[Attention]:
        """Every document of a batch, from what ``READS`` showed, without its padding."""
        for i, length in enumerate(batch.lengths):
            q, k, pattern = (seen[name][i] for name in READS)
            yield self.attention(q[:length], k[:length], pattern[:, :length, :length], batch.content[i, :length])

    def attention(
        self,
        q: Float[Tensor, "pos head d_head"],
        k: Float[Tensor, "pos group d_head"],
        pattern: Float[Tensor, "head pos pos"],
        content: Bool[Tensor, " pos"],
    ) -> Attention:
        """One document."""
        positions, (rows,) = torch.arange(len(content), device=q.device), content.nonzero(as_tuple=True)
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            rows = slice(first, last + 1)  # which copies nothing
        queries, query_neurons = self._side(at_least_float32(q[rows]), self.query_gain, positions[rows])
        keys, key_neurons = self._side(at_least_float32(k), self.key_gain, positions)
        by_group = rearrange(queries, "(group head) d query -> group head query d", group=len(keys))
        scores = by_group @ (keys / self.scale)[:, None]
        wide = at_least_float32(pattern[:, rows])
        if wide.dtype != pattern.dtype and not self.sinks:
            wide = wide / wide.sum(-1, keepdim=True)  # rows of half precision add up to 1 only roughly
        attention = Attention(
            geometry=self,
            pattern=wide,
            scores=rearrange(scores, "group head query key -> (group head) query key"),
            queries=queries,
            keys=keys,
            query_neurons=query_neurons,
            key_neurons=key_neurons,
            positions=positions[rows] if self.causal else None,
        )
        return attention.with_rotated_neurons() if self.rotated_neurons else attention

    def _side(
        self, x: Float[Tensor, "pos head d_head"], gain: Tensor | None, positions: Int[Tensor, " pos"]
    ) -> tuple[Float[Tensor, "head d_head pos"], Coefficients]:
        """x̃ for q or k, and how its neurons enter the scores."""
        if is_cpu_float32(x) and self.rotary and not (self.clip or self.across_heads):
            rotation = tuple(part.numpy() for part in (*self.rotary.coefficients(positions, x), self.rotary.pair))
            gains = np.empty(0, np.float32) if gain is None else gain.numpy()
            eps, scale = np.float32(self.eps), np.float32(self.scale)
            with threads():
                arrays = normalise_and_rotate(x.contiguous().numpy(), gains, eps, rotation, scale)
            rotated, *parts = torch.from_numpy(arrays).mT
            return rotated, Coefficients(*parts)
        x = rearrange(x, "pos head d_head -> head d_head pos").contiguous()
        if gain is None:
            x_hat = x if self.clip is None else x.clamp(-self.clip, self.clip)
            shrink, grown = torch.zeros_like(x), x_hat
        else:
            x_hat, shrink = self._normalised(x, gain)
            grown = torch.addcmul(x_hat, x_hat, shrink, value=-1)  # ρ x̂
        if self.rotary is None:
            return x_hat, Coefficients(shrink, grown / self.scale, torch.zeros_like(grown))
        cosine, sine = (part.mT for part in self.rotary.coefficients(positions, x))
        rotated = (x_hat * sine).index_select(1, self.rotary.pair).addcmul_(x_hat, cosine)
        return rotated, Coefficients(shrink, grown * (cosine / self.scale), grown * (sine / self.scale))

    def _normalised(
        self, x: Float[Tensor, "head d_head pos"], gain: Tensor
    ) -> tuple[Float[Tensor, "head d_head pos"], Float[Tensor, "head d_head pos"]]:
        """x̂ and 1 − ρ = 1 − (1 − share)^(−1/2), where share = x² / (D ms) is a coordinate's part of the mean square."""
        axes = (0, 1) if self.across_heads else (1,)
        squares = x.square()
        width = math.prod(x.shape[axis] for axis in axes)
        total = squares.sum(axes, keepdim=True) + width * self.eps
        x_hat = (x * (total / width).rsqrt()).mul_(gain.view(len(x), -1, 1) if self.across_heads else gain[:, None])
        lost = squares.div_(-total)  # −share
        root = (1 + lost).sqrt_()
        # 1 − 1 / root, without cancellation for small shares
        return x_hat, lost.div_(root.addcmul_(root, root))
