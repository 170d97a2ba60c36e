"""Whose feed-forward neurons are, by how they fire: selections of arrays, and the pass that counts."""

from .collecting import HistogramOptions, collect_firing
from .firing import Firing
