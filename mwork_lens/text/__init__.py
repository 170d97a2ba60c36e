"""Text in: corpora, their files, languages and words."""

from .corpora import Corpus, as_corpus, load_corpus, spread
from .documents import Document, as_documents, as_names, fault_of
from .files import read_lines, read_rows, suffix_of, whole_lines
from .languages import (
    OTHER,
    SHARED,
    Identifier,
    expected_scripts,
    identifier,
    is_japanese,
    main_script,
    require_language,
)
from .readers import hub_errors, language_of
