"""Which language each layer speaks, and what single neurons read and write."""

from .cards import NeuronCards as NeuronCards
from .grid import LensGrid as LensGrid
from .grid import lens_grid as lens_grid
from .inspection import inspect as inspect
from .probes import LatentLanguages as LatentLanguages
from .probes import Probe as Probe
from .probes import latent_languages as latent_languages
from .probes import read_words as read_words
from .probes import translation_probes as translation_probes
from .ratio import language_ratio as language_ratio
from .shares import LanguageRatio as LanguageRatio
from .validation import IdentifierAccuracy as IdentifierAccuracy
from .validation import identifier_accuracy as identifier_accuracy
from .vocabulary import TokenLanguages as TokenLanguages
from .vocabulary import label_vocabulary as label_vocabulary
