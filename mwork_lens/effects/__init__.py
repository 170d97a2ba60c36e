"""Loss by language, and the effect of switching neurons off."""

from .ablating import Change, Sets, effect_matrix, folded_effects, losses_under
from .loss import language_losses, passage_nats
from .matrix import BASELINE, TUNED, UNITS, Among, EffectMatrix, Unit, beside, pool, pool_common
from .parts import MEAN, SIDES, LayerSweep, Row, StageGrid, layer_sweep, pool_grids, stage_grid
from .workflow import Evidence, Workflow, workflow
