"""Whether a value is what the annotation of a field says, all that is within it included; records are TypedDicts."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

ABSTRACT = ("*", "...")
"""What stands for any number of axes."""


def fits(value: Any, annotation: Any) -> bool:
    """NaN is a number here, a whole number is one of any kind, and True is none; what has no class is not looked at."""
    if is_typeddict(annotation):
        return isinstance(value, Mapping) and not _misfits(value, annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if hasattr(annotation, "array_type"):
        return _is_array(value, annotation)
    if origin is not None and issubclass(origin, Mapping):
        keys, values = parts
        return isinstance(value, origin) and all(fits(k, keys) and fits(v, values) for k, v in value.items())
    if origin is tuple and ... not in parts:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, origin) and not isinstance(value, str) and all(fits(each, parts[0]) for each in value)
    if annotation in (int, float):
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return annotation is Any or not isinstance(annotation, type) or isinstance(value, annotation)


def require_record(value: Mapping[str, Any], record: type, what: str) -> None:
    """Refuse what lacks an entry that a TypedDict requires, or holds something else there; ``what`` it is, in words."""
    if misfits := _misfits(value, record):
        name = misfits[0]
        wrong = f"cannot be {value[name]!r:.60}" if name in value else "is missing"
        raise ValueError(f"{name!r} of {what} {wrong}.")


def _misfits(value: Mapping[str, Any], record: type) -> list[str]:
    required: frozenset[str] = getattr(record, "__required_keys__")  # noqa: B009 (no attribute of every type)
    names = [name for name in get_type_hints(record) if name in value or name in required]
    return [name for name in names if name not in value or not fits(value[name], get_type_hints(record)[name])]


def _is_array(value: Any, annotation: Any) -> bool:
    if not isinstance(value, annotation.array_type) or str(value.dtype).removeprefix("torch.") not in annotation.dtypes:
        return False
    return any(sign in annotation.dim_str for sign in ABSTRACT) or value.ndim == len(annotation.dim_str.split())
