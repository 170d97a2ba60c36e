"""The files of a checkpoint: what they hold that a transformers model does not show once it is read."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where transformers looks for weights, in its order; an index names the files of several parts."""
COMPARED = 16
"""Values of each tensor by which two sets of weights are told apart."""
QUANTISED = "Quantised weights have no columns to score or switch off: load the model dequantised."
ADAPTERS = "merge them into the model first (merge_and_unload of peft) and load what comes of it"


def folder_of(place: str | Path) -> Path | None:
    """Where the files of a directory or of a hub name that was read are on this machine; None for none."""
    from transformers.utils.hub import cached_file

    if Path(place).is_dir():
        return Path(place)
    config = cached_file(str(place), "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(config).parent if config else None


def require_no_adapters(folder: Path) -> None:
    """A ValueError for a folder with adapters, which belong to the weights or, where these are missing, to others'."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    of = f" of {base}" if base else ""
    raise ValueError(f"{folder} holds adapters{of} (adapter_config.json): {ADAPTERS}.")


def check_files(folder: Path) -> None:
    """Refuse generation settings that cannot be read, and stored weights of 8 bits, which would be taken for floats;
    warn of several sets of weights that differ."""
    if (path := folder / "generation_config.json").is_file():  # without which nothing would say what ends a text
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}).") from error
    sets = {name: dict(_tensors(folder, name)) for name in NAMES if (folder / name).is_file()}
    for name, tensor in next(iter(sets.values()), {}).items():
        if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool and tensor.ndim in (2, 3):  # 4: a mask
            raise ValueError(f"{folder} stores {name} as {str(tensor.dtype).removeprefix('torch.')}. {QUANTISED}")
    read, *others = sets or [""]
    for other in others:
        if any(_differ(sets[read][name], sets[other][name]) for name in sets[read].keys() & sets[other].keys()):
            warnings.warn(
                f"{folder} holds two models: {other} has other weights than {read}, which is read.", stacklevel=7
            )


def _differ(one: Tensor, other: Tensor) -> bool:
    """By some of their values; those of another precision are rounded."""
    if one.shape != other.shape:
        return True
    rounded = 0.0 if one.dtype == other.dtype else 0.01
    pairs = (each.select(0, len(each) // 2).flatten() if each.ndim > 1 else each for each in (one, other))
    ours, theirs = (each[:COMPARED].float() for each in pairs)
    return not torch.allclose(ours, theirs, rtol=rounded, atol=0, equal_nan=True)


def _tensors(folder: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a set of weights, which are mapped and not read; none where that cannot be done."""
    with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError):
        path = folder / name
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"] if path.suffix == ".json" else {"": name}
        for file in sorted(set(index.values())):
            yield from _mapped(folder / file)


def _mapped(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  (not a mapping)
    else:
        held = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        yield from ((name, value) for name, value in held.items() if isinstance(value, Tensor))
