"""Language tags (BCP 47), the scripts and words of text, and identifiers of texts' and tokens' languages."""

import logging
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import langcodes
import regex

from .choices import listed
from .documents import as_names
from .kanji import Form, han_form

Labels = Literal["bcp47", "free"]

Identifier = Callable[[Sequence[str]], Sequence[str | None]]
"""From texts or single tokens to the language of each: None where it is unclear, ``"shared"`` where several are about
as likely (``die``, ``no``, ``son``)."""

OTHER, SHARED = "other", "shared"
"""What has no language: digits, punctuation, fragments, other languages; what several languages have in common."""

SHARED_RATIO = 0.9
"""Lingua: the runner-up's confidence over the best one's from which a text counts as shared."""

CONFIDENCE = 0.3
"""Lingua: the confidence (of 1, over all candidates) below which a text has no language. Of 26,257 tokens of NTREX-128
in ten languages 1.1 % lie below, and 36 % of these would be named rightly."""


def require_language(tag: str, labels: Labels = "bcp47") -> str:
    """``tag`` in its standard form, e.g. ``zh`` for ``zho``; ValueError if it is not one (a free label may be any)."""
    if labels == "free":
        return tag
    if not (tag and langcodes.tag_is_valid(tag)):
        raise ValueError(
            f"{tag!r} is not a language tag (BCP 47, e.g. fr, ceb, zh-Hant, ru-Latn). "
            "For groups that are not languages use labels='free'."
        )
    return langcodes.standardize_tag(tag, macro=True)


def standard_tag(label: str) -> str:
    """A language tag in its standard form (``he`` for ``iw``), as corpora have it; any other label as it is."""
    return require_language(label) if label and langcodes.tag_is_valid(label) else label


def expected_scripts(tag: str) -> frozenset[str]:
    """The ISO 15924 scripts that text in this language is usually written in (several for Japanese, Korean)."""
    script = langcodes.get(tag).maximize().script or ""
    several = {"Hans": {"Hani"}, "Hant": {"Hani"}, "Jpan": {"Hani", "Hira", "Kana"}, "Kore": {"Hang", "Hani"}}
    return frozenset(several.get(script, {script}))


def is_japanese(tag: str) -> bool:
    """Whether a tag is Japanese, of whatever region."""
    return langcodes.get(tag).language == "ja"


def share_a_script(one: str, other: str) -> bool:
    """Whether two languages are usually written in a common script; False where a label is not a language."""
    scripts = [expected_scripts(tag) if langcodes.tag_is_valid(tag) else frozenset() for tag in (one, other)]
    return bool((scripts[0] & scripts[1]) - {""})


_SCRIPTS = (
    "Latn Cyrl Grek Arab Hebr Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Thai Laoo Tibt Mymr Geor Armn Hang "
    "Hani Hira Kana Ethi Khmr Mong Thaa Syrc Tfng Nkoo Cher Vaii Olck"
)


def main_script(text: str) -> str | None:
    """The ISO 15924 script of most of the letters in ``text``; None where it has no letters."""
    counts = Counter({script: len(regex.findall(rf"\p{{Script={script}}}", text)) for script in _SCRIPTS.split()})
    script, count = counts.most_common(1)[0]
    return script if count else None


def fold_case(text: str, language: str) -> str:
    """Without case, as the language has it, and without what it may leave out.

    Turkish ``I`` is ``ı``, ``İ`` is ``i``; Greek capitals bear no accents; Russian ``ё`` may be ``е``, and Romanian
    ``ș`` be written ``ş``; Arabic and Hebrew may leave out vowels, and stretch words.
    """
    base = langcodes.get(language).language if langcodes.tag_is_valid(language or "-") else ""
    if base in DOTLESS_I:
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı")
    folded = text.casefold()
    if base in DOTTED:
        folded = regex.sub("(?<=[ijį])\u0307", "", unicodedata.normalize("NFC", folded))
    if base == "el":
        folded = unicodedata.normalize("NFD", folded).replace("\u0301", "")
    folded = unicodedata.normalize("NFC", _VOWELS.sub("", folded))
    return folded.translate(_VARIANTS.get(base or "", {}))


_VOWELS = regex.compile(r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]")
"""Points and accents of Hebrew, the short vowels of Arabic, and the stroke (tatweel) that stretches its words."""
_VARIANTS = {
    "ro": str.maketrans("şţ", "șț"),
    "ru": str.maketrans("ё", "е"),
    **dict.fromkeys(("ckb", "fa", "ku", "ps", "ur"), str.maketrans("يىك", "ییک")),
}
"""Letters that a language writes in two ways, and which one stands for both."""
DOTLESS_I = ("az", "crh", "gag", "tr", "tt")
"""Languages in which i and ı are two letters."""

