"""Where a model's parts are put, on one device or on several and on disk: decided before any weight is read."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..store import processes
from .checkpoints import first_line, quiet_transformers, skeleton

logger = logging.getLogger("mwork_lens")

Place = int | str | torch.device
DeviceMap = Literal["auto"] | Mapping[str, Place]
"""By transformers' names of modules, where each is put: a device, or ``"disk"``."""
DISK = "disk"
MaxMemory = Mapping[int | str, int | str]
"""By number of a GPU, or ``"cpu"``, how much may be put there, e.g. ``"20GiB"``."""


@dataclass(frozen=True)
class Placement:
    """Where a model is put."""

    device: torch.device
    """All of it, or where its parts do not say otherwise."""
    parts: Mapping[str, str] | None = None
    """By transformers' names of modules, where they are put on several devices or on disk; else None."""
    split: int = 1
    """Over how many GPUs a HookedTransformer is divided in place of these parts; 1: it has no part in this."""

    @classmethod
    def of(
        cls, config: Any, dtype: torch.dtype, title: str, device_map: DeviceMap, max_memory: MaxMemory | None
    ) -> "Placement":
        """That of a transformers model with this configuration; one line of the log says it.

        Raises:
            ValueError: for parts that the model has not, or that are left out, devices that are not there, tied weights
                on two of them, and what TransformerLens cannot run.
        """
        theirs = skeleton(config, dtype)
        if isinstance(device_map, str):
            wanted = _inferred(theirs, dtype, max_memory)
        else:
            _require_parts(theirs, device_map, title)
            wanted = place_by_part(theirs, device_map)
        parts: dict[str, str] = {name: _spelled(place) for name, place in wanted.items()}
        _require_places(theirs, parts, title)
        places = list(dict.fromkeys(parts.values()))
        logger.info("Placing %s: %s", title, "; ".join(_listed(parts, place) for place in places))
        if len(places) == 1 and places[0] != DISK:
            return cls(torch.device(places[0]))
        _require_possible(parts, title)
        device = next((torch.device(place) for place in places if place != DISK), torch.device("cpu"))
        whole_gpus = {*places} == {f"cuda:{number}" for number in range(len(places))}
        return cls(device, parts, len(places) if whole_gpus and device_map == "auto" and max_memory is None else 1)

    def put(self, theirs: Any) -> Any:
        """A transformers model, moved there; one that was read with these parts is there."""
        if self.parts is None:
            return theirs.to(self.device)
        if not hasattr(theirs, "_hf_hook"):
            from accelerate import dispatch_model

            dispatch_model(theirs, device_map=dict(self.parts), skip_keys=theirs._skip_keys_device_placement)
        return theirs


def take_back(theirs: Any) -> Any:
    """A transformers model on the CPU, wherever its parts were in memory."""
    from accelerate.hooks import remove_hook_from_module

    return remove_hook_from_module(theirs, recurse=True).to("cpu")


def device_at(place: Place | None) -> torch.device:
    """The device, or TransformerLens's default; a ValueError for one that is not there."""
    from transformer_lens.utilities.devices import get_device

    try:
        device = torch.device((processes.default_device() or get_device()) if place is None else place)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        there = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        raise ValueError(f"There is no device {place!s} here: {first_line(error)}. Use e.g. {there}.") from error
    if device.type == "meta":
        raise ValueError("The device 'meta' holds no numbers: a model there cannot be run.")
    return device


def _spelled(place: Place) -> str:
    """The disk, or a device by its number, as ``cuda`` leaves that open."""
    return DISK if place == DISK else str(torch.empty(0, device=device_at(place)).device)


def _inferred(theirs: nn.Module, dtype: torch.dtype, max_memory: MaxMemory | None) -> dict[str, Place]:
    """As accelerate spreads a model: evenly over GPUs, the rest on the CPU and what has no room there on disk."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    alike: dict[str, Any] = {"no_split_module_classes": list(theirs._no_split_modules or ()), "dtype": dtype}  # pyright: ignore
    try:
        with quiet_transformers():
            memory = get_balanced_memory(theirs, dict(max_memory) if max_memory else None, **alike)
            return infer_auto_device_map(theirs, memory, **alike)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"max_memory={dict(max_memory or {})} cannot be kept: {first_line(error)}. Give memory by device, e.g. "
            "{0: '20GiB', 'cpu': '60GiB'}."
        ) from error


def place_by_part(theirs: nn.Module, device_map: Mapping[str, Place]) -> dict[str, Place]:
    """The same map without a part inside of another: one of which something is put elsewhere is taken apart."""

    def below(module: nn.Module, name: str, place: Place | None) -> Iterator[tuple[str, Place]]:
        place, inner = device_map.get(name, place), f"{name}." if name else ""
        if place is not None and not any(part.startswith(inner) for part in device_map if part != name):
            yield name, place
            return
        for child, part in module.named_children():
            yield from below(part, inner + child, place)

    return dict(below(theirs, "", None))


def _require_parts(theirs: nn.Module, device_map: Mapping[str, Place], title: str) -> None:
    """A ValueError for names that a model does not have."""
    names = [name for name, _ in theirs.named_modules()]
    if unknown := [part for part in device_map if part not in names]:
        raise ValueError(
            f"device_map names {unknown[0]!r}, which {title} does not have: its parts are called "
            f"{', '.join(names[1:5])} and so on; '' (on the command line, *) is all that is not named."
        )


def _require_places(theirs: nn.Module, parts: Mapping[str, str], title: str) -> None:
    """A ValueError for weights without a place, or one weight that would have two."""
    places: dict[int, tuple[str, str]] = {}
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        place = next((each for part, each in parts.items() if f"{name}.".startswith(f"{part}." if part else "")), None)
        if place is None:
            raise ValueError(f"device_map gives {name} of {title} no place: name a part that holds it, or '' for all.")
        other, there = places.setdefault(id(parameter), (name, place))
        if there != place:
            raise ValueError(
                f"device_map puts {other} of {title} on {there} and {name} on {place}, which are one weight: give both "
                "the same place."
            )


def _require_possible(parts: Mapping[str, str], title: str) -> None:
    """A ValueError for what the installed TransformerLens cannot run."""
    from transformer_lens.utilities.multi_gpu import resolve_device_map

    try:
        resolve_device_map(None, dict(parts), None)
    except ValueError as error:
        raise ValueError(
            f"{title} would lie on {' and '.join(dict.fromkeys(parts.values()))}, which this TransformerLens does not "
            f"run ({first_line(error).split('. ')[0]}): GPUs alone or the CPU alone work with every version, the CPU "
            "with layers on disk from 4.3 on. Give another device_map, more max_memory or a smaller dtype."
        ) from error


def _listed(parts: Mapping[str, str], place: str) -> str:
    names = [name or "all" for name, each in parts.items() if each == place]
    return f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''} on {place}"
