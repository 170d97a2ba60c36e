"""Words of a text, in languages that put spaces between them and in those that do not."""

import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from functools import cache

import langcodes
import regex

from .languages import expected_scripts

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_SEGMENTS = regex.compile(rf"(?={UNSPACED})\X|(?:(?!{UNSPACED})[^\s])+")
_WORDS = regex.compile(r"\p{L}[\p{L}\p{M}\p{Nd}'’\-]*")
_UNSPACED_SCRIPTS = {"Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "es": "un una unos unas el la los las",
    "fr": "un une des le la les l'",
}


def segments(text: str) -> list[str]:
    """Whitespace-separated pieces, and every single character (with its marks) of scripts without spaces.

    The mixed segmentation of MLQA's scorer (Lewis et al. 2020), for all scripts that do not separate words. It needs
    no dictionary, so a score does not depend on what is installed.
    """
    return _SEGMENTS.findall(text)


def normalized(text: str, language: str) -> list[str]:
    """Segments without punctuation, case and articles (SQuAD's and MLQA's normalisation)."""
    plain = regex.sub(r"[\p{P}\p{S}\p{Cf}]", " ", unicodedata.normalize("NFKC", text).casefold())
    articles = ARTICLES.get(langcodes.get(language).language or "", "").split()
    return [word for word in segments(plain) if word not in articles]


def is_spaced(language: str) -> bool:
    """Whether the language's usual script puts spaces between words."""
    return not expected_scripts(language) & _UNSPACED_SCRIPTS


@cache
def word_segmenter(language: str) -> Callable[[str], list[str]]:
    """A function from a text to its words: letters between spaces; jieba for Chinese, PyThaiNLP for Thai.

    Raises:
        ImportError: for a language without spaces, where its library is not installed or none is known; the message
            names the remedy.
    """
    if is_spaced(language):
        return _WORDS.findall
    cut = _library(language)
    return lambda text: [word for word in cut(text) if _WORDS.match(word)]


def _library(language: str) -> Callable[[str], Iterable[str]]:
    """The segmenter of a language without spaces; both know their dictionary without a network."""
    base = langcodes.get(language).language
    if base not in ("zh", "th"):
        raise ImportError(f"Words of {language!r} are not separated by spaces, and no segmenter for it is known here.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of these libraries' own age
            if base == "zh":
                import jieba  # pyright: ignore[reportMissingImports]

                jieba.setLogLevel(logging.WARNING)
                return jieba.cut
            from pythainlp import word_tokenize  # pyright: ignore[reportMissingImports]

            return word_tokenize
    except ImportError as error:
        raise ImportError(f"Words of {language!r} need a segmenter: pip install 'mwork_lens[tasks]'.") from error
