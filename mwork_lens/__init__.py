"""mwork_lens: how a multilingual language model works inside, on TransformerLens models.

What ``import mwork_lens as mw`` offers is listed in :mod:`mwork_lens.public`; it is imported at the first use of a
name, so that the command line answers at once.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403

if os.environ.get("MWORK_LENS_BACKEND") == "triton" and "triton" not in sys.modules:
    import torch

    if not torch.cuda.is_available():  # before anything imports Triton, which asks only then
        os.environ.setdefault("TRITON_INTERPRET", "1")


def __getattr__(name: str) -> Any:
    """A module of the package, else a public name; ``from mwork_lens import *`` gives the latter."""
    if name == "__all__":
        return import_module(".public", __name__).__all__
    if not name.startswith("_"):
        if find_spec(f"{__name__}.{name}"):
            return import_module(f".{name}", __name__)
        if hasattr(public := import_module(".public", __name__), name):
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(import_module(".public", __name__))})
