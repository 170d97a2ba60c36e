"""Numbers as each language writes them: digits of any script, thousands, decimals, 万 and 億, fractions, powers."""

import unicodedata
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial

import langcodes
import regex

from .magnitudes import factor, words_beside


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


DECIMAL_COMMA = _codes(
    "af az be bg bs ca cs da de el eo es et eu fi fr gl hr hu hy id is it ka kk ky lb lt lv mk nb nl nn no pl pt ro ru "
    "sk sl sq sr sv tr uk uz vi"
)
"""12,5 is twelve and a half, and 2.125 two thousand."""
SPACES = _codes("af be bg cs de eo es et fi fr hu hy ka kk lt lv nb nn no pl pt ru sk sq sv uk uz")
"""2 125 is one number."""
INDIAN = _codes("as bn en gu hi kn ml mr ne or pa si ta te ur")
"""1,23,456 is one number."""
EITHER = _codes("ar ckb fa ku ps")
"""3,5 is a fraction although 2.5 is one too."""
EAST_ASIAN = _codes("ja ko yue zh")
"""1万2000 is one number, and so is 二十一."""

_MINUS, _GROUP, _NARROW = "−－﹣‐‑‒–", "'’٬", "\u00a0\u202f\u2009\u2007"
_SIGNS = {
    **dict.fromkeys(_MINUS, "-"),
    **dict.fromkeys(_GROUP, "'"),
    **dict.fromkeys(_NARROW, "\u202f"),
    **{"，": ",", "،": ",", "．": ".", "٫": "."},
    **dict.fromkeys("⁄∕／", "/"),
}
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_RAISED = rf"(?:\^-?\d{{1,2}}|⁻?[{_SUPERSCRIPTS}]{{1,2}})(?![\d^])"
_POWER = rf"(?:[eE][+-]?\d{{1,3}}(?!\w)|{_RAISED}| ?[×x·*] ?10{_RAISED})"
"""1e5, 10^5, 10², 2 × 10^5."""
_DIGITS = {**{character: value for value, character in enumerate("〇一二三四五六七八九")}, "零": 0, "两": 2, "兩": 2}
_SMALL = {"十": 10, "십": 10, "百": 100, "백": 100, "千": 1000, "천": 1000}
_LARGE = {**dict.fromkeys("万萬만", 10**4), **dict.fromkeys("亿億억", 10**8), **dict.fromkeys("兆조", 10**12)}
_UNITS = "".join([*_SMALL, *_LARGE])
_UNIT = rf"(?:(?!千[克米瓦卡帕赫吨])[{_UNITS}])"
"""千克 and 千米 are kilograms and kilometres."""
_ONES = "".join(_DIGITS)
_SPACED_UNIT = regex.compile(rf"(?<=\d) (?=(?![十십]){_UNIT})|(?<=\d[만억조]) (?=\d)")
"""Some write 3 万; Korean has a space in 1만 2000."""
_PARTS = "(?:分之|分の|분의) ?"
_OF_PARTS = regex.compile(rf"(\d+){_PARTS}(\d+)"), regex.compile(rf"([{_ONES}{_UNITS}]+){_PARTS}([{_ONES}{_UNITS}]+)")
"""Two parts of three, where the parts are said first, in digits and in characters."""
_NO_NUMBER = "0:0"
"""Is found as a time of day is."""
_WRITTEN = regex.compile(rf"{_OF_PARTS[1].pattern}|[{_ONES}{_UNITS}]+(?:[点點][{_ONES}]+(?![{_UNITS}]))?")


def final_number(text: str, language: str, *, cut: bool = False) -> Decimal | None:
    """The first number after the last ``####``, else the last number of the text; None where there is none.

    With ``cut`` the token limit ended the text: a number that touches its end may lack digits and does not count.
    """
    before, marked, after = text.rpartition("####")
    part = _in_digits(after if marked else before + after, _base(language))
    matches = [*_finder(_base(language)).finditer(part)]
    matches = [match for match in matches if not cut or part[match.end() :].strip("/^ ")]
    if not matches:
        in_words = _in_words(part, language, cut)
        return in_words if in_words is not None or not marked else final_number(before, language)
    match = matches[0 if marked else -1]
    number, preceding = match.group(), part[: match.start()][-1:]
    # a dash after a digit, letter or bracket is not a minus: 10-5
    no_minus = preceding.isalnum() or preceding in tuple(")]")
    return as_number(number.lstrip("-") if no_minus else number, language)


