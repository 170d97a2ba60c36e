"""Loss by language, and the effect of switching neurons off."""

from .ablating import Change, Sets, effect_matrix, folded_effects, losses_under
from .grid import StageGrid, pool_grids, stage_grid
from .joining import beside, pool, pool_common
from .loss import language_losses, passage_nats
from .matrix import BASELINE, TUNED, UNITS, Among, EffectMatrix, Unit
from .sweep import MEAN, SIDES, LayerSweep, layer_sweep
from .workflow import Evidence, Workflow, workflow