DOTTED = (*DOTLESS_I, "lt")
"""Languages whose small i may have a dot of its own, as in ``"İ".lower()`` and under Lithuanian accents."""

_WORDS = regex.compile(r"\p{L}(?:[\p{L}\p{M}\p{Nd}'’׳״·\u00ad\u200c\u200d\-]*[\p{L}\p{M}\p{Nd}'’׳])?")
"""Joiners and soft hyphens within a word do not end it; nor do Hebrew's geresh and gershayim, Catalan's point."""
UNSPACED_SCRIPTS = {"Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}


def is_spaced(language: str) -> bool:
    """Whether the language's usual script puts spaces between words; Korean does, Chinese characters or not."""
    scripts = expected_scripts(language)
    return "Hang" in scripts or not scripts & UNSPACED_SCRIPTS


@cache
def word_segmenter(language: str) -> Callable[[str], list[str]]:
    """A function from a text to its words: letters between spaces; jieba for Chinese, PyThaiNLP for Thai (offline).

    Raises:
        ImportError: for a language without spaces, where its library is not installed or none is known.
    """
    if is_spaced(language):
        return _WORDS.findall
    base = langcodes.get(language).language
    if base not in ("zh", "th"):
        raise ImportError(f"Words of {language!r} are not separated by spaces, and no segmenter for it is known here.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of these libraries' own age
            if base == "zh":
                import jieba  # pyright: ignore[reportMissingImports]

                jieba.setLogLevel(logging.WARNING)
                cut = jieba.cut
            else:
                from pythainlp import word_tokenize as cut  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"Words of {language!r} need a segmenter: pip install 'mwork_lens[tasks]'.") from error
    return lambda text: [word for word in cut(text) if _WORDS.match(word)]


def identifier(name: str | Identifier, languages: Sequence[str], *, common: str = SHARED) -> Identifier:
    """A function from texts to their languages among the candidates ``languages``, by these very BCP 47 tags.

    ``"lingua"`` has n-gram models of the candidates (the best on single tokens), ``"script"`` goes by Unicode script
    alone, ``"cld3"`` is the paper's; a function is returned as it is. Between Chinese and Japanese candidates, texts in
    Chinese characters alone are told apart by these (see :mod:`mwork_lens.text.kanji`), and what both write alike is
    ``common``; the identifiers call all of it Chinese. Composed and decomposed characters (NFC, NFD), and letters of
    other widths, are the same.

    Raises:
        ValueError: for an unknown name, no or repeated candidates, or one that the identifier does not know.
        ImportError: without the extra ``lid``.
    """
    if not isinstance(name, str):
        return name
    if name not in _IDENTIFIERS:
        known = listed(_IDENTIFIERS, name)
        raise ValueError(f"There is no identifier {name!r}; there are {known}, or give a function.")
    tags = [require_language(tag) for tag in as_names(languages, "languages")]
    if not tags or len(set(tags)) < len(tags):
        raise ValueError(f"An identifier needs distinct candidate languages, not {list(languages)}.")
    try:
        identify = _IDENTIFIERS[name](dict(zip(tags, languages, strict=True)))
    except ImportError as error:
        missing = f"Identifying languages with {name!r} needs what is not installed ({error})"
        raise ImportError(f"{missing}: pip install 'mwork_lens[lid]'.") from error
    labels = _of_forms(dict(zip(tags, languages, strict=True)), common)

    def composed(texts: Sequence[str]) -> list[str | None]:
        texts = [unicodedata.normalize("NFC", _PRESENTED.sub(_plain, text)) for text in texts]
        return [_by_form(labels, text, label) for text, label in zip(texts, identify(texts), strict=True)]

    return composed


_PRESENTED = regex.compile(r"[\ufb00-\ufdff\ufe70-\ufefc\uff01-\uffee]+")
"""Ligatures, positional forms of Arabic and Hebrew, wide and narrow forms: Ｈｅｌｌｏ is Hello."""


def _plain(match: regex.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match.group())


def _of_forms(tags: Mapping[str, str], common: str) -> Mapping[Form, str]:
    """What to call Chinese, Japanese and common forms, if there is a candidate of either language."""
    chinese = [label for tag, label in tags.items() if expected_scripts(tag) == {"Hani"}]
    japanese = [label for tag, label in tags.items() if is_japanese(tag)]
    if len(chinese) != 1 or len(japanese) != 1:
        return {}
    return {"zh": chinese[0], "ja": japanese[0], "both": common}


def _by_form(labels: Mapping[Form, str], text: str, label: str | None) -> str | None:
    """The label that a text's characters give it, where an identifier has called it Chinese, Japanese or unclear."""
    if not labels or label not in (None, SHARED, *labels.values()):
        return label
    form = han_form(text)
    return labels[form] if form else label


def _lingua(tags: Mapping[str, str]) -> Identifier:
    from lingua import Language, LanguageDetectorBuilder

    languages = {require_language(language.iso_code_639_1.name.lower()): language for language in Language.all()}
    languages["no"] = languages["nb"]
    label_of = _match("lingua", languages, tags)
    # lingua wants a choice of at least two
    spare = [languages[tag] for tag in ("en", "ru") if languages[tag] not in label_of][: 2 - len(label_of)]
    detector = LanguageDetectorBuilder.from_languages(*label_of, *spare).build()

    def label(confidences: Sequence[Any]) -> str | None:
        best, second = confidences[:2]
        if best.value < CONFIDENCE or best.language not in label_of:
            return None
        return SHARED if second.value >= SHARED_RATIO * best.value else label_of[best.language]

    def identify(texts: Sequence[str]) -> list[str | None]:
        if os.getpid() == _process_with_threads():
            return [*map(label, detector.compute_language_confidence_values_in_parallel(list(texts)))]
        return [label(detector.compute_language_confidence_values(text)) for text in texts]

    return identify


@cache
def _process_with_threads() -> int:
    """The first process to use lingua, which begins threads there; its forks would wait for them for ever."""
    return os.getpid()


def _cld3(tags: Mapping[str, str]) -> Identifier:
    from gcld3 import NNetLanguageIdentifier

    label_of = _match("cld3", {require_language(code): code for code in _CLD3.split()}, tags)
    detector = NNetLanguageIdentifier(0, 2000)

    def identify(texts: Sequence[str]) -> list[str | None]:
        results = map(detector.FindLanguage, texts)
        return [label_of.get(result.language) if result.is_reliable else None for result in results]

    return identify


def _script(tags: Mapping[str, str]) -> Identifier:
    scripts = {label: expected_scripts(tag) for tag, label in tags.items()}
    by_script: dict[frozenset[str], str] = {}
    for label, written in scripts.items():
        if (other := by_script.setdefault(written, label)) != label:
            raise ValueError(
                f"{other!r} and {label!r} are both written in {'/'.join(sorted(written))}: their script does not "
                "distinguish them. Use 'lingua', or leave one out."
            )
    return lambda texts: [_only(scripts, text) for text in texts]


def _only(scripts: Mapping[str, frozenset[str]], text: str) -> str | None:
    """The one language written in the text's main script and, where several are, in all of its scripts."""
    main = main_script(text)
    fit = [label for label, written in scripts.items() if main in written]
    if len(fit) > 1:
        shared = frozenset.union(*(scripts[label] for label in fit))
        used = {script for script in shared if regex.search(rf"\p{{Script={script}}}", text)}
        fit = [label for label in fit if used <= scripts[label]]
    return fit[0] if len(fit) == 1 else None


def _match(name: str, codes: Mapping[str, Any], tags: Mapping[str, str]) -> dict[Any, str]:
    """What the identifier calls each candidate; a region, or a script that is usual anyway, makes no difference."""
    label_of: dict[Any, str] = {}
    for tag, label in tags.items():
        base = langcodes.get(tag).language or ""
        usual = expected_scripts(tag) == expected_scripts(base)
        code = codes.get(tag) or (codes.get(base) if usual else None)
        if code is None:
            raise ValueError(f"The identifier {name!r} does not know {label!r}; it knows {', '.join(sorted(codes))}.")
        if code in label_of:
            raise ValueError(f"The identifier {name!r} does not distinguish {label_of[code]!r} from {label!r}.")
        label_of[code] = label
    return label_of


_IDENTIFIERS = {"lingua": _lingua, "script": _script, "cld3": _cld3}

_CLD3 = (
    "af am ar bg bg-Latn bn bs ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd gl gu ha haw hi "
    "hi-Latn hmn hr ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt "
    "my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi "
    "yo zh zh-Latn zu"
)
