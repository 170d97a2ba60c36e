"""Text in: corpora, their files, languages and words."""

from .corpora import Corpus, Document, as_corpus, load_corpus, spread
from .languages import (
    OTHER,
    SHARED,
    Identifier,
    expected_scripts,
    identifier,
    main_script,
    require_language,
    share_a_script,
)
from .readers import hub_errors, language_of, read_rows, suffix_of
from .words import is_spaced, normalized, word_segmenter
