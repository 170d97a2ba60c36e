"""Where a run of tuning stands, written so that a killed run goes on to the same weights, bit for bit."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..store import read_result, write_result
from .entries import Trained
from .result import Step

KIND = "tuning_checkpoint"


def save_checkpoint(
    folder: Path,
    parts: Sequence[Trained],
    optimiser: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    identity: Mapping[str, Any],
    starting: Mapping[str, Tensor],
    best: Sequence[Tensor] | None,
) -> None:
    """Write ``folder/step-N`` and then remove the one before; a kill at any moment leaves one that is whole."""
    steps: Sequence[Step] = progress["steps"]
    target = folder / f"step-{len(steps):06d}"
    if target.exists():
        return
    tensors = {f"starting/{name}": values for name, values in starting.items()}
    for i, part in enumerate(parts):
        tensors[f"master/{part.entries.name}"] = part.master.detach()
        for key, value in optimiser.state.get(part.master, {}).items():
            tensors[f"{key}/{part.entries.name}"] = value
        if best is not None:
            tensors[f"best/{part.entries.name}"] = best[i]
    cfg = {"identity": dict(identity), "progress": {**progress, "steps": [asdict(step) for step in steps]}}
    write_result(target, KIND, cfg, tensors)
    for older in written(folder)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(
    folder: Path, parts: Sequence[Trained], optimiser: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], list[Tensor] | None] | None:
    """Put parts and optimiser where the last checkpoint has them; None if there is none.

    Returns:
        The progress, the starting values by weight, and the best values so far (early stopping).

    Raises:
        ValueError: if the checkpoint is of a run with other settings, or of other starting weights.
    """
    if not (found := written(folder)):
        return None
    last = found[-1]
    cfg, tensors = read_result(last, KIND)
    _require_same(last, cfg["identity"], identity)
    for part in parts:
        name, device = part.entries.name, part.master.device
        current = part.entries.read(part.entries.parameter.detach()).cpu()
        reached = tensors[f"master/{name}"].to(current.dtype)
        if not any(torch.equal(current, values) for values in (tensors[f"starting/{name}"], reached)):
            raise ValueError(
                f"{last} goes on from other weights than the model has (first in {name}): give it the model "
                "that the run started from."
            )
        part.master.data.copy_(tensors[f"master/{name}"])
        state = {
            key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors
        }
        optimiser.state[part.master] = {k: v if k == "step" else v.to(device) for k, v in state.items()}
        part.write()
    progress = {**cfg["progress"], "steps": [Step(**step) for step in cfg["progress"]["steps"]]}
    starting = {part.entries.name: tensors[f"starting/{part.entries.name}"] for part in parts}
    best = [tensors[f"best/{p.entries.name}"] for p in parts] if any(n.startswith("best/") for n in tensors) else None
    return progress, starting, best


def written(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    return sorted(folder.glob("step-*"))


def _require_same(path: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path} was written by a run with {key}={found.get(key)!r}, not {value!r}: choose another folder, or "
                "the same settings to go on with it."
            )
