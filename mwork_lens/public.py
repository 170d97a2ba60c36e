"""The public names; the package looks them up here at first use, as importing them takes seconds."""

from . import plots
from .detection import Detection, detect, importance, matched_control, other_control, random_control, with_controls
from .detection.activations import Activations, collect_means, collect_samples
from .detection.attributing import Attribution, attribution
from .detection.checking import check_scores
from .detection.comparison import agreement, neuron_counts, overlap
from .detection.controls import all_controls, cut_to_equal, cut_to_size, shared_control, top_control
from .detection.firing import Firing, HistogramOptions, collect_firing
from .effects import EffectMatrix, effect_matrix, folded_effects, language_losses
from .effects.parts import LayerSweep, StageGrid, layer_sweep, stage_grid
from .effects.single import SingleEffects, single_effects
from .effects.workflow import Workflow, workflow
from .experiments.corpus import describe_corpus
from .experiments.tasks import TaskOptions, run_task_experiment
from .generation import Generations, Steering, fallback, generate, generations, mean_difference, steer
from .lens import LanguageRatio, NeuronCards, inspect, language_ratio, latent_languages, lens_grid, translation_probes
from .lens.vocabulary import identifier_accuracy, label_vocabulary
from .measures import LayerMeasure, Measure
from .model import ContentPositions, load_model
from .neurons import GateValues, NeuronSet, NeuronSpace, Stages, ablate, edit_weights
from .neurons.interop import load_lape, load_neurons, load_released, save_neurons
from .neurons.sampling import sample_neurons
from .tasks import TaskResult, load_questions
from .text import Corpus, StreamedCorpus, load_corpus
from .tuning import NeuronDelta, Tuned, export_edited, export_tuned, tune, tuning_effects

__all__ = ["ContentPositions", "Corpus", "StreamedCorpus", "describe_corpus", "load_corpus", "load_model", "plots"]
__all__ += ["LayerMeasure", "Measure", "NeuronSet", "NeuronSpace", "Stages"]
__all__ += ["load_lape", "load_neurons", "load_released", "save_neurons"]
__all__ += ["Activations", "Detection", "check_scores", "collect_means", "collect_samples", "detect", "importance"]
__all__ += ["Attribution", "attribution"]
__all__ += ["Firing", "GateValues", "HistogramOptions", "collect_firing"]
__all__ += ["all_controls", "matched_control", "other_control", "random_control", "shared_control", "top_control"]
__all__ += ["agreement", "cut_to_equal", "cut_to_size", "neuron_counts", "overlap", "with_controls"]
__all__ += ["LanguageRatio", "language_ratio", "latent_languages", "lens_grid", "translation_probes"]
__all__ += ["NeuronCards", "identifier_accuracy", "inspect", "label_vocabulary"]
__all__ += ["EffectMatrix", "LayerSweep", "StageGrid", "Workflow", "ablate", "effect_matrix", "folded_effects"]
__all__ += ["language_losses", "layer_sweep", "stage_grid", "workflow"]
__all__ += ["SingleEffects", "sample_neurons", "single_effects"]
__all__ += ["Generations", "Steering", "fallback", "generate", "generations", "mean_difference", "steer"]
__all__ += ["TaskOptions", "TaskResult", "load_questions", "run_task_experiment"]
__all__ += ["NeuronDelta", "Tuned", "edit_weights", "export_edited", "export_tuned", "tune", "tuning_effects"]
