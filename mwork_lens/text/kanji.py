"""Japanese and Chinese words that are written in Chinese characters alone, told apart by their characters.

A character is usual in Chinese if it is in GB 2312 (simplified) or Big5 (traditional), and in Japanese if it is in the
first level of JIS X 0208 or in the Jōyō list (2010). A word is possible in a language if its form is: 経済 and 会議 are
Japanese, 经济 and 會議 Chinese, 学生 is both. The limit: a word whose characters are all usual in both languages is
common here, even if only one language has that word (勉強, 我去).
"""

from functools import cache
from typing import Literal

import regex

Form = Literal["zh", "ja", "both"]

_JOYO_BEYOND = "彙鬱楷諧毀嗅惧憬錮傲刹恣摯羞箋踪緻嘲貪丼訃璧哺喩瘍拉辣慄籠曖塡剝頰𠮟"
"""Characters of the Jōyō list outside the first level of JIS X 0208."""
_MARKS = "々〆ヶ"
"""Japanese ones that Unicode counts as letters: those written Chinese words lack."""
_NOT_CHINESE = "伝粁粍"
"""In Big5, but obscure there and everyday in Japanese."""
_LETTERS = regex.compile(r"\p{L}")
_HAN = regex.compile(r"[\p{Script=Han}ヶ]+")


@cache
def _usual() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Characters that are usual in simplified Chinese, in traditional Chinese and in Japanese."""
    blocks = [chr(code) for code in range(0x4E00, 0xA000)]
    simplified, traditional = (frozenset(c for c in blocks if _encoded(c, codec)) for codec in ("gb2312", "big5"))
    first_level = {c for c in blocks if (code := _encoded(c, "euc_jp")) and len(code) == 2 and code[0] <= 0xCF}
    return simplified, traditional - set(_NOT_CHINESE), frozenset(first_level | set(_JOYO_BEYOND))


def _encoded(character: str, codec: str) -> bytes:
    return character.encode(codec, errors="ignore")


def han_form(text: str) -> Form | None:
    """In which of Chinese and Japanese a text in Chinese characters has a usual form; None for any other text."""
    letters = "".join(_LETTERS.findall(text))
    if not _HAN.fullmatch(letters) or not (plain := set(letters) - set(_MARKS)):
        return None
    simplified, traditional, japanese = _usual()
    chinese = plain <= simplified or plain <= traditional
    if plain == set(letters) and chinese:
        return "both" if plain <= japanese else "zh"
    if plain <= japanese or (not chinese and all(len(_encoded(c, "euc_jp")) == 2 for c in plain)):
        return "ja"
    # of mixed or rare forms, the more frequent peculiar characters decide
    only_japanese = sum(c in _MARKS or c in japanese - simplified - traditional for c in letters)
    only_chinese = sum(c in (simplified | traditional) - japanese for c in letters)
    return None if only_japanese == only_chinese else "ja" if only_japanese > only_chinese else "zh"
