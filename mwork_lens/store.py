"""One directory format for every result: ``cfg.json`` says what it is, ``tensors.safetensors`` holds its arrays.

``cfg.json`` has the result's kind, format, versions, SHA-256 (of itself without that entry, and of the tensors), the
model, the hashes of its documents, and ``fields``: a tree of JSON values in which ``{"$": tag, "of": node}`` stands for
what JSON lacks: arrays by name, tuples, mappings whose keys are not text, NaN, nested dataclasses. Reading it selects
among classes that the package has registered; nothing in a file is imported or executed.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 2
CFG_NAME, TENSORS_NAME = "cfg.json", "tensors.safetensors"
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError)


def cache_directory() -> Path:
    """Where converted models and other reusable results live: ``MWORK_LENS_CACHE``, else the user's cache."""
    explicit = os.environ.get("MWORK_LENS_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mwork_lens"


def versions() -> dict[str, str]:
    """The versions of this package and of those that decide its numbers."""
    return {name: version(name) for name in ("mwork_lens", "transformer-lens", "torch", "transformers", "einops")}


# --- directories ---


def require_free(path: str | Path, *, overwrite: bool = False) -> Path:
    """``path`` if a result may be written there: it does not exist, is an empty directory, or holds one to overwrite.

    Raises:
        FileExistsError: otherwise, before anything expensive is done.
    """
    path = Path(path).expanduser()
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return path
    if not overwrite:
        raise FileExistsError(f"{path} exists already and is not an empty directory: choose another path.")
    if not _holds_a_result(path):
        raise FileExistsError(f"{path} holds something other than one saved result, which is not overwritten.")
    return path


def _holds_a_result(path: Path) -> bool:
    """Whether ``path`` is a directory with a saved result and nothing else."""
    if not path.is_dir() or {entry.name for entry in path.iterdir()} != {CFG_NAME, TENSORS_NAME}:
        return False
    try:
        return {"kind", "format", "versions"} <= json.loads((path / CFG_NAME).read_bytes()).keys()
    except (ValueError, AttributeError):
        return False


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory next to ``path`` that takes its place only when the block ends without an error."""
    path = require_free(path, overwrite=overwrite).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield building
        building.chmod(0o755)
        _move(building, path) if overwrite and path.exists() else os.replace(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _move(building: Path, path: Path) -> None:
    """Put ``building`` in the place of a directory that holds files, which no system call replaces."""
    previous = building.with_name(f"{building.name}.previous")
    os.replace(path, previous)
    try:
        os.replace(building, path)
    except BaseException:
        os.replace(previous, path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


# --- results ---

Class = TypeVar("Class", bound=type)
Kind = TypeVar("Kind", bound="Result")
_CLASSES: dict[str, type] = {}


def storable(cls: Class) -> Class:
    """Declare that values of a dataclass may be fields of a result; its name is what files say.

    A class whose fields are not what should be written has ``to_fields(self)`` and the classmethod ``from_fields``.
    """
    other = _CLASSES.setdefault(cls.__name__, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"Both {other} and {cls} are to be stored under the name {cls.__name__!r}.")
    _CLASSES[cls.__name__] = cls
    return cls


class Result:
    """Base of frozen dataclasses that are saved and loaded: ``class Detection(Result, kind="detection")``."""

    result_kind: ClassVar[str]

    def __init_subclass__(cls, *, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind is not None:
            cls.result_kind = kind
            storable(cls)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write to a directory that does not exist yet or is empty; an interruption leaves nothing there.

        Args:
            path: of the directory.
            overwrite: whether to replace a directory that holds a saved result and nothing else.

        Raises:
            FileExistsError: for a path that is not free, before anything is written.
            TypeError: for a value that has no stored form, naming the field.
        """
        path = require_free(path, overwrite=overwrite)
        arrays = _Arrays()
        tree = {name: _encode_field(self, name, value, arrays) for name, value in _fields_of(self).items()}
        with atomic_directory(path, overwrite=overwrite) as building:
            save_file(arrays.tensors, building / TENSORS_NAME)
            cfg = {"kind": self.result_kind, "format": FORMAT_VERSION, "versions": versions()}
            cfg["sha256"] = {"tensors": _file_hash(building / TENSORS_NAME)}
            cfg |= {**self._identity(), "fields": tree}
            cfg["sha256"]["cfg"] = _cfg_hash(cfg)
            text = json.dumps(cfg, indent=1, ensure_ascii=False, allow_nan=False)
            (building / CFG_NAME).write_text(text + "\n", encoding="utf-8", errors="surrogatepass")

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no result at ``path``.
            ValueError: if it is of another kind or a newer format, or not what was written.
        """
        path, kind = Path(path).expanduser(), cls.result_kind
        cfg, arrays = _read(path, kind)
        try:
            if cfg["format"] < FORMAT_VERSION:
                from .store_legacy import upgraded_fields

                cfg = {"fields": upgraded_fields(kind, cfg, list(arrays))}
            return _made(cls, {name: _decode(node, arrays) for name, node in cfg["fields"].items()})
        except _DAMAGE as error:
            raise ValueError(f"{path} does not hold a whole {kind!r}: {type(error).__name__}: {error}") from error

    def _identity(self) -> dict[str, Any]:
        """What the header says of model and documents; None where the result does not know."""
        space, settings = getattr(self, "space", None), getattr(self, "settings", {})
        name = getattr(space, "model", None) or settings.get("model")
        fingerprint = getattr(space, "fingerprint", None)
        documents = getattr(self, "documents_of", None) or None
        return {
            "model": {"name": name, "fingerprint": fingerprint and vars(fingerprint)}
            if isinstance(name, str)
            else None,
            "documents": documents and {language: list(hashes) for language, hashes in documents.items()},
        }


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and arrays of a result, checked against its hashes."""
    cfg_path, tensors_path = path / CFG_NAME, path / TENSORS_NAME
    if not cfg_path.is_file():
        raise FileNotFoundError(f"{path} holds no saved result: {CFG_NAME} is missing there.")
    try:
        cfg = json.loads(cfg_path.read_text(encoding="utf-8", errors="surrogatepass"))
        found, number = cfg["kind"], cfg["format"]
    except _DAMAGE as error:
        raise ValueError(f"{cfg_path} is damaged: {type(error).__name__}: {error}") from error
    if found != kind and (number, found, kind) not in _LEGACY_KINDS:
        raise ValueError(f"{path} holds a {found!r}, not a {kind!r}.")
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{cfg_path} is damaged: there is no format {number!r}.")
    if number > FORMAT_VERSION:
        raise ValueError(f"{path} was written by a newer mwork_lens (format {number}): upgrade to read it.")
    if not tensors_path.is_file():
        raise FileNotFoundError(f"{path} is not whole: {TENSORS_NAME} is missing there.")
    if number > 1:
        _require_hashes(cfg, cfg_path, tensors_path)
    try:
        return cfg, load_file(tensors_path)
    except SafetensorError as error:
        raise ValueError(f"{tensors_path} is damaged or cut short: {error}") from error


_LEGACY_KINDS = {(1, "effect_matrix", "layer_sweep"), (1, "effect_matrix", "stage_grid")}


def _require_hashes(cfg: Mapping[str, Any], cfg_path: Path, tensors_path: Path) -> None:
    try:
        written, found = cfg["sha256"], {"cfg": _cfg_hash(cfg), "tensors": _file_hash(tensors_path)}
        changed = [
            path for name, path in (("cfg", cfg_path), ("tensors", tensors_path)) if written[name] != found[name]
        ]
    except _DAMAGE as error:
        raise ValueError(f"{cfg_path} is damaged: it does not hold the hashes of its content.") from error
    if changed:
        raise ValueError(f"{changed[0]} is not what was written: it was changed or cut short (its SHA-256 differs).")


def _cfg_hash(cfg: Mapping[str, Any]) -> str:
    hashed = {**cfg, "sha256": {"tensors": cfg["sha256"]["tensors"]}}
    return hashlib.sha256(json.dumps(hashed, separators=(",", ":")).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- values as a tree ---

TAG, OF = "$", "of"


@dataclass(frozen=True)
class _Arrays:
    """The tensors of a result by generated name; none shares its memory with another."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    storages: set[int] = field(default_factory=set)

    def add(self, tensor: Tensor) -> str:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in self.storages:
            tensor = tensor.clone()
        self.storages.add(tensor.untyped_storage().data_ptr())
        self.tensors[name := str(len(self.tensors))] = tensor
        return name


def _fields_of(value: Any) -> Mapping[str, Any]:
    if hasattr(value, "to_fields"):
        return value.to_fields()
    return {part.name: getattr(value, part.name) for part in fields(value) if part.init}


def _made(cls: type, values: dict[str, Any]) -> Any:
    return cls.from_fields(values) if hasattr(cls, "from_fields") else cls(**values)  # pyright: ignore[reportAttributeAccessIssue]


def _encode_field(result: Result, name: str, value: Any, arrays: _Arrays) -> Any:
    try:
        return _encode(value, arrays)
    except (TypeError, RecursionError) as error:
        raise TypeError(f"{name} of this {type(result).__name__} cannot be saved: {error}") from error


def _encode(value: Any, arrays: _Arrays) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return [_encode(part, arrays) for part in value]
    if type(value) is dict and TAG not in value and all(isinstance(key, str) for key in value):
        return {key: _encode(part, arrays) for key, part in value.items()}
    tag, simpler = _tagged(value, arrays)
    return {TAG: tag, OF: _encode(simpler, arrays)}


def _tagged(value: Any, arrays: _Arrays) -> tuple[str, Any]:
    """The tag of a value that JSON lacks, and a simpler value that says the rest."""
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        return name, dict(_fields_of(value))
    match value:
        case Tensor():
            return "tensor", arrays.add(value)
        case np.ndarray():
            return "array", arrays.add(torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C")))
        case float():
            return "float", str(value)
        case Path():
            return "path", str(value)
        case torch.dtype():
            return "dtype", str(value).removeprefix("torch.")
        case range():
            return "range", [value.start, value.stop, value.step]
        case tuple():
            return "tuple", list(value)
        case set() | frozenset():
            return name, sorted(value, key=repr)
        case MappingProxyType():
            return "proxy", dict(value)
        case Mapping():
            text = TAG not in value and all(isinstance(key, str) for key in value)
            return ("dict", dict(value)) if text else ("mapping", [[key, part] for key, part in value.items()])
    raise TypeError(f"a {name} has no stored form ({value!r:.60}).")


def _dtype(name: str) -> torch.dtype:
    if not isinstance(dtype := getattr(torch, name), torch.dtype):
        raise ValueError(f"there is no dtype {name!r}")
    return dtype


_DECODERS: Mapping[str, Any] = {
    "float": float,
    "path": Path,
    "dtype": _dtype,
    "range": lambda bounds: range(*bounds),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "proxy": MappingProxyType,
    "mapping": dict,
    "dict": dict,
}


def _decode(node: Any, arrays: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(part, arrays) for part in node]
    if not isinstance(node, dict):
        return node
    if TAG not in node:
        return {key: _decode(part, arrays) for key, part in node.items()}
    tag, simpler = node[TAG], _decode(node[OF], arrays)
    if tag in ("tensor", "array"):
        return arrays[simpler] if tag == "tensor" else arrays[simpler].numpy()
    return _DECODERS[tag](simpler) if tag in _DECODERS else _made(_CLASSES[tag], simpler)
