"""Results as one self-contained page."""

from .execution import execute, read_notebook, require_extra
from .notebook import render
from .page import Section, paragraphs, write_figure, write_figures, write_page
