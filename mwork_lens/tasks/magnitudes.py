"""Words of magnitude beside a number, such as million or lakh, and what they multiply it by.

In the languages of MGSM, in Arabic and in Hindi; k and M in all. Beside some of another language a number is not read,
as a billion is not the same everywhere. Units of Japanese and Chinese (万, 億) are parts of their numbers.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from unicodedata import normalize

import regex

UNREAD = math.nan
"""The factor of what says that a number is not meant as it stands, and not what is meant."""
_WORDS: Mapping[str, Mapping[float, str]] = {
    "ar": {1e2: "مئات|مئة|مائة", 1e3: "[أا]لف[اً]*|[آا]لاف", 1e6: "مليون[اً]*|ملايين", 1e9: "مليار[اً]*|مليارات"},
    "bn": {1e2: "শত", 1e3: "হাজার", 1e5: "লাখ|লক্ষ", 1e6: "মিলিয়ন", 1e7: "কোটি", 1e9: "বিলিয়ন"},
    "de": {1e2: "hundert", 1e3: r"tausend|tsd\.?", 1e6: r"million(?:en)?|mio\.?", 1e9: r"milliarden?|mrd\.?"}
    | {1e12: "billion(?:en)?"},
    "en": {1e2: "hundreds?", 1e3: "thousands?", 1e5: "la(?:kh|c)s?", 1e6: "millions?", 1e7: "crores?"}
    | {1e9: "billions?|bn", 1e12: "trillions?", UNREAD: "(?:hundred|thousand|million)ths"},
    "es": {1e2: "cientos|centenas?", 1e3: "mil|miles|millares?", 1e6: "mill[oó]n|millones", 1e9: "millardos?"}
    | {1e12: "bill[oó]n|billones"},
    "fr": {1e2: "centaines?", 1e3: "mille|milliers?", 1e6: "millions?", 1e9: "milliards?", 1e12: "billions?"},
    "hi": {1e2: "सौ", 1e3: "हज़ार|हजार", 1e5: "लाख", 1e6: "मिलियन", 1e7: "करोड़|करोड", UNREAD: "अरब"},
    "ru": {1e2: "сот|сотни|сотен", 1e3: r"тысяч[аиеу]?|тыс\.?", 1e6: r"миллион\p{L}*|млн\.?"}
    | {1e9: r"миллиард\p{L}*|млрд\.?", 1e12: r"триллион\p{L}*|трлн\.?"},
    "sw": {1e2: "mia", 1e3: "elfu", 1e5: "laki", 1e6: "milioni", 1e9: "bilioni"},
    "te": {1e2: "వంద(?:లు?)?", 1e3: "వేలు?|వేయి", 1e5: "లక్ష(?:లు?)?", 1e6: "మిలియన్(?:లు?)?", 1e7: "కోటి|కోట్లు?"},
    "th": {1e2: "ร้อย", 1e3: "พัน(?!ธ)", 1e4: "หมื่น", 1e5: "แสน", 1e6: "ล้าน"},
}
_FOREIGN = "(?:thousand|million|billion|milliard|trillion|lakh|crore)s?|tausend|milliarden|millones|(?:mio|mrd|mln)\\.?"
_END, _LATIN_END = r"(?![\p{L}\p{M}\d])", r"(?![\p{Latin}\d])"
_ENDS = {"th": "", "bn": r"(?:টি|টা|ের|র)?(?![\p{L}\p{M}\d])"}
_BEFORE = frozenset({"sw"})
"""Languages that put the word before the number: elfu 5."""
_SIGNS: Mapping[float, str] = {1e3: rf"(?<=\d)k{_LATIN_END}", 1e6: rf"(?<=\d)(?-i:M){_LATIN_END}", UNREAD: "[‰‱]"}


@cache
def _forms(base: str) -> Sequence[tuple[float, str]]:
    """Factors with their words: the language's own, signs, then those of other languages."""
    own = [
        (value, f"(?:{normalize('NFC', words)}){_ENDS.get(base, _END)}")
        for value, words in _WORDS.get(base, {}).items()
    ]
    return [*own, *_SIGNS.items(), (UNREAD, f"(?:{_FOREIGN}){_LATIN_END}")]


@cache
def words_beside(base: str, number: str) -> Sequence[regex.Pattern[str]]:
    """Find numbers with words, joined as in 2 million 500 thousand 7: groups ``number``, ``words``, ``rest``."""
    word = "|".join(form for _, form in _forms(base))
    words = rf"(?P<words>(?:{word})(?:[ -]?(?:{word}))*)"
    number = rf"(?<!\d[.,'\u202f]?)(?>{number})"  # from its beginning, and all of it: long ones take no time
    after = rf"(?P<number>{number})[ \u202f-]?{words}"
    orders = [rf"{after}(?: ?{after})*(?: (?P<rest>{number})(?![/:]?\d))?"]
    if base in _BEFORE:
        before = rf"\b{words} (?P<number>{number})"
        orders.insert(0, rf"{before}(?: (?:na )?{before})*(?: (?:na )?(?P<rest>{number})(?![/:]?\d))?")
    return [regex.compile(f"(?i:{order})") for order in orders]


def factor(text: str, span: tuple[int, int], base: str) -> float:
    """The product of the words there, e.g. of mil millones."""
    return math.prod(_forms(base)[(match.lastindex or 0) - 1][0] for match in _single(base).finditer(text, *span))


@cache
def _single(base: str) -> regex.Pattern[str]:
    return regex.compile("(?i:" + "|".join(f"({form})" for _, form in _forms(base)) + ")")
