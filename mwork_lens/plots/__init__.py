"""A result in, a plotly figure out. Nothing here shows or writes anything."""

from .comparison import agreement as agreement
from .comparison import overlap as overlap
from .effects import effect_matrix as effect_matrix
from .generations import generations as generations
from .generations import steering as steering
from .neurons import neuron_counts as neuron_counts
