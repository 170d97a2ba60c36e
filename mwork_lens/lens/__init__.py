"""Which language each layer speaks, and what single neurons read and write."""

from .inspection import inspect
from .lens_grid import LensGrid, lens_grid
from .neuron_cards import NeuronCards
from .probes import LatentLanguages, Probe, latent_languages, read_words, translation_probes
from .ratio import language_ratio
from .shares import LanguageRatio
from .validation import IdentifierAccuracy, identifier_accuracy
from .vocabulary import TokenLanguages, label_vocabulary
