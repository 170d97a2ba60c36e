"""What a change of code must not change unnoticed: public names, the command line, integer results on tiny models.

``python -m tests.snapshots`` writes all of them anew.
"""

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import typer

import mwork_lens as mw
from mwork_lens.cli import app

from ..analyses import QUIET, ids, tiny

FOLDER = Path(__file__).parent
OPERATORS = ("and", "or", "sub", "xor", "invert", "len", "contains", "iter", "getitem", "call", "enter", "exit", "eq")
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "gpt2", "bloom", "sinks")
DETECTIONS: Mapping[str, Mapping[str, Any]] = {
    "top": {},
    "top of all scores": {"scores": "exact", "top": 0.3},
    "threshold": {"threshold": 0.3},
    "model": {"scope": "model"},
    "paper": {"formulation": "paper"},
    "released": {"formulation": "released"},
}
WITH_SETS = ("top", "threshold", "model")
"""Of these detections sets and controls are kept too."""
SEEDS = (0, 1)


def write() -> None:
    """All snapshots, as the code is now."""
    for name, content in {"public": public(), "options": options(), "counts": counts()}.items():
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> Any:
    """What was written."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# --- public names ---


def public() -> dict[str, Any]:
    """Every public name, those of figures too, with what it takes."""
    found = {f"mw.{name}": _described(value) for name, value in _names(mw.public)}
    return found | {f"mw.plots.{name}": _described(value) for name, value in _names(mw.plots) if callable(value)}


def _names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    named = ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    ours = mw.__name__
    return ((n, value) for n, value in named if not isinstance(value, ModuleType) or value.__name__.startswith(ours))


def _described(value: Any) -> Any:
    if isinstance(value, ModuleType):
        return "module"
    if inspect.isclass(value):
        return _class(value)
    return _signature(value) if inspect.isfunction(value) else "alias"


def _class(kind: type) -> dict[str, Any]:
    members = {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {
        "signature": _signature(kind),
        "fields": [field.name for field in fields(kind)] if is_dataclass(kind) else [],
        "methods": {name: _signature(getattr(kind, name)) for name in members if callable(getattr(kind, name, None))},
        "properties": [name for name, member in members.items() if hasattr(member, "__get__") and _is_value(member)],
        "operators": [op for op in OPERATORS if any(f"__{op}__" in vars(base) for base in kind.__mro__[:-1])],
    }


def _is_value(member: Any) -> bool:
    return not isinstance(member, classmethod | staticmethod) and not inspect.isfunction(member)


def _signature(function: Any) -> list[str]:
    """Names, kinds and defaults; annotations are left out, as they name modules."""
    return [
        f"{parameter.kind.name.lower()} {parameter.replace(annotation=inspect.Parameter.empty)}"
        for parameter in inspect.signature(function).parameters.values()
    ]


# --- the command line ---


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its whole name."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for part, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {part}", inner)

    return walk("mwork-lens", typer.main.get_command(app))


def options() -> dict[str, dict[str, Any]]:
    """By command and option: its other names, default, type, and whether it is required."""
    return {
        name: {
            " / ".join([*option.opts, *option.secondary_opts]): {
                "default": None if option.default is None else str(option.default),
                "type": _type(option),
                "required": option.required,
                "multiple": option.multiple,
            }
            for option in command.params
            if not option.name.endswith("_completion")
        }
        for name, command in commands()
    }


def _type(option: Any) -> str:
    """By Python's name, from any version of typer."""
    if hasattr(option, "type_descriptor"):
        kind = option.type_descriptor.annotation
        return getattr(kind, "__name__", str(kind))
    return {"text": "str", "integer": "int", "boolean": "bool"}.get(option.type.name, option.type.name)


# --- integers ---


def counts() -> dict[str, Any]:
    """Detections of every kind in every family."""
    return {f"{family}, {name}": counted(family, name) for family in FAMILIES for name in DETECTIONS}


def counted(family: str, name: str) -> Any:
    """One detection, and sets and controls that follow from it."""
    try:
        detection = mw.detect(tiny(family), ids(), **DETECTIONS[name], **QUIET)
    except ValueError:
        return "refused"
    tallies = {kind: _tallies(getattr(detection, kind)) for kind in ("counts", "screened")}
    sets = _sets(detection) if name in WITH_SETS else {}
    return {**tallies, "sets": {key: _digest_of_set(neurons) for key, neurons in sets.items()}}


def _tallies(by_language: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, str]:
    return {
        f"{language} {site}": _digest(tensor)
        for language, by_site in by_language.items()
        for site, tensor in by_site.items()
    }


def _sets(detection: Any) -> dict[str, Any]:
    """Sets of each language, and every control of one with each seed."""
    quorums = {"quorum": 0.5}
    found = {f"active {language}": detection.active(language, **quorums) for language in detection.languages}
    found |= {f"specific {language}": detection.specific(language, **quorums) for language in detection.languages}
    french, russian = (detection.specific(language, **quorums) for language in ("fr", "ru"))
    found["fr against en"] = detection.specific("fr", against="en", **quorums)
    found["fr against shared"] = detection.specific("fr", against="shared", **quorums)
    found["fr strictly"] = detection.specific("fr", against_quorum=0.3, **quorums)
    found |= {f"equal {name}": cut for name, cut in mw.cut_to_equal({"fr": french, "ru": russian}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in SEEDS:
            found[f"half {seed}"] = mw.cut_to_size(french, len(french) // 2, seed=seed)
            drawn = {
                "random": mw.random_control(french, seed=seed),
                "matched": mw.matched_control(french, detection, seed=seed),
                "shared": mw.shared_control(french, detection, seed=seed),
                "top": mw.top_control(french, detection, seed=seed),
                "other": mw.other_control(french, russian, seed=seed),
            }
            found |= {f"{name} {seed}": neurons for name, neurons in drawn.items()}
        found |= {f"all {name}": one for name, one in mw.all_controls(french, detection).items()}
    return found


def _digest_of_set(neurons: Any) -> str:
    return _digest(torch.cat([mask.flatten() for mask in neurons.masks.values()]))


def _digest(tensor: torch.Tensor) -> str:
    """The sum, for people, and a hash of every value."""
    values = tensor.long().contiguous().numpy().astype("<i8")
    return f"{int(values.sum())} {hashlib.sha256(values.tobytes()).hexdigest()[:32]}"
