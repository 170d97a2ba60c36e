"""Processes that help with a report (a browser, a kernel): none outlives the block that it was started for."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from ..store.processes import children_environment

MARK = "MWORK_LENS_HELPER"
"""A variable of the environment that whatever a helper starts inherits, wherever it moves to."""


@contextlib.contextmanager
def helper_environment() -> Iterator[dict[str, str]]:
    """An environment for helpers; whatever still runs in it when the block ends, however it ends, is killed."""
    mark = secrets.token_hex(8)
    try:
        yield {**children_environment(), MARK: mark}
    finally:
        try:
            _kill(mark)
        except KeyboardInterrupt:
            _kill(mark)
            raise


def _kill(mark: str) -> None:
    """Kill what has the mark, until there is none: it may start another process in the meantime."""
    try:
        import psutil
    except ImportError:  # it comes with ipykernel, of the same extra as the browser
        return
    for _ in range(20):
        running = [process for process in psutil.process_iter() if _has(process, mark)]
        if not running:
            return
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(running, timeout=5)


def _has(process: Any, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != "zombie"
    except Exception:  # of another user, or it has ended
        return False
