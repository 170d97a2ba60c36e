"""Pictures of figures, drawn by a browser: in a process of its own, which has a limit and leaves nothing behind."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go

from ..store import atomic_file
from ..store.processes import is_first
from .helpers import helper_environment

logger = logging.getLogger("mwork_lens")

SECONDS, SECONDS_PER_FIGURE = 60.0, 5.0
"""For the browser to start, and then for each figure."""

_DRAW = """
import asyncio, json, sys
import kaleido

async def draw():
    async with kaleido.Kaleido(mathjax=False) as browser:
        for number, figure in enumerate(json.load(sys.stdin)):
            await browser.write_fig(figure, f"{sys.argv[1]}/{number}.png", opts={"format": "png", "scale": 2})

asyncio.run(draw())
"""
_without_browser: list[str] = []
"""Why there will be no pictures in this process: a browser that did not answer in time is not asked again."""


def write_pictures(figures: Mapping[Path, go.Figure]) -> list[Path]:
    """Write figures as PNG, where a browser is installed that draws them in time; the log says what is missing.

    Of several processes the first writes.
    """
    if not is_first():
        return []
    with tempfile.TemporaryDirectory(prefix="mwork-lens-", ignore_cleanup_errors=True) as folder:
        reason = _without_browser[0] if _without_browser else _draw(list(figures.values()), folder) if figures else ""
        drawn = {path: Path(folder, f"{number}.png") for number, path in enumerate(figures)}
        drawn = {path: picture for path, picture in drawn.items() if picture.is_file()}
        for path, picture in drawn.items():
            with atomic_file(path) as building:
                shutil.copyfile(picture, building)
    if missing := [path.name for path in figures if path not in drawn]:
        logger.info("No %s: %s", ", ".join(missing), reason)
    return list(drawn)


def _draw(figures: list[go.Figure], folder: str) -> str:
    """Draw into a folder, by number; returns what went wrong."""
    command = [sys.executable, "-P", "-c", _DRAW, folder]  # -P: nothing is imported from the working directory
    content = f"[{','.join(str(figure.to_json()) for figure in figures)}]".encode("utf-8", "replace")
    limit = SECONDS + SECONDS_PER_FIGURE * len(figures)
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with helper_environment() as environment:
        environment["TMPDIR"] = folder  # what the browser leaves there goes with the folder
        with subprocess.Popen(
            command, stdin=pipe, stdout=nothing, stderr=pipe, env=environment, start_new_session=True
        ) as process:
            try:
                errors = process.communicate(content, timeout=limit)[1]
            except subprocess.TimeoutExpired:
                _without_browser.append(f"the browser did not draw within {limit:.0f} seconds.")
                return _without_browser[0]
            finally:
                process.kill()
                process.wait()
    lines = errors.decode(errors="replace").strip().splitlines()
    return (lines or ["no browser drew it."])[-1] if process.returncode else ""
