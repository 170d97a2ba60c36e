"""Text in: corpora, their files, languages and words."""

from .corpora import Corpus, as_corpus, fault_of, load_corpus, spread
from .languages import OTHER, SHARED, Identifier, expected_scripts, identifier, main_script, require_language
from .readers import Document, hub_errors, language_of, read_rows, suffix_of
