"""Results as one self-contained page."""

from .notebook import execute, render, require_extra
from .page import Section, paragraphs, write_figure, write_figures, write_page
