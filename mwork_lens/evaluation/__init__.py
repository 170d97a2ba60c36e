"""What a model can still do: loss by language, and the effect of switching neurons off."""

from .effects import effect_matrix as effect_matrix
from .effects import folded_effects as folded_effects
from .fidelity import Generations as Generations
from .fidelity import generations as generations
from .generation import Completion as Completion
from .generation import generate as generate
from .grid import StageGrid as StageGrid
from .grid import pool_grids as pool_grids
from .grid import stage_grid as stage_grid
from .joining import beside as beside
from .joining import pool as pool
from .joining import pool_common as pool_common
from .loss import language_losses as language_losses
from .matrix import EffectMatrix as EffectMatrix
from .steering import Steering as Steering
from .steering import mean_difference as mean_difference
from .steering import steer as steer
from .sweep import LayerSweep as LayerSweep
from .sweep import layer_sweep as layer_sweep
from .workflow import Evidence as Evidence
from .workflow import Workflow as Workflow
from .workflow import workflow as workflow
