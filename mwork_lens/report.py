"""One self-contained HTML page from figures, tables and text; it opens without a network."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

logger = logging.getLogger("mwork_lens")

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, 'Noto Sans', sans-serif; color: #222; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.table, .figure { overflow-x: auto; } .figure > div { min-width: 38rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .8rem; }
@media print { h2 { break-after: avoid; } .figure { break-inside: avoid; } }
"""


@runtime_checkable
class HasHtml(Protocol):
    """What shows itself as HTML, its texts escaped, as results do in notebooks."""

    def _repr_html_(self) -> str: ...


Content = pd.DataFrame | go.Figure | Mapping[str, Any] | HasHtml | None


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs and then a table, a figure, settings, or a result with its own (escaped) HTML."""

    title: str
    text: Sequence[str] = ()
    content: Content = None


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page; every text and label is escaped."""
    path = Path(path)
    contents = "".join(f'<li><a href="#part-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{escape(title)}</h1><nav><ul>{contents}</ul></nav>{body}</body></html>",
        encoding="utf-8",
    )
    return path


def write_figure(path: str | Path, figure: go.Figure) -> list[Path]:
    """Write a figure beside ``path`` as HTML, which opens without a network, and, where a browser is there, as PNG."""
    page, picture = Path(path).with_suffix(".html"), Path(path).with_suffix(".png")
    page.write_text(figure.to_html(include_plotlyjs=True, include_mathjax=False), encoding="utf-8")
    try:
        figure.write_image(picture, scale=2)
    except Exception as error:  # whatever kaleido and the browser raise: the page is there all the same
        logger.info("No %s: %s", picture.name, (str(error).strip().splitlines() or [type(error).__name__])[0])
        return [page]
    return [page, picture]


def _section(i: int, section: Section) -> str:
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in section.text)
    return f'<section><h2 id="part-{i}">{escape(section.title)}</h2>{paragraphs}{_content(section.content)}</section>'


def _content(content: Content) -> str:
    if isinstance(content, pd.DataFrame):
        return f'<div class="table">{content.to_html(border=0, na_rep="–")}</div>'
    if isinstance(content, go.Figure):
        options = {"full_html": False, "include_plotlyjs": False, "include_mathjax": False}
        return f'<div class="figure">{content.to_html(**options, config={"responsive": True})}</div>'
    if content is None:
        return ""
    if not isinstance(content, Mapping):
        return content._repr_html_()
    return f"<pre>{escape(json.dumps(content, indent=2, ensure_ascii=False, default=str))}</pre>"
