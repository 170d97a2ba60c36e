"""Which language each layer speaks, and what single neurons read and write."""

from .inspection import inspect
from .language_ratio import LanguageRatio
from .lens_grid import LensGrid, lens_grid
from .neuron_cards import NeuronCards
from .probes import LatentLanguages, Probe, latent_languages, read_words, translation_probes
from .reading import language_ratio
from .vocabulary import IdentifierAccuracy, TokenLanguages, identifier_accuracy, label_vocabulary
