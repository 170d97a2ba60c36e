"""Every identifier, scorer and segmenter on text of many scripts: composed, decomposed, marked, of other widths."""

import unicodedata

import pytest

from mwork_lens.experiments.corpus import describe_corpus
from mwork_lens.tasks.catalogue import TASKS, normalized
from mwork_lens.tasks.task import Answer, Question
from mwork_lens.text import load_corpus
from mwork_lens.text.languages import identifier, is_spaced, word_segmenter

TEXTS = {
    "am": "እኔ አማርኛ እናገራለሁ",
    "ar": "ذهب المُؤْمِنُ إلى المدينة",
    "bn": "আমি বাংলায় গান গাই ক্ষত্রিয়",
    "de": "Die Straße führt über den Fluß",
    "el": "Ο οδός της Αθήνας είναι μεγάλη",
    "en": "They aren't going for a walk",
    "fa": "می\u200cخواهم به خانه بروم",
    "fr": "L'été dernier j'étais à l'hôtel",
    "he": "הלכתי לצה״ל ביום א׳ שָׁלוֹם",
    "hi": "क़लम और लड़का क्षत्रिय है",
    "ja": "ガラスが割れてしまったけど、パンは美味しい",
    "ka": "მე ვლაპარაკობ ქართულად",
    "ko": "안녕하세요 여러분 반갑습니다",
    "ml": "ഞാൻ മലയാളം സംസാരിക്കുന്നു",
    "my": "ကျွန်တော် မြန်မာစကား",
    "ro": "Și țara noastră este frumoasă",
    "ru": "Ёлка стоит у окна и йод в шкафу",
    "ta": "நான் தமிழ் பேசுகிறேன்",
    "te": "నేను తెలుగు మాట్లాడుతాను",
    "th": "น้ำใจดีมากและเขาก็ไป",
    "tr": "İstanbul'da IŞIK ve ılık su",
    "ur": "میں گھر جا رہا ہوں",
    "vi": "Tiếng Việt rất đẹp và dễ thương",
    "zh": "我来到北京清华大学，很高兴。",
}
NARROW_SCRIPTS = [tag for tag in TEXTS if tag not in ("de", "fa", "fr", "ro", "tr", "ur", "vi")]
CANDIDATES = {
    "lingua": [tag for tag in TEXTS if tag not in ("am", "ml", "my")],
    "cld3": [tag for tag in TEXTS if tag != "ru"],  # which it finds too short to be sure
    "script": NARROW_SCRIPTS,
}


def forms(text):
    """The same text in other codes."""
    composed = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    return [text, *composed, f"\u200f{text}\u200e", f"\u2068{text}\u2069", f"  {text}\n"]


@pytest.mark.parametrize("name", CANDIDATES)
def test_identifiers_see_no_difference_between_codes(name):
    languages = CANDIDATES[name]
    identify = identifier(name, languages)
    for texts in zip(*(forms(TEXTS[tag]) for tag in languages), strict=True):
        assert identify(texts) == languages


@pytest.mark.parametrize("name", ["lingua", "cld3", "script"])
def test_letters_of_other_widths_are_the_same(name):
    identify = identifier(name, ["en", "ja", "ru"])
    wide = ["Ｔｈｅ ｄｏｇ ｗｅｎｔ ｈｏｍｅ ｗｉｔｈ ｍｅ ｔｏｄａｙ", "ｶﾞﾗｽｶﾞﾜﾚﾃｼﾏｯﾀ", "The ﬁrst oﬃce of the village"]
    assert identify(wide) == ["en", "ja", "en"]


@pytest.mark.parametrize("language", TEXTS)
def test_scorers_see_no_difference_between_codes(language):
    question = Question("1", language, {}, (TEXTS[language],))
    words = normalized(TEXTS[language], language)
    assert words
    for text in (*forms(TEXTS[language]), unicodedata.normalize("NFKC", TEXTS[language])):
        assert normalized(text, language) == words
        assert TASKS["xquad"].score(question, Answer(text)) == {"F1": 1, "exact match": 1}
    pytest.importorskip("rouge_score")
    for text in forms(TEXTS[language]):
        assert set(TASKS["xlsum"].score(question, Answer(text)).values()) == {1.0}


@pytest.mark.parametrize("language", [tag for tag in TEXTS if is_spaced(tag)])
def test_words_are_those_between_spaces_in_every_code(language):
    words = TEXTS[language].split()
    for text in forms(TEXTS[language]):
        assert word_segmenter(language)(text) == [unicodedata.normalize(form_of(text), word) for word in words]


def form_of(text):
    return "NFC" if unicodedata.is_normalized("NFC", text) else "NFD"


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:.*is mostly in")
def test_counts_of_words_and_of_a_vocabulary_do_not_depend_on_codes():
    languages = [tag for tag in TEXTS if is_spaced(tag)]
    vocabulary = {tag: [[word] for word in TEXTS[tag].split()] for tag in languages}
    tables = [
        describe_corpus(load_corpus({tag: [forms(TEXTS[tag])[i]] for tag in languages}), vocabulary=vocabulary)
        for i in range(3)
    ]
    for table in tables:
        assert table["distinct_words"].equals(tables[0]["distinct_words"])
        assert (table["coverage"] == 1).all()
        assert (table["words_by"] == "spaces").all()
