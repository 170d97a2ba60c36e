"""An executed notebook as a page: its headings, texts and outputs as sections."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..store import user_path
from ..store.processes import is_first
from .execution import require_extra
from .page import Content, Html, Section, write_page

FIGURE = "application/vnd.plotly.v1+json"


def render(notebook: str | Path, path: str | Path, *, title: str | None = None) -> Path:
    """Write an executed notebook as one page that opens without a network: texts and outputs, without the code.

    Its title is the notebook's first heading by default. An ImportError without the extra ``report``.
    """
    require_extra()
    if not is_first():  # nor has this process executed it
        return user_path(path)
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
