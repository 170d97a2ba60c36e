"""Which language each layer speaks, and what single neurons read and write."""

from .ratio import language_ratio as language_ratio
from .shares import LanguageRatio as LanguageRatio
from .validation import IdentifierAccuracy as IdentifierAccuracy
from .validation import identifier_accuracy as identifier_accuracy
from .vocabulary import TokenLanguages as TokenLanguages
from .vocabulary import label_vocabulary as label_vocabulary
