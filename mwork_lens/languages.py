"""Language tags (BCP 47) and the scripts that text is written in."""

from collections import Counter
from functools import cache
from typing import Literal

import langcodes
import regex

Labels = Literal["bcp47", "free"]


def require_language(tag: str) -> str:
    """``tag`` in its standard form, e.g. ``zh`` for ``zho`` or ``ru-Latn`` for ``ru-latn``.

    Raises:
        ValueError: if it is no BCP 47 language tag.
    """
    if not (tag and langcodes.tag_is_valid(tag)):
        raise ValueError(
            f"{tag!r} is no language tag (BCP 47, e.g. fr, ceb, zh-Hant, ru-Latn). "
            "For groups that are no languages use labels='free'."
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
