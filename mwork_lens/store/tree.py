"""A result's fields as a tree of JSON values, and its arrays by name.

``{"$": tag, "of": node}`` stands for what JSON lacks: arrays by name, tuples, mappings whose keys are not text, NaN,
nested dataclasses. Reading it selects among registered classes; nothing in a file is imported or executed.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .fitting import fits

TAG, OF = "$", "of"
Class = TypeVar("Class", bound=type)
_CLASSES: dict[str, Any] = {}


def storable(cls: Class) -> Class:
    """Declare that values of a dataclass may be fields of a result; its name is what files say.

    A class whose fields are not what should be written has ``to_fields(self)`` and a classmethod ``from_fields``; one
    whose fields may not go together has ``_require_whole(self)``, which raises a ValueError then.
    """
    other = _CLASSES.setdefault(cls.__name__, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"Both {other} and {cls} are to be stored under the name {cls.__name__!r}.")
    _CLASSES[cls.__name__] = cls
    return cls


def fields_of(value: Any) -> Mapping[str, Any]:
    """What is saved of a dataclass, by name."""
    if hasattr(value, "to_fields"):
        return value.to_fields()
    return {part.name: getattr(value, part.name) for part in fields(value) if part.init}


def made(name: str, values: Mapping[str, Any]) -> Any:
    """The dataclass of this name out of what :func:`fields_of` returned; a TypeError for what no field may be."""
    value = getattr(_CLASSES[name], "from_fields", _CLASSES[name])(**values)
    for field in fields(value):
        if not fits(part := getattr(value, field.name), field.type):
            raise TypeError(f"{field.name} of a {name} cannot be {part!r:.60}")
    if require_whole := getattr(value, "_require_whole", None):
        require_whole()
    return value


_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_WHOLE = (torch.uint8, torch.int16, torch.int32, torch.int64)
_NARROWER = {dtype: _WHOLE[:i] for i, dtype in enumerate(_WHOLE) if i}
_FORMS: Mapping[str, tuple[type, Any, Any]] = {
    "float": (float, str, float),
    "texts": (np.ndarray, lambda value: value.tolist(), lambda texts: np.array(texts, dtype=np.str_)),
    "path": (Path, str, Path),
    "dtype": (torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _DTYPES.__getitem__),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda bounds: range(*bounds)),
    "tuple": (tuple, list, tuple),
    "set": (set, lambda members: sorted(members, key=repr), set),
    "frozenset": (frozenset, lambda members: sorted(members, key=repr), frozenset),
    "proxy": (MappingProxyType, dict, MappingProxyType),
    "mapping": (Mapping, lambda value: [list(item) for item in value.items()], dict),
}
"""By tag: the type of its values, what writes one as something simpler, and what reads that. The first type counts."""


def encode(value: Any, arrays: dict[str, Tensor]) -> Any:
    """The node of a value; a TypeError for one that has no stored form."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list):
        return [encode(part, arrays) for part in value]
    if type(value) is dict and TAG not in value and all(isinstance(key, str) for key in value):
        return {key: encode(part, arrays) for key, part in value.items()}
    tag, simpler = _tagged(value, arrays)
    return {TAG: tag, OF: encode(simpler, arrays)}


def _tagged(value: Any, arrays: dict[str, Tensor]) -> tuple[str, Any]:
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        return name, dict(fields_of(value))
    if isinstance(value, Tensor | np.ndarray) and not _holds_text(value):
        in_numpy = isinstance(value, np.ndarray)
        if in_numpy:
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        arrays[key := str(len(arrays))] = stored = _narrowed(value.detach().cpu().contiguous())
        read_as = key if stored.dtype == value.dtype else {"key": key, "dtype": value.dtype}
        return "array" if in_numpy else "tensor", read_as
    for tag, (kind, simplified, _) in _FORMS.items():
        if isinstance(value, kind):
            return tag, simplified(value)
    raise TypeError(f"a {name} has no stored form ({value!r:.60}).")


def _narrowed(value: Tensor) -> Tensor:
    """Whole numbers in as few bytes as hold them."""
    if value.dtype not in _NARROWER or not value.numel():
        return value
    low, high = (int(end) for end in value.aminmax())
    bounds = ((dtype, torch.iinfo(dtype)) for dtype in _NARROWER[value.dtype])
    return value.to(next((dtype for dtype, of in bounds if of.min <= low and high <= of.max), value.dtype))


def _holds_text(value: Tensor | np.ndarray) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "U"


def decode(node: Any, arrays: Mapping[str, Tensor]) -> Any:
    """The value of a node."""
    if isinstance(node, list):
        return [decode(part, arrays) for part in node]
    if not isinstance(node, dict):
        return node
    if TAG not in node:
        return {key: decode(part, arrays) for key, part in node.items()}
    tag, simpler = node[TAG], decode(node[OF], arrays)
    if tag in ("tensor", "array"):
        narrow = isinstance(simpler, dict)
        array = arrays[simpler["key"]].to(simpler["dtype"]) if narrow else arrays[simpler]
        return array if tag == "tensor" else array.numpy()
    if tag not in _FORMS:
        return made(tag, simpler)
    if tag in ("tuple", "set", "frozenset") and not isinstance(simpler, list):
        raise TypeError(f"a {tag} of a {type(simpler).__name__}")  # of a range it could fill the memory
    return _FORMS[tag][2](simpler)
