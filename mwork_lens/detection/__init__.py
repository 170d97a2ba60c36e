"""A measure streamed over documents, the sets of neurons that this defines, and controls for them."""

from .activations import Activations, collect_means, collect_samples
from .comparison import Kind, agreement, neuron_counts, overlap
from .controls import cut_to_size, matched_control, other_control, random_control, with_controls
from .detecting import detect
from .detection import Detection
from .one_document import importance
