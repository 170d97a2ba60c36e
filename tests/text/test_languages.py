import sys
import unicodedata

import pytest

from mwork_lens.text.languages import SHARED, fold_case, identifier, main_script

TEXTS = {
    "en": "The weather was fine and they went for a long walk.",
    "fr": "Le temps était beau et ils sont partis pour une longue promenade.",
    "ru": "Погода была хорошая, и они пошли на долгую прогулку.",
    "zh-Hant": "天氣很好,他們去散步了很久。",
    "th": "อากาศดีและพวกเขาไปเดินเล่นเป็นเวลานาน",
    "fil": "Maganda ang panahon at naglakad-lakad sila nang matagal.",
    "no": "Været var fint, og de gikk en lang tur i skogen.",
}


@pytest.mark.parametrize("name", ["lingua", "cld3"])
def test_whole_texts_come_back_under_the_tags_that_were_given(name):
    assert identifier(name, list(TEXTS))(list(TEXTS.values())) == list(TEXTS)


def test_what_has_no_letters_or_another_script_is_no_language():
    found = identifier("lingua", ["en", "fr"])(["1990", "!?", "", "Москва", " the"])
    assert found == [None, None, None, None, "en"]
    assert identifier("lingua", ["th"])(["ครับ", "Москва", "hello"]) == ["th", None, None]


def test_lingua_says_where_languages_share_a_word():
    assert identifier("lingua", ["fr", "es", "en"])([" taxi"]) == [SHARED]


def test_lingua_names_no_language_that_it_is_not_confident_of():
    many = ["en", "de", "fr", "es", "ru", "zh", "vi", "th", "ar", "sw"]
    assert identifier("lingua", many)(["lan", "nal", "ren", "gen"]) == [None, None, "de", "de"]
    assert identifier("lingua", ["en", "sw"])(["lan"]) != [None]


def test_script_alone_tells_languages_of_different_scripts():
    found = identifier("script", ["en", "ru", "zh", "ja"])(["Bonjour", "мир", "日本", "日本の", "ก", "12"])
    assert found == ["en", "ru", SHARED, "ja", None, None]
    with pytest.raises(ValueError, match="'en' and 'fr' are both written in Latn"):
        identifier("script", ["en", "ru", "fr"])


SAMPLES = {
    "fr": "Été très français à Noël",
    "vi": "Tiếng Việt rất đẹp",
    "hi": "क़लम और लड़का",
    "ja": "ガラスが割れた",
    "ko": "안녕하세요 여러분",
    "he": "שלום לכולם",
    "th": "น้ำใจดี",
    "el": "Ελληνικά γράμματα",
}


@pytest.mark.parametrize("name", ["lingua", "cld3", "script"])
def test_composed_and_decomposed_text_is_the_same(name):
    languages = [tag for tag in SAMPLES if name != "script" or tag not in ("vi", "ko")]
    texts, identify = [SAMPLES[tag] for tag in languages], identifier(name, languages)
    assert identify(texts) == languages
    for form in ("NFD", "NFC"):
        assert identify([unicodedata.normalize(form, text) for text in texts]) == languages
    assert identify([f"\u200f{text}\u200e" for text in texts]) == languages


def test_the_width_of_letters_makes_no_difference():
    assert identifier("lingua", ["en", "ja"])(["Ｈｅｌｌｏ ｍｙ ｆｒｉｅｎｄｓ", "ｶﾞﾗｽ"]) == ["en", "ja"]
    assert [main_script(text) for text in ("Ｈｅｌｌｏ", "ｶﾞﾗｽ", "e\u0301", "က", "12")] == [
        "Latn",
        "Kana",
        "Latn",
        "Mymr",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "language", "folded"),
    [
        ("İstanbul IŞIK", "tr", "istanbul ışık"),
        ("I\u0307stanbul", "tr", "istanbul"),
        ("İstanbul", "en", "i\u0307stanbul"),
        ("ΑΘΗΝΑ Αθήνα", "el", "αθηνα αθηνα"),
        ("ΆΫ", "el", "αϋ"),
        ("Straße", "de", "strasse"),
        ("ÉTÉ e\u0301", "fr", "été é"),
        ("ABC", "my group", "abc"),
        ("日本", "ja", "日本"),
    ],
)
def test_case_is_folded_as_the_language_has_it(text, language, folded):
    assert fold_case(text, language) == folded


def test_regions_count_and_unusual_scripts_do_not():
    assert identifier("lingua", ["pt-BR", "en"])(["Não sei o que você quer dizer."]) == ["pt-BR"]
    with pytest.raises(ValueError, match="'lingua' does not know 'ru-Latn'"):
        identifier("lingua", ["en", "ru-Latn"])
    with pytest.raises(ValueError, match="does not distinguish 'pt' from 'pt-BR'"):
        identifier("lingua", ["pt", "pt-BR"])


@pytest.mark.parametrize(
    ("name", "languages", "message"),
    [
        ("langid", ["en", "fr"], "There is no identifier 'langid'"),
        ("lingua", ["en", "ceb"], "'lingua' does not know 'ceb'"),
        ("cld3", ["en", "yue"], "'cld3' does not know 'yue'"),
        ("lingua", ["en", "en"], r"distinct candidate languages, not \['en', 'en'\]"),
        ("lingua", [], "distinct candidate languages"),
        ("script", ["en", "klingonish"], "'klingonish' is not a language tag"),
    ],
)
def test_bad_candidates_are_named(name, languages, message):
    with pytest.raises(ValueError, match=message):
        identifier(name, languages)


@pytest.mark.parametrize(("name", "module"), [("lingua", "lingua"), ("cld3", "gcld3")])
def test_an_identifier_that_is_not_installed_is_named(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{name}' needs .*{module}.*: pip install 'mwork_lens\[lid\]'"):
        identifier(name, ["en", "fr"])


def test_a_function_of_your_own_is_used_as_it_is():
    assert identifier(len, ["anything"]) is len
