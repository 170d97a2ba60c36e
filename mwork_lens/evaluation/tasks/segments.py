"""Words of a text, in languages that put spaces between them and in those that do not."""

import unicodedata
from collections.abc import Callable
from functools import cache

import langcodes
import regex

from ...languages import expected_scripts

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


class Segmenter:
    """The tokenizer that ``rouge_score`` asks for."""

    def __init__(self, language: str) -> None:
        self.language = language

    def tokenize(self, text: str) -> list[str]:
        """Normalised segments; articles stay, as in ROUGE."""
        return [piece for piece in normalized(text, "und") if piece]


def is_spaced(language: str) -> bool:
    """Whether the language's usual script puts spaces between words."""
    return not expected_scripts(language) & _UNSPACED_SCRIPTS


@cache
def word_segmenter(language: str) -> Callable[[str], list[str]]:
    """A function from a text to its words: letters between spaces, or a library for Chinese and Thai.

    Raises:
        ImportError: for a language without spaces, where its library is not installed or none is known; the message
            names the remedy.
    """
    base = langcodes.get(language).language
    if is_spaced(language):
        return _WORDS.findall
    if base == "zh":
        try:
            import jieba  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("Chinese words need a segmenter: pip install jieba.") from error
        jieba.setLogLevel(60)
        return lambda text: [word for word in jieba.cut(text) if _WORDS.match(word)]
    if base == "th":
        try:
            from pythainlp import word_tokenize  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("Thai words need a segmenter: pip install pythainlp.") from error
        return lambda text: [word for word in word_tokenize(text) if _WORDS.match(word)]
    raise ImportError(f"Words of {language!r} are not separated by spaces, and no segmenter for it is known here.")
