"""A notebook in, a page out: executed with parameters, its headings, texts and outputs as the sections of a page."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..store import atomic_file, user_path
from .page import Content, Html, Section, write_page

FIGURE = "application/vnd.plotly.v1+json"
SECONDS_PER_CELL = 900
PACKAGES = ("papermill", "nbconvert", "ipykernel")
"""Of the extra ``report``."""


def require_extra() -> None:
    """Refuse, as an ImportError, where notebooks cannot be executed or shown."""
    absent = ", ".join(name for name in PACKAGES if find_spec(name) is None)
    if absent:
        raise ImportError(f"Reports need the extra 'report' ({absent} missing): pip install 'mwork_lens[report]'.")


def execute(
    notebook: str | Path | None,
    path: str | Path,
    parameters: Mapping[str, Any],
    *,
    timeout: int = SECONDS_PER_CELL,
    progress: bool = True,
) -> Path:
    """Execute a notebook (None: the package's own report) with parameters, and write it with its outputs to ``path``.

    Whatever kernels are installed, it runs in this interpreter, in a process that ends with this call. An ImportError
    without the extra ``report``; a ValueError for a cell that fails, or takes longer than ``timeout`` seconds: the
    notebook up to there is at ``path``.
    """
    require_extra()
    import papermill
    from nbclient.exceptions import CellTimeoutError

    path, stopped, reason = user_path(path), None, ""

    logging.getLogger("papermill").setLevel(logging.WARNING)
    before = os.environ.get("PLOTLY_RENDERER")
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # as data, which the page draws with its one copy of plotly.js
    try:
        with atomic_file(path) as building:
            try:
                papermill.execute_notebook(
                    _escaped(notebook or Path(__file__).with_name("report.ipynb")),
                    _escaped(building),
                    dict(parameters),
                    kernel_name="python3",
                    language="python",
                    kernel_manager_class=_kernel_manager(),
                    execution_timeout=timeout,
                    progress_bar=progress,
                    log_output=False,
                    extra_arguments=["--log-level=ERROR"],  # or the kernel warns that it listens on this machine
                )
            except papermill.PapermillExecutionError as error:
                stopped, reason = error, f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}"
            except CellTimeoutError as error:
                stopped, reason = error, f"a cell did not end within {timeout} seconds"
    finally:
        os.environ.pop("PLOTLY_RENDERER")
        if before is not None:
            os.environ["PLOTLY_RENDERER"] = before
    if stopped is not None:
        raise ValueError(f"{notebook or 'The report'}: {reason}. What ran before is in {path}.") from stopped
    return path


def _escaped(path: str | Path) -> str:
    """As papermill takes paths, in which it fills in parameters between braces."""
    return str(user_path(path)).replace("{", "{{").replace("}", "}}")


def _kernel_manager() -> Any:
    """Of kernels of this interpreter, whichever one is installed under the name of Python."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> Any:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return KernelManager


def render(notebook: str | Path, path: str | Path, *, title: str | None = None) -> Path:
    """Write an executed notebook as one page that opens without a network: texts and outputs, without the code.

    Its title is the notebook's first heading by default. An ImportError without the extra ``report``.
    """
    require_extra()
    import nbformat

    notebook = user_path(notebook)
    cells = nbformat.read(notebook, as_version=4).cells
    heading, lead, sections = "", [], []
    for kind, value in _parts(cells):
        if kind == "#" and not heading:
            heading = value
        elif kind in ("#", "##"):
            sections.append(Section(value, (), []))
        else:
            (sections[-1].content if sections else lead).append(value)
    return write_page(path, title or heading or notebook.stem, sections, lead=lead)


def _parts(cells: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Headings of the first two ranks with their rank, and what lies between them with none."""
    for cell in cells:
        if cell.cell_type == "markdown":
            yield from _texts(cell.source)
        yield from (("", content) for output in cell.get("outputs", ()) if (content := _output(output)) is not None)


def _texts(source: str) -> Iterator[tuple[str, Any]]:
    below, fenced = [], False
    for line in [*source.splitlines(), "# "]:
        rank, _, words = line.partition(" ")
        fenced ^= line.lstrip().startswith("```")
        if rank in ("#", "##") and not fenced:
            if any(map(str.strip, below)):
                yield "", _markdown("\n".join(below))
            below = []
            if words.strip():
                yield rank, words.strip()
        else:
            below.append(line)


def _markdown(text: str) -> Html:
    from nbconvert.filters import markdown2html

    return Html(markdown2html(text))


def _output(output: Any) -> Content:
    """An output as a page shows it; warnings and progress bars (standard error) are left out."""
    if output.output_type == "error":
        return Html(f"<pre>{escape(output.ename)}: {escape(output.evalue)}</pre>")
    if output.output_type == "stream":
        return None if output.name == "stderr" else Html(f"<pre>{escape(output.text)}</pre>")
    data = output.data
    if FIGURE in data:
        return go.Figure(data[FIGURE]["data"], data[FIGURE]["layout"])
    if "text/html" in data:
        return Html(data["text/html"])
    if "text/markdown" in data:
        return _markdown(data["text/markdown"])
    return Html(f"<pre>{escape(data.get('text/plain', ''))}</pre>")