def as_number(text: str, language: str) -> Decimal | None:
    """``2,125``, ``٢١``, ``1 234,5``, ``1万2000``, ``2 1/2``, ``1e5`` as a number; None for anything else, as dates.

    Groups of exactly three digits after a comma are thousands in every language; after a point they are where the
    language writes decimals with a comma. No thousands begin with 0.
    """
    plain = _in_digits(text.strip(), _base(language))
    if parts := _OF_PARTS[1].fullmatch(plain):  # per cent are left as they are: 50 % is 50
        plain = parts[2] if parts[1] == "百" else f"{parts[2]}/{parts[1]}"
    sign, plain = (-1, plain[1:]) if plain.startswith("-") else (1, plain)
    try:
        value = _value(plain, _base(language))
    except ArithmeticError:  # beyond what decimals hold
        return None
    return sign * value if value is not None and value.is_finite() else None


def _value(plain: str, base: str) -> Decimal | None:
    if "/" in plain:
        return _quotient(plain, base)
    if plain[-1:] in tuple(_VULGAR):
        value, part = (
            _value(plain[:-1].rstrip() or "0", base),
            Fraction(unicodedata.numeric(plain[-1])).limit_denominator(10),
        )
        return None if value is None else value + Decimal(part.numerator) / part.denominator
    if power := regex.fullmatch(rf"(.+?)({_POWER})", plain):
        return _raised(_value(power[1], base), power[2])
    return _units(plain, base) if base in EAST_ASIAN and set(plain) & {*_DIGITS, *_UNITS} else _digits(plain, base)


def _quotient(plain: str, base: str) -> Decimal | None:
    """``1/2``, and ``2 1/2``; more slashes are those of a date."""
    above, *others = (part.strip() for part in plain.split("/"))
    below = _value(others[0], base) if len(others) == 1 else None
    if not below:
        return None
    if (value := _value(above, base)) is not None:
        return value / below
    whole, part = (_value(each, base) for each in above.rpartition(" ")[::2])
    return whole + part / below if whole is not None and part is not None and part < below else None


def _raised(value: Decimal | None, power: str) -> Decimal | None:
    digits = "".join(str(_SUPERSCRIPTS.index(c)) if c in _SUPERSCRIPTS else c for c in power.replace("⁻", "-"))
    exponent = regex.search(r"[+-]?\d+$", digits.replace("10", "", 1) if power.lstrip()[0] in "×x·*" else digits)
    if value is None or exponent is None:
        return None
    of_ten = power[0] in "eE" or power.lstrip()[0] in "×x·*"
    return value.scaleb(int(exponent.group())) if of_ten else value ** int(exponent.group())


def _base(language: str) -> str:
    return langcodes.get(language).language or ""


def _western(text: str) -> str:
    """Digits of every script as 0 to 9, one sign each for minus, thousands and decimals; no marks of direction."""
    text = unicodedata.normalize("NFC", text)
    digits = (str(unicodedata.decimal(c)) if c.isdecimal() else _SIGNS.get(c, c) for c in text)
    return "".join(c for c in digits if unicodedata.category(c) != "Cf")


def _in_digits(text: str, base: str) -> str:
    """What words and characters around numbers say, as digits: 4分の3 is 3/4, and 2 million 2000000."""
    text = _OF_PARTS[0].sub(r"\2/\1", _western(text))
    if base in EAST_ASIAN:
        text = _SPACED_UNIT.sub("", text)
    one = _number(base)
    for pattern in words_beside(base, rf"(?:{one} ?/ ?{one}|\d+ \d+/\d+|{one})"):
        text = pattern.sub(partial(_multiplied, base=base), text)
    return text


