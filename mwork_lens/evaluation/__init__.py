"""What a model can still do: loss by language, and the effect of switching neurons off."""

from .effects import EffectMatrix as EffectMatrix
from .effects import effect_matrix as effect_matrix
from .fidelity import Generations as Generations
from .fidelity import generations as generations
from .generation import Completion as Completion
from .generation import generate as generate
from .steering import Steering as Steering
from .steering import mean_difference as mean_difference
from .steering import steer as steer
