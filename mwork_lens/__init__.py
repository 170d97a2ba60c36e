"""mwork_lens: how a multilingual language model works inside, on TransformerLens models."""

from . import plots as plots
from .comparison import agreement as agreement
from .comparison import overlap as overlap
from .controls import matched_control as matched_control
from .controls import random_control as random_control
from .corpora import Corpus as Corpus
from .corpora import load_corpus as load_corpus
from .detection import Detection as Detection
from .detection import detect as detect
from .detection import importance as importance
from .evaluation import EffectMatrix as EffectMatrix
from .evaluation import effect_matrix as effect_matrix
from .lens import LanguageRatio as LanguageRatio
from .lens import identifier_accuracy as identifier_accuracy
from .lens import inspect as inspect
from .lens import label_vocabulary as label_vocabulary
from .lens import language_ratio as language_ratio
from .lens import latent_languages as latent_languages
from .lens import lens_grid as lens_grid
from .lens import translation_probes as translation_probes
from .models import load_model as load_model
from .neurons import NeuronSet as NeuronSet
from .neurons import NeuronSpace as NeuronSpace
from .neurons import ablate as ablate
from .plnd import LayerMeasure as LayerMeasure
from .plnd import Measure as Measure
