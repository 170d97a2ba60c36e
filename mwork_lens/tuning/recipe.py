"""How to tune: the settings of one run, by default the paper's, and the learning rate of each step."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor

from ..settings import RecipeSettings
from .objective import Layout


@dataclass(frozen=True)
class Recipe(RecipeSettings):
    """All settings that decide what tuning does to the weights."""

    layout: Layout = "padded"
    """A row a text, or all texts end to end and cut into rows (where attention then crosses from text to text)."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    clip: float = 0.3
    """Largest norm of the gradient of the selected entries."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "batch_size", "epochs", "micro_batch_size", "steps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be above 0.")
        if self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative, warmup={self.warmup} in [0, 1).")
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout={self.layout!r}: it must be one of {', '.join(get_args(Layout))}.")

    def total_steps(self, rows: int) -> int:
        """Steps of the whole run over this many rows."""
        return self.steps or self.epochs * math.ceil(rows / self.batch_size)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up counted from one, then a cosine; never zero."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def rows_of(self, step: int, rows: int) -> list[int]:
        """Which rows a step reads; every pass is shuffled anew, and depends on the seed and the pass alone."""
        epoch, within = divmod(step, math.ceil(rows / self.batch_size))
        return self.order(rows, epoch)[within * self.batch_size :][: self.batch_size].tolist()

    def order(self, rows: int, epoch: int) -> Int[Tensor, " row"]:
        """The order of the rows in one pass."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(rows, generator=generator)
