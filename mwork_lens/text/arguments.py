"""Arguments and settings as callers give them, compared with their annotations: what does not fit is a ValueError."""

import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import signature
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from .choices import require_choice

LARGEST = 2**63 - 1
"""What PyTorch takes as a whole number."""
LEAST = {"seed": 0, "seeds": 0, "size": 0, "draws": 1}
"""By the name of an argument: the least number, where no function has a check of its own."""
_NAMES: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a string", "strings"),
    type(None): ("None", "None"),
}
"""What one value and what several are called."""


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that their annotations do not have; at the beginning of a function, its ``locals()``.

    Numbers are Python's or NumPy's, and never True, NaN or infinite. Documents and models are not looked into.
    """
    for name, annotation in _annotations(function).items():
        if name in arguments:
            _check(name, arguments[name], annotation)


def check_settings(settings: Any) -> None:
    """The same for the fields of a dataclass, in its ``__post_init__``."""
    for field in fields(settings):
        _check(field.name, getattr(settings, field.name), field.type)


def _check(name: str, value: Any, annotation: Any) -> None:
    if isinstance(value, str) and (choices := _choices(annotation)):
        require_choice(name, value, choices)
    if not _fits(value, annotation):
        shown = text if len(text := repr(value)) <= 80 and "\n" not in text else f"<{type(value).__name__}>"
        raise ValueError(f"{name}={shown}: it must be {_expected(annotation)}.")
    numbers = value if isinstance(value, list | tuple | range) else [value]
    if name in LEAST and any(isinstance(number, Real) and number < LEAST[name] for number in numbers):
        raise ValueError(f"{name}={value!r}: it must be at least {LEAST[name]}.")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The strings that an annotation has; none where it has any string, or something else that is given as one."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return parts
    if origin is Annotated:
        return _choices(parts[0])
    optional = origin in (Union, types.UnionType) and len(parts) == 2 and parts[1] is type(None)
    return _choices(parts[0]) if optional else ()


@cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = signature(function).parameters.values()
    return {each.name: each.annotation for each in parameters if each.annotation is not each.empty}


def _fits(value: Any, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return _is_number(value, whole=annotation is int)
    if annotation is bool:
        return isinstance(value, bool | np.bool_)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if _is_read_elsewhere(annotation):
        return True
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(part, kind) for item in value.items() for part, kind in zip(item, parts, strict=True)
        )
    if origin is tuple and ... not in parts:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin in (Sequence, Iterable, list):
        countable = isinstance(value, Collection)  # a generator's items can be looked at only once
        return _is_list(value) and (all(_fits(part, parts[0]) for part in value) if countable else origin is Iterable)
    if origin is Callable:
        return callable(value)
    return not _is_class(annotation) or isinstance(value, annotation)


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    if isinstance(value, Integral):
        return -LARGEST <= int(value) <= LARGEST
    return not whole and isinstance(value, Real) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) != 0


def _is_read_elsewhere(annotation: Any) -> bool:
    """Documents and models (a protocol), which have checks of their own."""
    if get_origin(annotation) is Callable:
        return False
    return (
        annotation is Tensor
        or getattr(annotation, "_is_protocol", False)
        or any(map(_is_read_elsewhere, get_args(annotation)))
    )


def _is_class(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and annotation is not Any
        and get_origin(annotation) is None
        and not hasattr(annotation, "array_type")
    )


def _expected(annotation: Any, several: bool = False) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation][several]
    if origin is Annotated:
        return _expected(parts[0], several)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_expected(part, several) for part in parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else repr(*parts)
    if origin is Mapping:
        return f"{'dicts' if several else 'a dict'} from {_expected(parts[0], True)} to {_expected(parts[1], True)}"
    if origin in (Sequence, Iterable, list):
        return f"{'lists' if several else 'a list'} of {_expected(parts[0], True)}"
    if origin is Callable:
        return "functions" if several else "a function"
    name = getattr(annotation, "__name__", str(annotation))
    return name if several else f"a {name}"
