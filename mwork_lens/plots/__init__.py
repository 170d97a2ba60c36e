"""A result in, a plotly figure out. Nothing here shows or writes anything."""

from .bench import benchmark as benchmark
from .comparison import agreement as agreement
from .comparison import overlap as overlap
from .effects import effect_matrix as effect_matrix
from .effects import selectivity as selectivity
from .enhancement import enhancement_by_documents as enhancement_by_documents
from .enhancement import enhancement_by_language as enhancement_by_language
from .enhancement import enhancement_matrix as enhancement_matrix
from .generations import generations as generations
from .generations import steering as steering
from .inspection import promoted_language as promoted_language
from .neurons import neuron_counts as neuron_counts
from .probes import latent_languages as latent_languages
from .ratio import language_heatmap as language_heatmap
from .ratio import language_ratio as language_ratio
from .ratio import lens_grid as lens_grid
from .stages import layer_sweep as layer_sweep
from .stages import stage_grid as stage_grid
from .stages import workflow as workflow
from .tasks import task_changes as task_changes
from .tuning import tuning as tuning
