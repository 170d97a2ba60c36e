"""Loss by language, and the effect of switching neurons off."""

from .losses import (
    Intervention,
    effect_matrix,
    folded_effects,
    language_losses,
    losses_with,
    passage_nats,
    require_counted,
)
from .matrix import BASELINE, TUNED, UNITS, Among, EffectMatrix
from .parts import MEAN, SIDES, LayerSweep, StageGrid, layer_sweep, pool_grids, stage_grid
from .workflow import Evidence, Workflow, workflow
