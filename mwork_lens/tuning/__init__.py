"""Tune only some neurons: the masked-gradient loop, what it changed, checkpoints."""

from .delta import NeuronDelta as NeuronDelta
from .effects import tuning_effects as tuning_effects
from .loop import Diverged as Diverged
from .loop import tune as tune
from .recipe import Recipe as Recipe
from .result import Step as Step
from .result import Tuned as Tuned
