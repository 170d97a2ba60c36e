"""A result in, a plotly figure out. Nothing here shows or writes anything.

Every figure takes a result, its own options, and ``**layout``, which goes to ``figure.update_layout``.
"""

from .changes import (
    enhancement_by_documents,
    enhancement_by_language,
    enhancement_matrix,
    generations,
    steering,
    task_changes,
    tuning,
)
from .detection import agreement, benchmark, neuron_counts, overlap
from .effects import effect_matrix, selectivity
from .lens import language_heatmap, language_ratio, latent_languages, lens_grid, promoted_language
from .stages import layer_sweep, stage_grid, workflow

__all__ = ["agreement", "benchmark", "effect_matrix", "enhancement_by_documents", "enhancement_by_language"]
__all__ += ["enhancement_matrix", "generations", "language_heatmap", "language_ratio", "latent_languages"]
__all__ += ["layer_sweep", "lens_grid", "neuron_counts", "overlap", "promoted_language", "selectivity"]
__all__ += ["stage_grid", "steering", "task_changes", "tuning", "workflow"]
