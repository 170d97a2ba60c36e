"""Loops that numba compiles, and keeps where there is a folder to write to."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Compiled at the first call and stored on disk, where there is a folder to write to."""

    def with_options(loop: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(loop)
        except RuntimeError:
            return numba.njit(**options)(loop)

    return with_options