def _multiplied(match: regex.Match[str], base: str) -> str:
    """The sum of what each number is with its words, where each is below the one before; else not a number."""
    factors = [Decimal(factor(match.string, span, base)) for span in match.spans("words")]
    parts = [
        *zip(match.captures("number"), factors, strict=True),
        *((rest, Decimal(1)) for rest in match.captures("rest")),
    ]
    total, least = Decimal(0), Decimal("inf")
    try:
        for number, times in parts:
            value = _value(number, base)
            if value is None or not value * times < least:
                return _NO_NUMBER
            total, least = total + value * times, times
    except ArithmeticError:  # a factor that is none, or beyond what decimals hold
        return _NO_NUMBER
    return "{}/{}".format(*total.as_integer_ratio()).removesuffix("/1")


@cache
def _number(base: str) -> str:
    """A pattern of one number."""
    spaced = r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?|" if base in SPACES else ""
    units = rf"(?:{_UNIT}+(?:\d[\d.,]*\d|\d)?)*" if base in EAST_ASIAN else ""
    return rf"(?:(?:{spaced}\d(?:[\d.,'\u202f]*\d)?{units}|(?<![\w.])\.\d+)(?: ?[{_VULGAR}]|{_POWER})?|[{_VULGAR}])"


@cache
def _finder(base: str) -> regex.Pattern[str]:
    """Also of dates and times, which are no numbers."""
    one = _number(base)
    return regex.compile(rf"-?(?:{one} ?/ ?{one}(?:/\d+)*|\d+ \d+/\d+(?!/?\d)|\d+(?::\d+)+|{one})")


_THOUSANDS = r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?"
_LAKHS = rf"{_THOUSANDS}|[1-9]\d?(,\d{{2}})*,\d{{3}}(\.\d+)?"


def _digits(plain: str, base: str) -> Decimal | None:
    plain = regex.sub(r"(?<=\d)['\u202f](?=\d)", "", plain)
    if base in SPACES and regex.fullmatch(r"\d{1,3}( \d{3})+([.,]\d+)?", plain):
        plain = plain.replace(" ", "")
        plain = plain.replace(",", ".") if base in DECIMAL_COMMA else plain
    elif regex.fullmatch(_LAKHS if base in INDIAN else _THOUSANDS, plain):
        plain = plain.replace(",", "")
    elif base in DECIMAL_COMMA and regex.fullmatch(r"([1-9]\d{0,2}(\.\d{3})+|\d+)(,\d+)?", plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif regex.fullmatch(r"\d+,\d+" if base in EITHER else r"0,\d+", plain):
        plain = plain.replace(",", ".")
    return Decimal(plain) if regex.fullmatch(r"\d*\.?\d+", plain) else None


def _units(plain: str, base: str) -> Decimal | None:
    """``3億5000万``, ``二十一``, ``二〇二四``, ``十二点五``: digits of either kind with units between them."""
    whole, point, decimals = plain.replace("點", "点").partition("点")
    if point:
        value = _units(whole, base) if whole else None
        digits = "".join(str(_DIGITS[c]) for c in decimals if c in _DIGITS)
        return Decimal(f"{value}.{digits}") if value is not None and len(digits) == len(decimals) > 0 else None
    if set(plain) <= _DIGITS.keys():
        return Decimal("".join(str(_DIGITS[c]) for c in plain))
    total = below = Decimal(0)
    number: Decimal | None = None
    for part in regex.findall(rf"[\d.,]+|[{''.join(_DIGITS)}]|.", plain):
        if part in _DIGITS or part[0].isdigit():
            if number:  # 零 and 〇 stand for units that are left out: 一百零五
                return None
            number = Decimal(_DIGITS[part]) if part in _DIGITS else _digits(part, base)
            if number is None:
                return None
        elif part in _SMALL:
            below, number = below + (1 if number is None else number) * _SMALL[part], None
        elif part in _LARGE:
            group = below + (number or 0)
            total, below, number = total + (group or 1) * _LARGE[part], Decimal(0), None
        else:
            return None
    return total + below + (number or 0)


def _in_words(part: str, language: str, cut: bool) -> Decimal | None:
    """The last number in characters, where a text has no digits; a single one (一) only if it is all there is."""
    if _base(language) not in EAST_ASIAN:
        return None
    alone = _WRITTEN.fullmatch(regex.sub(r"[^\p{L}〇]", "", part))
    found = [match for match in _WRITTEN.finditer(part) if len(match.group()) > 1 or alone]
    found = [match.group() for match in found if not (cut and match.end() == len(part))]
    return as_number(found[-1], language) if found else None
