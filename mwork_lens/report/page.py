"""One self-contained HTML page from figures, tables and text; it opens without a network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ..store import folded, user_path, write_text
from .pictures import write_pictures

# whatever a text or a figure holds, the page may neither fetch nor send anything
_INLINE = "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_POLICY = f"default-src 'none'; {_INLINE}; img-src data: blob:; font-src data:"


@runtime_checkable
class HasHtml(Protocol):
    """An object that shows itself as HTML, its texts escaped, as results do in notebooks."""

    def _repr_html_(self) -> str: ...


@dataclass(frozen=True)
class Html:
    """Markup to show as it is; whoever makes one has escaped its texts."""

    markup: str

    def _repr_html_(self) -> str:
        return self.markup


def paragraphs(lines: Sequence[str]) -> Html:
    """Each line as a paragraph, escaped."""
    return Html("".join(f"<p>{escape(line)}</p>" for line in lines))


Content = pd.DataFrame | go.Figure | Mapping[str, Any] | HasHtml | None


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs and then a table, a figure, settings, a result with its own HTML, or several."""

    title: str
    text: Sequence[str] = ()
    content: Content | Sequence[Content] = None


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, lead: Sequence[Content] = ()) -> Path:
    """Write the page, ``lead`` between its title and the contents; every text and label is escaped."""
    path = user_path(path)
    style, printing = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    contents = "".join(f'<li><a href="#part-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style><script>{get_plotlyjs()}</script><script>{printing}</script></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(map(_content, lead))}"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>{body}</body></html>',
    )
    return path


def write_figure(path: str | Path, figure: go.Figure) -> list[Path]:
    """Write a figure at ``path`` as HTML, which opens without a network, and, if a browser is installed, as PNG."""
    return write_figures({path: figure})


def write_figures(figures: Mapping[Any, go.Figure]) -> list[Path]:
    """As :func:`write_figure`, by path; one browser draws all of them.

    Raises:
        ValueError: for two that are one file on some systems, before anything is written.
    """
    by_path = {user_path(path): figure for path, figure in figures.items()}
    pages = {_with_suffix(path, ".html"): figure for path, figure in by_path.items()}
    for one, other in combinations(figures, 2):
        if len({folded(str(_with_suffix(user_path(path), ".html"))) for path in (one, other)}) < 2:
            raise ValueError(f"The figures {one} and {other} are one file on some systems: choose another name.")
    for path, figure in pages.items():
        write_text(path, figure.to_html(include_plotlyjs=True, include_mathjax=False))
    pictures = write_pictures({_with_suffix(path, ".png"): figure for path, figure in by_path.items()})
    return [path for page in pages for path in (page, page.with_suffix(".png")) if path == page or path in pictures]


def _with_suffix(path: Path, suffix: str) -> Path:
    """In place of that of a page or picture; a point in a name is none."""
    return path.with_suffix(suffix) if path.suffix in (".html", ".png") else path.with_name(path.name + suffix)


def _section(i: int, section: Section) -> str:
    several = isinstance(section.content, Sequence)
    parts: Sequence[Content] = section.content if several else [section.content]  # pyright: ignore
    heading = f'<h2 id="part-{i}">{escape(section.title)}</h2>'
    return f"<section>{heading}{paragraphs(section.text).markup}{''.join(map(_content, parts))}</section>"


def _content(content: Content) -> str:
    if isinstance(content, pd.DataFrame):
        return f'<div class="table">{content.to_html(border=0, na_rep="–")}</div>'
    if isinstance(content, go.Figure):
        options = {"full_html": False, "include_plotlyjs": False, "include_mathjax": False}
        config = {"responsive": True, "displaylogo": False}
        return f'<div class="figure">{content.to_html(**options, config=config)}</div>'
    if content is None:
        return ""
    if not isinstance(content, Mapping):
        return f'<div class="table">{content._repr_html_()}</div>'
    return f"<pre>{escape(json.dumps(content, indent=2, ensure_ascii=False, default=str))}</pre>"
