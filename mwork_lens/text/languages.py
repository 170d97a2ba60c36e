"""Language tags (BCP 47), the scripts that text is written in, and identifiers of texts' and tokens' languages."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import langcodes
import regex

Labels = Literal["bcp47", "free"]

Identifier = Callable[[Sequence[str]], Sequence[str | None]]
"""Texts, or single tokens, in; the language of each out, or None where it cannot be told.

It may also answer ``"shared"`` for a text that is about as likely in several languages (``die``, ``no``, ``son``).
"""

OTHER, SHARED = "other", "shared"
"""What has no language: digits, punctuation, fragments, other languages; what several languages have in common."""

SHARED_RATIO = 0.9
"""Lingua: the runner-up's confidence over the best one's from which a text counts as shared."""

CONFIDENCE = 0.3
"""Lingua: the confidence (of 1, over all candidates) below which a text has no language.

Of 26,257 tokens of NTREX-128 in ten languages 1.1 % lie below, and 36 % of these would be named rightly.
"""


def require_language(tag: str) -> str:
    """``tag`` in its standard form, e.g. ``zh`` for ``zho`` or ``ru-Latn`` for ``ru-latn``.

    Raises:
        ValueError: if it is not a BCP 47 language tag.
    """
    if not (tag and langcodes.tag_is_valid(tag)):
        raise ValueError(
            f"{tag!r} is not a language tag (BCP 47, e.g. fr, ceb, zh-Hant, ru-Latn). "
            "For groups that are not languages use labels='free'."
        )
    return langcodes.standardize_tag(tag, macro=True)


def expected_scripts(tag: str) -> frozenset[str]:
    """The ISO 15924 scripts that text in this language is usually written in (several for Japanese, Korean)."""
    script = langcodes.get(tag).maximize().script or ""
    several = {
        "Hans": {"Hani"},
        "Hant": {"Hani"},
        "Jpan": {"Hani", "Hira", "Kana"},
        "Kore": {"Hang", "Hani"},
    }
    return frozenset(several.get(script, {script}))


def share_a_script(one: str, other: str) -> bool:
    """Whether two languages are usually written in a common script; False where a label is not a language."""
    scripts = [expected_scripts(tag) if langcodes.tag_is_valid(tag) else frozenset() for tag in (one, other)]
    return bool((scripts[0] & scripts[1]) - {""})


_SCRIPTS = regex.findall(
    r"\w+",
    "Latn Cyrl Grek Arab Hebr Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Thai Laoo Tibt Mymr Geor Armn Hang "
    "Hani Hira Kana Ethi Khmr Mong Thaa Syrc Tfng Nkoo Cher Vaii Olck",
)


@cache
def _pattern(script: str) -> regex.Pattern[str]:
    return regex.compile(rf"\p{{Script={script}}}")


def main_script(text: str) -> str | None:
    """The ISO 15924 script of most of the letters in ``text``; None where it has no letters."""
    counts = Counter({script: len(_pattern(script).findall(text)) for script in _SCRIPTS})
    script, count = counts.most_common(1)[0]
    return script if count else None


# --- identifiers ----------------------------------------------------------------------------------


def identifier(name: str | Identifier, languages: Sequence[str]) -> Identifier:
    """A function from texts to their languages, chosen among ``languages`` only.

    Args:
        name: ``"lingua"`` (n-gram models, restricted to the candidates: the best on single tokens), ``"script"``
            (Unicode script alone, for candidates that no two share one; no dependency), ``"cld3"`` (the paper's), or
            a function of your own, which is returned as it is.
        languages: the candidates, as BCP 47 tags; answers use these very tags.

    Raises:
        ValueError: for an unknown name, no or repeated candidates, or one that the identifier does not know.
        ImportError: without the extra ``lid``.
    """
    if not isinstance(name, str):
        return name
    if name not in _IDENTIFIERS:
        raise ValueError(f"There is no identifier {name!r}; there are {', '.join(_IDENTIFIERS)}, or give a function.")
    tags = [require_language(tag) for tag in languages]
    if not tags or len(set(tags)) < len(tags):
        raise ValueError(f"An identifier needs distinct candidate languages, not {list(languages)}.")
    return _IDENTIFIERS[name](dict(zip(tags, languages, strict=True)))


def _lingua(tags: Mapping[str, str]) -> Identifier:
    try:
        from lingua import Language, LanguageDetectorBuilder
    except ImportError as error:
        raise ImportError(
            "Identifying languages with 'lingua' needs lingua-language-detector: pip install 'mwork_lens[lid]'."
        ) from error
    languages = {require_language(language.iso_code_639_1.name.lower()): language for language in Language.all()}
    languages["no"] = languages["nb"]
    label_of = _match("lingua", languages, tags)
    # lingua wants a choice of at least two
    spare = [languages[tag] for tag in ("en", "ru") if languages[tag] not in label_of][: 2 - len(label_of)]
    detector = LanguageDetectorBuilder.from_languages(*label_of, *spare).build()

    def label(confidences: Any) -> str | None:
        best, second = confidences[0], confidences[1]
        if best.value < CONFIDENCE or best.language not in label_of:
            return None
        return SHARED if second.value >= SHARED_RATIO * best.value else label_of[best.language]

    def identify(texts: Sequence[str]) -> list[str | None]:
        return list(map(label, detector.compute_language_confidence_values_in_parallel(list(texts))))

    return identify


def _cld3(tags: Mapping[str, str]) -> Identifier:
    try:
        from gcld3 import NNetLanguageIdentifier
    except ImportError as error:
        raise ImportError("Identifying languages with 'cld3' needs cld3-py: pip install 'mwork_lens[lid]'.") from error
    label_of = _match("cld3", {require_language(code): code for code in _CLD3}, tags)
    detector = NNetLanguageIdentifier(0, 2000)

    def identify(texts: Sequence[str]) -> list[str | None]:
        results = map(detector.FindLanguage, texts)
        return [label_of.get(result.language) if result.is_reliable else None for result in results]

    return identify


def _script(tags: Mapping[str, str]) -> Identifier:
    scripts = {label: expected_scripts(tag) for tag, label in tags.items()}
    by_script: dict[frozenset[str], str] = {}
    for label, written in scripts.items():
        if written in by_script:
            raise ValueError(
                f"{by_script[written]!r} and {label!r} are both written in {'/'.join(sorted(written))}: their script "
                "does not distinguish them. Use 'lingua', or leave one out."
            )
        by_script[written] = label

    def identify(texts: Sequence[str]) -> list[str | None]:
        return [_only(scripts, text) for text in texts]

    return identify


def _only(scripts: Mapping[str, frozenset[str]], text: str) -> str | None:
    """The one language written in the text's main script and, where several are, in all of its scripts."""
    main = main_script(text)
    fit = [label for label, written in scripts.items() if main in written]
    if len(fit) > 1:
        shared = frozenset.union(*(scripts[label] for label in fit))
        used = {script for script in shared if _pattern(script).search(text)}
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


_IDENTIFIERS: Mapping[str, Callable[[Mapping[str, str]], Identifier]] = {
    "lingua": _lingua,
    "script": _script,
    "cld3": _cld3,
}

_CLD3 = regex.findall(
    r"\S+",
    "af am ar bg bg-Latn bn bs ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd gl gu ha haw hi "
    "hi-Latn hmn hr ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt "
    "my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi "
    "yo zh zh-Latn zu",
)
