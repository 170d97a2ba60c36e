"""What two runs that are to be one have in common: their records, compared by name, and the identity of values."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, uint8

from .tree import encode


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a file has it: NumPy's numbers as such, anything else that JSON lacks as text, NaN as null."""
    return json.loads(json.dumps(record, default=_plain), parse_constant=lambda not_finite: None)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def digest(value: Any) -> str:
    """The identity of anything that has a stored form (SHA-256, shortened); a TypeError for what has none."""
    arrays: dict[str, Tensor] = {}
    hashed = hashlib.sha256(json.dumps(encode(value, arrays)).encode())
    for array in arrays.values():
        hashed.update(f"{array.dtype} {tuple(array.shape)}".encode())
        hashed.update(array.flatten().view(uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def require_same(saved: Any, ours: Any, path: Path, *, newer: Collection[str] = (), name: str = "") -> None:
    """A ValueError that names the first entry in which the run that is at ``path`` differs from ours.

    Args:
        saved: the record of the run that is there.
        ours: that of the run which is to go on with it.
        path: where it is.
        newer: entries that older versions did not record, wherever they are.
        name: of the entry that these records are.
    """
    if isinstance(saved, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*saved, *ours]):
            if key in saved or key not in newer:
                inner = f"{name}.{key}" if name else key
                require_same(saved.get(key), ours.get(key), path, newer=newer, name=inner)
    elif saved != ours:
        texts = [json.dumps(value, ensure_ascii=False) for value in (saved, ours)]
        before, after = (text if len(text) <= 80 else f"{text[:77]}..." for text in texts)
        raise ValueError(
            f"{path} holds a run with {name} = {before}, not {after}: give the same settings to resume it, or another "
            "directory."
        )
