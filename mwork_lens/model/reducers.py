"""What the batches of a plan add up to, the same to the last bit however they were dealt out and merged."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from types import EllipsisType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..store import Result, storable
from .forward import Plan, TokenBatch

UNIT, FRACTION = 16, 54
"""The high word of a sum counts 2⁻¹⁶, its low word 2⁻⁵⁴ of these."""

ROWS_AT_ONCE, LARGEST, LIMIT = 256, 2.0**37, 2**62
"""So many addends of less than ``LARGEST`` fit 64-bit words together with a sum whose high word is below ``LIMIT``."""


@storable
@dataclass(frozen=True)
class ExactSum:
    """Sums of floats in fixed point, as integers: the order of the addends changes no bit.

    Each addend is rounded to a multiple of 2⁻⁷⁰ (8e-22), and a sum is exact from there on.
    """

    high: Int[Tensor, "*shape"]
    """Multiples of 2⁻¹⁶."""
    low: Int[Tensor, "*shape"]
    """Multiples of 2⁻⁷⁰, from 0 to 2⁵⁴ - 1."""

    @classmethod
    def zeros(cls, *shape: int) -> "ExactSum":
        """Sums of nothing."""
        high, low = torch.zeros(2, *shape, dtype=torch.int64)
        return cls(high, low)

    @classmethod
    def of(cls, addends: Float[Tensor, "row *shape"]) -> "ExactSum":
        """The sums over the first axis; ValueError for what is not finite, OverflowError from 2³⁷ (1.4e11) on."""
        return cls.checked(*on_cpu(fixed_point(addends)))

    @classmethod
    def checked(cls, high: Tensor, low: Tensor, extremes: Tensor) -> "ExactSum":
        """What :func:`fixed_point` gave, or the errors of :meth:`of`."""
        _require_in_range(*extremes.view(torch.float64).tolist())
        return cls(high, low)

    def add(self, other: "ExactSum", at: int | EllipsisType = ...) -> None:
        """Add other sums to these, or to those of one index; at 2⁴⁶ (7e13) OverflowError, and nothing is added."""
        low = self.low[at] + other.low
        high = self.high[at] + other.high + (low >> FRACTION)
        if high.numel() and not -LIMIT < int(high.min()) <= int(high.max()) < LIMIT:
            raise OverflowError(f"A sum has reached {LIMIT >> UNIT:.0e} and does not fit its two words any more.")
        self.high[at], self.low[at] = high, low & (2**FRACTION - 1)

    def value(self) -> Float[Tensor, "*shape"]:
        """The sums as float64."""
        carry = self.low >> (FRACTION - 1)  # a low word of at most 53 bits is exact in float64
        low = self.low - (carry << FRACTION)
        return (self.high + carry).double() / 2.0**UNIT + low.double() / 2.0 ** (UNIT + FRACTION)


def fixed_point(addends: Float[Tensor, "row *shape"]) -> tuple[Tensor, Tensor, Tensor]:
    """Both words of the sums over the first axis, and the bits of the least and the largest addend, on their device."""
    high = low = torch.zeros(addends.shape[1:], dtype=torch.int64, device=addends.device)
    for rows in addends.split(ROWS_AT_ONCE):
        scaled = rows.double() * 2.0**UNIT
        whole = scaled.trunc()
        fraction = scaled.sub_(whole).mul_(2.0**FRACTION).round_()
        low = low + fraction.to(torch.int64).sum(0)
        high = high + whole.to(torch.int64).sum(0) + (low >> FRACTION)
        low = low & (2**FRACTION - 1)
    extremes = torch.stack(addends.aminmax()).double() if addends.numel() else high.new_zeros(2).double()
    return high, low, extremes.view(torch.int64)


def on_cpu(tensors: Sequence[Int[Tensor, "..."] | Bool[Tensor, "..."]]) -> list[Int[Tensor, "..."]]:
    """Tensors in one transfer, from the device of the last."""
    device = tensors[-1].device
    flat = torch.cat([tensor.flatten().long().to(device) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _require_in_range(low: float, high: float) -> None:
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(
            "What the model computes is not finite: its weights hold NaN or infinite values, or its dtype overflows."
        )
    if not -LARGEST < low <= high < LARGEST:
        raise OverflowError(f"Addends from {low:.1e} to {high:.1e} are too large to be summed exactly.")


@dataclass(frozen=True)
class Reducer(Result):
    """What some batches of a plan add up to, in one language or in all.

    Batches may be dealt over several reducers in any way and merged in any order. Fields of subclasses are tensors of
    integers, or have an ``add`` (as exact sums do), or are dicts of these.
    """

    plan: str
    """The hash of the plan."""
    language: str
    """Empty for all languages."""
    made_with: str
    """What decides the numbers besides the plan: the model and the settings, as text."""
    batches: Bool[Tensor, " batch"]
    """Which of the plan's batches are in it."""

    @staticmethod
    def start(plan: Plan, language: str = "", made_with: str = "") -> dict[str, Any]:
        """These fields for a reducer that no batch is in yet."""
        batches = torch.zeros(len(plan), dtype=torch.bool)
        return {"plan": plan.hash, "language": language, "made_with": made_with, "batches": batches}

    def claim(self, batch: TokenBatch) -> None:
        """Mark a batch as one that is in this reducer; ValueError if it is already, or is of another language."""
        mask = torch.zeros_like(self.batches)
        mask[batch.number] = True
        self._claim(self.plan, batch.language if self.language else "", mask)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is in it, as the tensors that merging changes."""
        return [tensor for field in fields(self) for tensor in _tensors(getattr(self, field.name))]

    def merge(self, other: "Reducer") -> None:
        """Add what another reducer holds, or nothing.

        Raises:
            ValueError: if it is of another kind, plan, language, model or settings, or a batch is in both.
            OverflowError: if a sum would become too large.
        """
        if type(other) is not type(self) or other.made_with != self.made_with:
            ours, theirs = (f"{type(each).__name__} made with {each.made_with!r}" for each in (self, other))
            raise ValueError(f"{theirs} does not add to {ours}.")
        names = [field.name for field in fields(self) if field.name not in Reducer.__dataclass_fields__]
        for name in names:
            _add(copy.deepcopy(getattr(self, name)), getattr(other, name))  # refuses before anything is added
        self._claim(other.plan, other.language, other.batches)
        for name in names:
            _add(getattr(self, name), getattr(other, name))

    def add_text(self, other: "Reducer") -> None:
        """Add what one of another plan holds, of other text; an OverflowError if a sum would become too large."""
        for field in fields(self):
            if field.name not in Reducer.__dataclass_fields__:
                _add(getattr(self, field.name), getattr(other, field.name))

    def _claim(self, plan: str, language: str, batches: Bool[Tensor, " batch"]) -> None:
        if (plan, language) != (self.plan, self.language):
            raise ValueError(f"{language!r} of plan {plan} does not add to {self.language!r} of plan {self.plan}.")
        twice = (self.batches & batches).nonzero().flatten().tolist()
        if twice:
            raise ValueError(f"Batch {twice[0]} of plan {plan} would count twice.")
        self.batches.logical_or_(batches)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, str):
        parts = value if isinstance(value, Mapping) else vars(value)
        yield from chain.from_iterable(map(_tensors, parts.values()))


def _add(ours: Any, theirs: Any) -> None:
    if isinstance(ours, Mapping):
        for name, value in ours.items():
            _add(value, theirs[name])
    elif isinstance(ours, Tensor):
        ours.add_(theirs)
    else:
        ours.add(theirs)
