"""Where a run of tuning stands, written so that a killed run goes on to the same weights, bit for bit."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..store import Result
from .masked import MaskedParameter
from .result import Step


@dataclass(frozen=True, eq=False)
class Checkpoint(Result, kind="tuning_checkpoint"):
    """What a run of tuning goes on from."""

    identity: Mapping[str, Any]
    """What decides the run: model, settings and texts."""
    steps: Sequence[Step]
    """Those that were taken."""
    measured: Mapping[int, float]
    """Held-out loss in nats per token, by the number of steps taken before it."""
    starting: Mapping[str, Tensor]
    """By weight: the values before tuning."""
    masters: Mapping[str, Tensor]
    """By weight: the values that the optimiser has reached."""
    optimiser: Mapping[str, Mapping[str, Tensor]]
    """By weight: the optimiser's state."""
    best: Mapping[str, Tensor] | None
    """By weight: the values with the lowest held-out loss so far (early stopping)."""

    def write(self, folder: Path) -> None:
        """Write ``folder/step-N`` and then remove the one before; a kill at any moment leaves one that is whole."""
        target = folder / f"step-{len(self.steps):06d}"
        if target.exists():
            return
        self.save(target)
        for older in checkpoints_in(folder)[:-1]:
            shutil.rmtree(older)

    @classmethod
    def resume(
        cls,
        folder: Path,
        parts: Sequence[MaskedParameter],
        optimiser: torch.optim.Optimizer,
        identity: Mapping[str, Any],
    ) -> "Checkpoint | None":
        """The last checkpoint, with parts and optimiser put where it has them; None if there is none.

        Raises:
            ValueError: if the checkpoint is of a run with other settings, or of other starting weights.
        """
        if not (paths := checkpoints_in(folder)):
            return None
        checkpoint = cls.load(paths[-1])
        checkpoint._require_same(paths[-1], parts, identity)
        for part in parts:
            part.master.data.copy_(checkpoint.masters[part.name])
            state, device = checkpoint.optimiser[part.name], part.master.device
            optimiser.state[part.master] = {k: v if k == "step" else v.to(device) for k, v in state.items()}
            part.write()
        return checkpoint

    def _require_same(self, path: Path, parts: Sequence[MaskedParameter], identity: Mapping[str, Any]) -> None:
        """Refuse other settings, and weights that are neither those before tuning nor those of the checkpoint."""
        for key, value in identity.items():
            if self.identity.get(key) != value:
                raise ValueError(
                    f"{path} was written by a run with {key}={self.identity.get(key)!r}, not {value!r}: choose another "
                    "folder, or the same settings to go on with it."
                )
        for part in parts:
            current = part.read().cpu()
            reached = self.masters[part.name].to(current.dtype)
            if not any(torch.equal(current, values) for values in (self.starting[part.name], reached)):
                raise ValueError(
                    f"{path} goes on from other weights than the model has (first in {part.name}): give it the model "
                    "that the run started from."
                )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    return sorted(folder.glob("step-*"))
