"""What a model can still do: loss by language, and the effect of switching neurons off."""

from .effects import EffectMatrix as EffectMatrix
from .effects import effect_matrix as effect_matrix
