"""One directory format for every result: ``cfg.json`` says what it is, ``tensors.safetensors`` holds its arrays.

``cfg.json`` has the result's kind, format, versions, SHA-256 (of itself without that entry, and of the tensors), the
model, the hashes of its documents, and its fields as a tree (see :mod:`mwork_lens.store.tree`).
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from .. import __version__
from .files import atomic_directory, previous, user_path
from .format_1 import upgraded_fields
from .hashes import Hashes
from .processes import is_first
from .tree import decode, encode, fields_of, made, storable

FORMAT_VERSION = 2
CFG_NAME, TENSORS_NAME = "cfg.json", "tensors.safetensors"
Kind = TypeVar("Kind", bound="Result")
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


def cache_directory() -> Path:
    """Where converted models and other reusable results live: ``MWORK_LENS_CACHE``, else the user's cache."""
    explicit = os.environ.get("MWORK_LENS_CACHE")
    return user_path(explicit or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mwork_lens"))


def versions() -> dict[str, str]:
    """The versions of this package and of those that decide its numbers."""
    packages = ("transformer-lens", "torch", "transformers", "einops")
    return {"mwork_lens": __version__, **{name: version(name) for name in packages}}


def require_free(path: str | Path, *, overwrite: bool = False) -> Path:
    """``path``; a FileExistsError unless nothing or an empty directory is there, or one result to overwrite."""
    path = user_path(path)
    occupied = _where_it_is(path)
    if not os.path.lexists(occupied) or (occupied.is_dir() and not any(occupied.iterdir())):
        return path
    if not overwrite:
        raise FileExistsError(f"{occupied} exists already and is not an empty directory: choose another path.")
    if not _holds_one_result(occupied):
        raise FileExistsError(f"{occupied} holds something other than one saved result, which is not overwritten.")
    return path


def _where_it_is(path: Path) -> Path:
    """``path``, or the old result that a process killed between these renames left next to it."""
    return path if os.path.lexists(path) or not os.path.lexists(old := previous(path)) else old


def _holds_one_result(path: Path) -> bool:
    try:
        cfg, files = json.loads((path / CFG_NAME).read_bytes()), {entry.name for entry in path.iterdir()}
        return files == {CFG_NAME, TENSORS_NAME} and {"kind", "format", "versions"} <= cfg.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


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

        ``overwrite`` replaces a directory that holds a saved result and nothing else; interrupted or killed at any
        moment, it leaves the old or the new result for :meth:`load`. Of several processes that torchrun has started the
        first writes.

        Raises:
            FileExistsError: for a path that is not free, before anything is written.
            TypeError: for a value that has no stored form, naming the field.
        """
        if not is_first():
            return
        path = require_free(path, overwrite=overwrite)
        arrays, tree = dict[str, Tensor](), {}
        for name, value in fields_of(self).items():
            try:
                tree[name] = encode(value, arrays)
            except (TypeError, KeyError, RuntimeError) as error:
                raise TypeError(f"{name} of this {type(self).__name__} cannot be saved: {error}") from error
        with atomic_directory(path, overwrite=overwrite) as building:
            _write_tensors(_unshared(arrays), building / TENSORS_NAME)
            cfg = {"kind": self.result_kind, "format": FORMAT_VERSION, "versions": versions(), "sha256": None}
            cfg |= {**self._identity(), "fields": tree}
            cfg["sha256"] = _hashes(cfg, building / TENSORS_NAME)
            text = json.dumps(cfg, indent=1, ensure_ascii=False, allow_nan=False)
            (building / CFG_NAME).write_text(text + "\n", encoding="utf-8", errors="surrogatepass")

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no result at ``path``.
            ValueError: if it is of another kind or a newer format, or not what was written.
        """
        path, kind = user_path(path), cls.result_kind
        if (place := _where_it_is(path)) != path:
            warnings.warn(f"{path} is not there; what is read is {place}, which a killed save left.", stacklevel=2)
        cfg, arrays = _read(place, kind)
        try:
            values = upgraded_fields(kind, cfg, arrays) if cfg["format"] == 1 else decode(cfg["fields"], arrays)
            return made(cls.__name__, values)
        except _DAMAGE as error:
            raise ValueError(f"{path} does not hold a whole {kind!r}: {type(error).__name__}: {error}") from error

    def _identity(self) -> dict[str, Any]:
        space, settings = getattr(self, "space", None), getattr(self, "settings", None) or {}
        name = getattr(space, "model", None) or settings.get("model")
        fingerprint = getattr(space, "fingerprint", None)
        fingerprint = settings.get("fingerprint") if fingerprint is None else vars(fingerprint)
        model = {"name": name, "fingerprint": fingerprint} if isinstance(name, str) else None
        hashes = getattr(self, "documents_of", {}).items()
        documents = {language: list(each) for language, each in hashes if not isinstance(each, Hashes)}
        identity = {"model": model, "documents": documents or None}
        parts = [part._identity() for part in vars(self).values() if isinstance(part, Result)]
        return next((part for part in parts if part["model"]), identity) if model is None else identity


def _write_tensors(arrays: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(arrays, path)
    except SafetensorError as error:  # what it makes of an OSError
        raise OSError(f"{path.parent} cannot be written: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes of no encoding, which load_file refuses
        return load(path.read_bytes())
    return load_file(path)


def _unshared(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share their memory, which the file format refuses."""
    places = {name: array.untyped_storage().data_ptr() for name, array in arrays.items()}
    uses = Counter(places.values())
    return {name: array.clone() if uses[places[name]] > 1 else array for name, array in arrays.items()}


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    cfg_path, tensors_path = path / CFG_NAME, path / TENSORS_NAME
    for file, state in ((cfg_path, "holds no saved result"), (tensors_path, "is not whole")):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{path} {state}: {file.name} is missing there.")
    try:
        cfg = json.loads(cfg_path.read_text(encoding="utf-8", errors="surrogatepass"))
        saved_kind, number = cfg["kind"], cfg["format"]
    except _DAMAGE as error:
        raise ValueError(f"{cfg_path} is damaged: {type(error).__name__}: {error}") from error
    matrix_of_1 = (number, saved_kind) == (1, "effect_matrix") and kind in ("layer_sweep", "stage_grid")
    if saved_kind != kind and not matrix_of_1:
        raise ValueError(f"{path} holds a {saved_kind!r}, not a {kind!r}.")
    if number not in (1, FORMAT_VERSION):
        raise ValueError(f"{path} is damaged, or of a newer mwork_lens (format {number!r}): upgrade to read it.")
    if number == FORMAT_VERSION and (hashes := _hashes(cfg, tensors_path)) != (recorded := cfg.get("sha256")):
        other_tensors = isinstance(recorded, dict) and recorded.get("tensors") not in (None, hashes["tensors"])
        changed = tensors_path if other_tensors else cfg_path
        raise ValueError(f"{changed} is not what was written: it was changed or cut short (its SHA-256 differs).")
    try:
        return cfg, _read_tensors(tensors_path)
    except (SafetensorError, *_DAMAGE) as error:
        raise ValueError(f"{tensors_path} is damaged or cut short: {error}") from error


def _hashes(cfg: Mapping[str, Any], tensors_path: Path) -> dict[str, str]:
    """Of the tensors, and of ``cfg`` with that hash, whose place in it counts."""
    with tensors_path.open("rb") as file:
        of_tensors = {"tensors": hashlib.file_digest(file, "sha256").hexdigest()}
    text = json.dumps({**cfg, "sha256": of_tensors}, separators=(",", ":"))
    return {**of_tensors, "cfg": hashlib.sha256(text.encode()).hexdigest()}
