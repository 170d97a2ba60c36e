"""Tune only some neurons: the masked-gradient loop, what it changed, checkpoints."""

from .delta import NeuronDelta
from .effects import tuning_effects
from .export import export_edited, export_tuned
from .loop import Diverged, tune
from .objective import predicted
from .recipe import Recipe
from .result import Step, Tuned
from .whole import kept_weights
