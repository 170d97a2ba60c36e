"""One directory format for every result: ``cfg.json`` for what it is, ``tensors.safetensors`` for its arrays."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
CFG_NAME = "cfg.json"
TENSORS_NAME = "tensors.safetensors"


def cache_directory() -> Path:
    """Where converted models and other reusable results live: ``MWORK_LENS_CACHE``, else the user's cache."""
    explicit = os.environ.get("MWORK_LENS_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mwork_lens"


def versions() -> dict[str, str]:
    """The versions of this package and of those that decide its numbers."""
    return {name: version(name) for name in ("mwork_lens", "transformer-lens", "torch", "transformers", "einops")}


def require_free(path: str | Path) -> Path:
    """``path`` if a result may be written there, i.e. it does not exist or is an empty directory.

    Raises:
        FileExistsError: otherwise, before anything expensive is done.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already and is not an empty directory: choose another path.")
    return path


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place only when the block ends without an error."""
    path = require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield building
        building.chmod(0o755)
        os.replace(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def write_result(path: str | Path, kind: str, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a result of the given kind; nothing is left at ``path`` if writing fails."""
    with atomic_directory(path) as building:
        header = {"kind": kind, "format": FORMAT_VERSION, "versions": versions(), **cfg}
        text = json.dumps(header, indent=2, ensure_ascii=False)
        (building / CFG_NAME).write_text(text + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / TENSORS_NAME)


def read_result(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and arrays that :func:`write_result` wrote.

    Raises:
        FileNotFoundError: if there is no result at ``path``.
        ValueError: if it is of another kind or from a newer format.
    """
    path = Path(path)
    if not (path / CFG_NAME).is_file():
        raise FileNotFoundError(f"{path} holds no saved result: {CFG_NAME} is missing there.")
    cfg = json.loads((path / CFG_NAME).read_text(encoding="utf-8"))
    if cfg.get("kind") != kind:
        raise ValueError(f"{path} holds a {cfg.get('kind')!r}, not a {kind!r}.")
    if cfg.get("format", 0) > FORMAT_VERSION:
        raise ValueError(f"{path} was written by a newer mwork_lens (format {cfg['format']}): upgrade to read it.")
    return cfg, load_file(path / TENSORS_NAME)
