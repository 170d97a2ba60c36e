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
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, 'Noto Sans', sans-serif; color: #222; max-width: 74rem;
  margin: 2rem auto 4rem; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .4rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul, ol { max-width: 46rem; }
nav { margin: 1.5rem 0; padding: .6rem 1.2rem; background: #f6f6f6; border-radius: 6px; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 2 16rem; }
a { color: #0072B2; }
code { font-size: .9em; background: #f3f3f3; padding: 0 .2em; border-radius: 3px; }
.table, .figure { overflow-x: auto; margin: 1rem 0; }
.table > :first-child { margin-top: 0; } .table > :last-child { margin-bottom: 0; } .figure > div { min-width: 38rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; border: 0; }
th, td { padding: .3rem .7rem; border: 0; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { font-weight: 600; } thead th { border-bottom: 2px solid #888; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; }
table.text thead th, table.text td { text-align: left; unicode-bidi: plaintext; }
table.text td:last-child { min-width: 16rem; } table.dataframe thead th { text-align: right; }
table.dataframe thead th:first-child { text-align: left; }
table.dataframe.text thead th { text-align: left; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap; }
@page { size: A4; margin: 15mm; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  h1, h2, h3 { break-after: avoid; } h2 { margin-top: 1.5rem; } a { color: inherit; text-decoration: none; }
  .figure, .card, tr { break-inside: avoid; } .table, .figure, pre { overflow: visible; }
  .figure > div { min-width: 0; }
  table { font-size: 8pt; } th, td { padding: .15rem .4rem; } .modebar { display: none; }
  thead { display: table-header-group; }
  .table .cards { grid-template-columns: repeat(3, 1fr); gap: .5rem; zoom: .75; } .table .card { font-size: 9pt; }
}
"""

# figures are drawn in pixels: draw them again in the paper's width, and as before afterwards
_PRINTING = """
const figures = () => [...document.querySelectorAll('.js-plotly-plot')];
addEventListener('beforeprint', () => figures().forEach(f => {
  f.screen = f.layout.width;
  const wide = Math.max(820, f.layout.width || 0);
  Plotly.relayout(f, {width: wide}); f.parentElement.style.zoom = 680 / wide; }));
addEventListener('afterprint', () => figures().forEach(f => {
  f.parentElement.style.zoom = ''; Plotly.relayout(f, {width: f.screen, autosize: !f.screen}); }));
"""

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
    path = Path(path)
    contents = "".join(f'<li><a href="#part-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script><script>{_PRINTING}</script></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(map(_content, lead))}"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>{body}</body></html>',
        encoding="utf-8",
    )
    return path


def write_figure(path: str | Path, figure: go.Figure) -> list[Path]:
    """Write a figure at ``path`` as HTML, which opens without a network, and, if a browser is installed, as PNG."""
    page, picture = Path(path).with_suffix(".html"), Path(path).with_suffix(".png")
    page.write_text(figure.to_html(include_plotlyjs=True, include_mathjax=False), encoding="utf-8")
    try:
        figure.write_image(picture, scale=2)
    except Exception as error:  # whatever kaleido and the browser raise: the page is written
        logger.info("No %s: %s", picture.name, (str(error).strip().splitlines() or [type(error).__name__])[0])
        return [page]
    return [page, picture]


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
