"""Sets of neurons, the weights that belong to them, and the stages of a model."""

from ..model import Fingerprint
from .gates import GateValues
from .interop import load_lape, load_neurons, load_released, save_neurons
from .sets import NeuronSet, Origin, ablate, seen_by_both, warn_of_other_weights
from .space import NeuronSpace, weight_processing
from .stages import MWORK_PARTS, STAGES, Stages
from .weights import Entries, edit_weights, entries_of, selected_entries, silencing_entries
