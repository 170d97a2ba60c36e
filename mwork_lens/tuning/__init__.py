"""Tune only some neurons: the masked-gradient loop, what it changed, checkpoints."""

from .delta import NeuronDelta
from .enhancement import HELD_OUT, REFERENCE, Enhancement, Passages, Rate, Run, RunResult
from .export import export_edited, export_tuned
from .loop import tune
from .masked import kept_weights
from .recipe import Recipe
from .result import Tuned, tuning_effects
from .running import Diverged
