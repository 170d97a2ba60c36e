"""What a corpus holds, by language: documents, tokens, distinct words, and how much of a vocabulary occurs in it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import regex

from ..statistics import wilson
from ..store import user_path
from ..text import (
    Corpus,
    as_names,
    check_arguments,
    files_of,
    fold_case,
    language_of,
    read_lines,
    read_rows,
    require_language,
    suffix_of,
)
from ..text.languages import is_spaced, word_segmenter

NO_VOCABULARY = "no reference vocabulary"

Vocabulary = Mapping[str, Sequence[Sequence[str]]]
"""By language: entries, each a list of synonyms."""


def describe_corpus(
    corpus: Corpus,
    *,
    tokenizer: Any = None,
    vocabulary: Vocabulary | None = None,
    segmenters: Mapping[str, Callable[[str], Sequence[str]]] | None = None,
) -> pd.DataFrame:
    """The paper's appendix table for any corpus.

    Args:
        corpus: texts, not token ids.
        tokenizer: a transformers tokenizer, to count tokens; none are counted without one.
        vocabulary: by language, entries that each are a list of synonyms; one is covered if any synonym occurs.
        segmenters: functions from a text to its words, by language; by default letters between spaces, and for Chinese
            and Thai the libraries jieba and pythainlp where they are installed.

    Returns:
        One row per language: ``documents``, ``passages``, ``characters``, ``tokens``, ``words`` and ``distinct_words``
        (NaN without a segmenter, which ``words_by`` then names), ``vocabulary`` (entries), ``covered``,
        ``coverage`` with its 95 % Wilson interval (``low``, ``high``), and ``note``.
    """
    check_arguments(describe_corpus, locals())
    rows, entries = {}, {require_language(tag): _entry_lists(tag, some) for tag, some in (vocabulary or {}).items()}
    for language in corpus:
        texts = [str(text) for text in corpus[language]]
        tokens = None if tokenizer is None else tokenizer(texts, add_special_tokens=False)["input_ids"]
        words, by = _words(language, texts, segmenters or {})
        rows[language] = {
            "documents": len(set(corpus.documents[language])),
            "passages": len(texts),
            "characters": sum(map(len, texts)),
            "tokens": None if tokens is None else sum(map(len, tokens)),
            "words": None if words is None else len(words),
            "distinct_words": None if words is None else len(set(words)),
            "words_by": by,
            **_coverage(language, entries.get(language), words, texts),
        }
    columns = ["documents", "passages", "characters", "tokens", "words", "distinct_words", "words_by"]
    columns += ["vocabulary", "covered", "coverage", "low", "high", "note"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("language")
    return frame.astype(dict.fromkeys(["tokens", "words", "distinct_words", "vocabulary", "covered"], "Int64"))


def _words(language: str, texts: Sequence[str], segmenters: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """Words, and what cut them; none without a segmenter, and why."""
    try:
        segment = segmenters[language] if language in segmenters else word_segmenter(language)
    except ImportError as error:
        return None, str(error)
    by = "given" if language in segmenters else "spaces" if is_spaced(language) else "library"
    return [_word(word, language) for text in texts for word in segment(text)], by


def _word(word: str, language: str) -> str:
    """Without case and soft hyphens."""
    return fold_case(word.replace("\u00ad", ""), language)


def _entry_lists(language: str, entries: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    if isinstance(entries, str) or any(isinstance(synonyms, str) for synonyms in entries):
        raise ValueError(
            f"The vocabulary of {language!r} must be a list of lists of synonyms, e.g. [['dog', 'hound']]."
        )
    return entries


def _coverage(
    language: str, entries: Sequence[Sequence[str]] | None, words: Sequence[str] | None, texts: Sequence[str]
) -> dict[str, Any]:
    """A synonym occurs as a word; one that holds a space, or any where words are not segmented, as a string."""
    if not entries:
        return {"note": NO_VOCABULARY}
    distinct, whole = set(words or ()), _word("\n".join(texts), language)

    def occurs(word: str) -> bool:
        return word in distinct or ((words is None or " " in word) and word in whole)

    covered = sum(any(occurs(_word(synonym, language)) for synonym in synonyms) for synonyms in entries)
    low, high = wilson(covered, len(entries))
    note = "" if words is not None else "looked for as strings, since words are not segmented"
    counts = {"vocabulary": len(entries), "covered": covered, "coverage": covered / len(entries)}
    return {**counts, "low": low, "high": high, "note": note}


def read_vocabulary(source: str | Path, languages: Sequence[str]) -> dict[str, list[list[str]]]:
    """A vocabulary from a folder of ``fr.txt`` (one word per line), or a ``.jsonl`` of rows with words by language.

    A row of a ``.jsonl`` is one entry, e.g. ``{"fr": ["chien"], "zh": ["狗", "犬"]}``, as in a Swadesh list.
    """
    path, languages = user_path(source), as_names(languages, "languages")
    if not path.exists():
        raise FileNotFoundError(f"There is no vocabulary {str(source)!r}.")
    lists: dict[str, list[list[str]]] = {}
    for language, synonyms in (
        _word_lists(path) if path.is_dir() else itertools.chain(*read_rows(path, partial(_entries, languages)))
    ):
        lists.setdefault(language, []).append(synonyms)
    wanted = {language: lists[language] for language in languages if lists.get(language)}
    if not wanted:
        raise ValueError(f"{path} has no words in {', '.join(languages)}; it has {', '.join(sorted(lists)) or 'none'}.")
    return wanted


def _word_lists(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for file in (file for file in files_of(folder)[0] if suffix_of(file) == ".txt"):
        if language := language_of(file):
            yield from ((language, [word.strip()]) for word in read_lines(file) if word.strip())


def _entries(wanted: Sequence[str], row: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """By language: its words in a row, without the stars of reconstructed ones."""
    if single := [language for language in wanted if isinstance(row.get(language), str)]:
        raise ValueError(f"the words in {single[0]!r} are one string, not a list")
    lists = {
        language: [plain for word in words if (plain := regex.sub(r"\s*\*", "", word))]
        for language, words in row.items()
        if isinstance(words, list) and all(isinstance(word, str) for word in words)
    }
    return [(require_language(language), words) for language, words in lists.items() if words]
