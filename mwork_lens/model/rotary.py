"""Rotary embedding, measured from the model's own function."""

import inspect
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from .architecture import (
    HookedModel,
    at_least_float32,
    device_of_layer,
    dtype_of,
    original,
    rope_boundaries,
    wide_dtype,
    wrapped_model,
)


def _rotation(model: HookedModel, layer: int) -> Callable[[Tensor], Tensor]:
    """The model's rotary function, as x [1, pos, head, d_head] at positions 0, 1, … → the same, rotated."""
    attn = model.blocks[layer].attn
    if hasattr(attn, "apply_rotary"):
        return attn.apply_rotary
    module = original(attn)
    apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    rotary = getattr(getattr(wrapped_model(model), "base_model", None), "rotary_emb", None)
    if apply is None or (rotary is None and not hasattr(module, "embed_positions")):
        raise ValueError(f"{model.cfg.model_name}: the rotary function of {type(module).__name__} is unknown.")
    rotary = original(rotary)
    by_layer = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    layer_type = {"layer_type": module.config.layer_types[layer]} if by_layer else {}
    names = list(inspect.signature(apply).parameters)
    sines_first = names.index("sin") < names.index("cos")  # as in GPT-J: one sine for two coordinates, positions first

    def tables(x: Tensor) -> Iterable[Tensor]:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        if rotary is None:  # as in CodeGen, where each layer has a table
            return module.embed_positions.to(x.device)[positions].chunk(2, -1)
        return rotary(x, positions, **layer_type)

    def rotated(x: Tensor) -> Tensor:
        first, second = (table.to(x) for table in tables(x))  # made on another device, in a model over several
        width = first.shape[-1] * (2 if sines_first else 1)
        part, rest = x.split([width, x.shape[-1] - width], -1)
        if sines_first:
            return torch.cat([apply(part, first, second), rest], -1)
        part = rearrange(part, "batch pos head d -> batch head pos d")
        part = apply(part, part, first, second)[0] if names.index("cos") == 2 else apply(part, first, second)
        return torch.cat([rearrange(part, "batch head pos d -> batch pos head d"), rest], -1)

    return rotated


class Rotary:
    """What the model's own rotary function does to single coordinates: e_d goes to c e_d + s e_pair(d)."""

    def __init__(self, model: HookedModel, layer: int) -> None:
        self._apply = _rotation(model, layer)
        self._boundaries, self._context = rope_boundaries(model), model.cfg.n_ctx
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        # rotate every basis vector at position 1 and see where it goes
        # beside the layer, as a model may lie over several cards
        device = device_of_layer(model, layer)
        basis = torch.eye(model.cfg.d_head, device=device, dtype=wide_dtype(dtype_of(model)))
        images = self._rotate(torch.stack([basis, basis]))[1].fill_diagonal_(0).abs()
        itself = torch.arange(len(basis), device=basis.device)
        self.pair: Int[Tensor, " d_head"] = torch.where(images.amax(-1) > 0, images.argmax(-1), itself)

    def _rotate(self, x: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_head"]:
        return at_least_float32(self._apply(x[None])[0])

    def coefficients(
        self, positions: Int[Tensor, " pos"], like: Tensor, length: int
    ) -> tuple[Float[Tensor, "pos d_head"], Float[Tensor, "pos d_head"]]:
        """c and s of every coordinate at these positions of a text with so many tokens."""
        cosine, sine = self.of_text(length, like)
        first, needed = int(positions[0]), int(positions[-1]) + 1
        rows = slice(first, needed) if needed - first == len(positions) else positions
        return cosine[rows], sine[rows]

    def of_text(self, length: int, like: Tensor) -> tuple[Float[Tensor, "pos d_head"], Float[Tensor, "pos d_head"]]:
        """c and s of every coordinate at all positions of a text with so many tokens."""
        side = bisect_left(self._boundaries, length)
        table = self._tables.get(side)
        if table is None or len(table[0]) < length:
            table = self._tables[side] = self._measure(self._ahead(side, length, like.device), like)
        return table[0][:length], table[1][:length]

    def _ahead(self, side: int, length: int, device: torch.device) -> int:
        """Positions to measure at once: on a GPU, where operations are dear, up to twice as many as are needed."""
        last = [*self._boundaries, self._context][side]
        return length if device.type == "cpu" else max(length, min(2 ** (length - 1).bit_length(), last))

    def _measure(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        itself = torch.arange(len(self.pair), device=like.device)
        first = (itself <= self.pair).to(like.dtype)
        # one member of each pair at a time: its image has c in its place and s in its partner's
        probes = repeat(torch.stack([first, 1 - first]), "which d -> pos which d", pos=positions)
        images = self._rotate(probes)
        member = torch.where(first.bool(), 0, 1)
        return images[:, member, itself], torch.where(itself == self.pair, 0, images[:, member, self.pair])
