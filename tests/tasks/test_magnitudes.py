"""Numbers beside words of magnitude: what they say, or nothing, and never the bare number."""

from decimal import Decimal

import pytest

from mwork_lens.tasks.numbers import as_number, final_number

READ = [
    ("5 million", "en", 5_000_000),
    ("2.5 million people", "en", 2_500_000),
    ("1/2 million", "en", 500_000),
    ("2 1/2 million", "en", 2_500_000),
    ("a 5-million-dollar house", "en", 5_000_000),
    ("$5k", "en", 5000),
    ("5K", "de", 5000),
    ("5M", "en", 5_000_000),
    ("5k人", "zh", 5000),
    ("2 hundred thousand", "en", 200_000),
    ("2 million 500 thousand 7", "en", 2_500_007),
    ("-5 thousand", "en", -5000),
    ("5 billion", "en", 5 * 10**9),
    ("1.5 crore", "en", 15_000_000),
    ("2.5 Mio.", "de", 2_500_000),
    ("2,5 Mio. Euro", "de", 2_500_000),
    ("5 Milliarden", "de", 5 * 10**9),
    ("5 Billionen", "de", 5 * 10**12),
    ("5 milliards d'euros", "fr", 5 * 10**9),
    ("1 500 millions", "fr", 15 * 10**8),
    ("5 mille", "fr", 5000),
    ("3 mil 200 pesos", "es", 3200),
    ("5 mil millones", "es", 5 * 10**9),
    ("5 тыс. руб.", "ru", 5000),
    ("2,5 млн", "ru", 2_500_000),
    ("2 миллиона 500 тысяч", "ru", 2_500_000),
    ("elfu 5", "sw", 5000),
    ("milioni 2 na laki 5", "sw", 2_500_000),
    ("asilimia 50", "sw", 50),
    ("5 లక్షల రూపాయలు", "te", 500_000),
    ("5 కోట్లు", "te", 50_000_000),
    ("২ লক্ষ ৫০ হাজার টাকা", "bn", 250_000),
    ("৫ কোটি", "bn", 50_000_000),
    ("2 लाख 50 हज़ार", "hi", 250_000),
    ("५ करोड़", "hi", 50_000_000),
    ("2 ล้าน 5 แสนบาท", "th", 2_500_000),
    ("๕ แสนล้าน", "th", 5 * 10**11),
    ("٥ ملايين", "ar", 5_000_000),
    ("٥ آلاف", "ar", 5000),
    ("3 万", "zh", 30_000),
    ("5 億円", "ja", 5 * 10**8),
    ("3 千克", "zh", 3),
    ("5 miles", "en", 5),
    ("5 millionaires", "en", 5),
    ("5 km", "en", 5),
    ("300 K", "en", 300),
    ("5 lacs", "fr", 5),
    ("5 พันธุ์", "th", 5),
]


@pytest.mark.parametrize(("text", "language", "number"), READ)
def test_what_numbers_with_words_say(text, language, number):
    assert final_number(text, language) == number
    assert final_number(f"1 + 1 = {text}.", language) == number


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("5 billion", "it"),
        ("5 million", "zh"),
        ("5 lakh", "hi"),
        ("5 Mrd.", "en"),
        ("5 hundredths", "en"),
        ("5‰", "de"),
        ("2 hundred 50 thousand", "en"),
        ("5 million 6 million", "en"),
        ("5 अरब", "hi"),
        ("3:30 thousand", "en"),
    ],
)
def test_what_may_be_another_number_is_not_read(text, language):
    assert final_number(f"1 + 1 = {text}", language) is None


def test_characters_that_say_a_fraction():
    assert as_number("二分之一", "zh") == final_number("答案是二分之一。", "zh") == Decimal("0.5")
    assert final_number("#### 三分の二", "ja") == Decimal(2) / 3
    assert final_number("百分之二十", "zh") == 20
    assert final_number("它占百分之5", "zh") == 5


def test_a_word_that_the_token_limit_cut():
    assert final_number("3 boys have 5 ", "en", cut=True) == 3
    assert final_number("3 boys have 5 thousand", "en", cut=True) == 3


def test_a_long_number_is_found_at_once():
    assert final_number("1" * 2000 + " and 2 thousand", "en") == 2000
