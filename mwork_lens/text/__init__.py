"""Text in: corpora, their files, languages and words."""

from .arguments import check_arguments, check_settings
from .corpora import Corpus
from .dealing import spread
from .documents import Document, as_documents, as_names, checked_documents, fault_of, identity
from .files import files_of, read_lines, read_rows, remove_cut_line, suffix_of, whole_lines
from .languages import OTHER, SHARED, Identifier, expected_scripts, fold_case, identifier
from .languages import is_japanese as is_japanese
from .languages import main_script as main_script
from .languages import require_language as require_language
from .languages import standard_tag as standard_tag
from .loading import as_corpus, load_corpus
from .readers import hub_errors, language_of
from .seen import SeenDocuments, Status
from .streams import Stream, StreamedCorpus
from .unknown import (
    ONE_TOKEN,
    say_unknown,
    unknown_counts,
    unknown_id,
    unknown_shares,
    unknown_words_said,
    warn_of_unknown,
)
