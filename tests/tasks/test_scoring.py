import json
import unicodedata
from decimal import Decimal

import pytest

from mwork_lens.tasks.catalogue import TASKS, as_number, final_number, normalized
from mwork_lens.tasks.task import Answer, Question, load_questions
from mwork_lens.text.languages import word_segmenter


def asked(language, *references, choices=()):
    return Question("1", language, {}, references, choices)


def scores(task, question, text, cut=False):
    return TASKS[task].score(question, Answer(text, cut))


@pytest.mark.parametrize(
    ("language", "reference", "output", "f1", "exact"),
    [
        ("tr", "İstanbul", "istanbul", 1.0, 1.0),
        ("tr", "ISPARTA IRMAĞI", "ısparta ırmağı", 1.0, 1.0),
        ("tr", "Isparta", "isparta", 0.0, 0.0),
        ("az", "İSTİ", "isti", 1.0, 1.0),
        ("en", "ISTANBUL", "istanbul", 1.0, 1.0),
        ("el", "Αθήνα", "ΑΘΗΝΑ", 1.0, 1.0),
        ("el", "οδός", "ΟΔΟΣ", 1.0, 1.0),
        ("de", "Straße", "STRASSE", 1.0, 1.0),
        ("fr", "e\u0301te\u0301", "ÉTÉ", 1.0, 1.0),
        ("vi", "Việt Nam", unicodedata.normalize("NFD", "VIỆT NAM"), 1.0, 1.0),
        ("hi", "क\u093cलम", "\u0958लम", 1.0, 1.0),
        ("ja", "ガラス", "ｶﾞﾗｽ", 1.0, 1.0),
        ("ja", "ＡＢＣ", "abc", 1.0, 1.0),
        ("ko", "한국", unicodedata.normalize("NFD", "한국"), 1.0, 1.0),
        ("ar", "\u202bالقاهرة\u202c", "القاهرة", 1.0, 1.0),
        ("ar", "المُؤْمِنُ", "المؤمن", 1.0, 1.0),
        ("ar", "محـمد", "محمد", 1.0, 1.0),
        ("he", "שָׁלוֹם", "שלום", 1.0, 1.0),
        ("ur", "كي", "کی", 1.0, 1.0),
        ("ru", "Ёлка", "елка", 1.0, 1.0),
        ("uk", "їжак", "іжак", 0.0, 0.0),
        ("tr", "İstanbul", "i\u0307stanbul", 1.0, 1.0),
        ("lt", "Ìš Į\u0303", "i\u0307\u0300š į\u0307\u0303", 1.0, 1.0),
        ("ro", "Ţară", "țara", 0.0, 0.0),
        ("ro", "Ţară", "țară", 1.0, 1.0),
        ("fa", "می\u200cخواهم", "میخواهم", 1.0, 1.0),
        ("th", "แมว\u200bดำ", "แมวดำ", 1.0, 1.0),
        ("en", "The Eiffel Tower", "the eiffel tower.", 1.0, 1.0),
        ("en", "Eiffel Tower", "a tower in Paris", 2 / 5, 0.0),  # tower, in, paris
        ("en", "Eiffel Tower", "", 0.0, 0.0),
        ("en", "the", "", 1.0, 1.0),
        ("zh", "北京大学", "在北京", 2 * 2 / (4 + 3), 0.0),
        ("zh", "1945年", "1945年。", 1.0, 1.0),
        ("zh", "丹佛野马", "是丹佛野马队", 2 * 4 / (4 + 6), 0.0),
        # น้ำ is one character with its marks: กิน(3) + น้ำ(2: น้, ำ normalises to two marks with น)
        ("th", "น้ำ", "น้ำ", 1.0, 1.0),
        ("th", "แมวดำ", "แมว", 2 * 3 / (5 + 3), 0.0),
        ("es", "la casa", "casa", 1.0, 1.0),
        ("ru", "в Москве", "В МОСКВЕ", 1.0, 1.0),
    ],
)
def test_f1_and_exact_match(language, reference, output, f1, exact):
    found = scores("xquad", asked(language, reference), output)
    assert found == {"F1": pytest.approx(f1), "exact match": exact}


def test_the_best_reference_counts():
    assert scores("xquad", asked("en", "308", "three hundred eight"), "three hundred eight")["F1"] == 1.0


def test_segments_of_mixed_text():
    assert normalized("2012年 iPhone 手机", "zh") == ["2012", "年", "iphone", "手", "机"]
    assert normalized("แมวกิน", "th") == ["แ", "ม", "ว", "กิ", "น"]


@pytest.mark.parametrize(
    ("text", "language", "number"),
    [
        ("2,125", "en", 2125),
        ("2,125", "de", 2125),
        ("2.125", "de", 2125),
        ("2.125", "en", "2.125"),
        ("12,5", "fr", "12.5"),
        ("1\u202f234", "fr", 1234),
        ("٢١", "ar", 21),
        ("١٬٢٣٤٫٥", "ar", "1234.5"),
        ("๑๘", "th", 18),
        ("-7", "en", -7),
        ("12,34,5", "en", None),
        ("1,23,456", "hi", 123456),
        ("১,২৩,৪৫৬", "bn", 123456),
        ("1,23,456", "de", None),
        ("2 125", "fr", 2125),
        ("1 234 567,5", "ru", "1234567.5"),
        ("2\u2009125", "ru", 2125),
        ("2 125", "en", None),
        ("12,5", "sv", "12.5"),
        ("12,5", "uk", "12.5"),
        ("1.234,5", "tr", "1234.5"),
        ("2’125", "de", 2125),
        ("٢٬١٢٥", "ar", 2125),
        ("٢،١٢٥", "ar", 2125),
        ("2,5", "ar", "2.5"),
        ("۱۲۳٫۵", "fa", "123.5"),
        ("\u200f-5", "ar", -5),
        ("－７", "ja", -7),
        ("２，１２５", "ja", 2125),
        ("3．5", "zh", "3.5"),
        ("二十一", "zh", 21),
        ("十", "ja", 10),
        ("三百二十", "ja", 320),
        ("一万二千三百四十五", "zh", 12345),
        ("二〇二四", "zh", 2024),
        ("1万2000", "zh", 12000),
        ("1.5万", "zh", 15000),
        ("3億5000万", "ja", 350000000),
        ("2만", "ko", 20000),
        ("两千", "zh", 2000),
        ("二十一", "en", None),
        ("3½", "en", "3.5"),
        (".5", "en", "0.5"),
        ("5²", "en", 25),
        ("③", "en", None),
        ("一千里", "zh", None),
        ("0,125", "de", "0.125"),
        ("0.125", "de", "0.125"),
        ("0,125", "en", "0.125"),
        ("012,500", "en", None),
        ("一百零五", "zh", 105),
        ("二千〇二十四", "ja", 2024),
        ("三万零五十", "zh", 30050),
        ("十二点五", "zh", "12.5"),
        ("零點二五", "zh", "0.25"),
        ("点五", "zh", None),
        ("三点", "zh", None),
        ("๑,๒๓๔", "th", 1234),
        ("౧౨౩", "te", 123),
        ("１万２千", "ja", 12000),
    ],
)
def test_numbers_as_languages_write_them(text, language, number):
    assert as_number(text, language) == (None if number is None else pytest.approx(float(number)))


@pytest.mark.parametrize(
    ("text", "language", "number"),
    [
        ("3 + 4 = 7 so she has 7 apples.", "en", 7),
        ("#### 18\nQuestion: 5 + 5 = 10", "en", 18),
        ("#### $2,125.00 dollars", "en", 2125),
        ("总共是18美元。", "zh", 18),
        ("คำตอบคือ ๑๘ บาท", "th", 18),
        ("الجواب هو ٢١.", "ar", 21),
        ("10-5", "en", 5),
        ("It is -5", "en", -5),
        ("no idea", "en", None),
        ("", "en", None),
        ("18 ####", "en", 18),
        ("Il y a 2 125 pommes", "fr", 2125),
        ("Всего 12 500 рублей.", "ru", 12500),
        ("in 2020 125 of them", "en", 125),
        ("En 2020 125 personnes", "fr", 125),
        ("答えは２，１２５です", "ja", 2125),
        ("总共1万2000元", "zh", 12000),
        ("一共买了3千克", "zh", 3),
        ("答案是二十一。", "zh", 21),
        ("答案是21。这是一个好结果", "zh", 21),
        ("这是一个好结果", "zh", None),
        ("#### 五", "zh", 5),
        ("कुल 1,23,456 रुपये", "hi", 123456),
        ("মোট ১,২৩,৪৫৬ টাকা", "bn", 123456),
        ("మొత్తం 1,23,456 రూపాయలు", "te", 123456),
        ("الجواب هو \u200f١،٢٣٤.", "ar", 1234),
        ("ni 2,125.50 tu", "sw", Decimal("2125.5")),
        ("costs $.50", "en", Decimal("0.5")),
        ("No.5", "en", 5),
        ("3½ cups", "en", Decimal("3.5")),
        ("It is –5", "en", -5),
        ("10–5", "en", 5),
        ("共一百零五元", "zh", 105),
        ("是十二点五。", "zh", Decimal("12.5")),
        ("三点二十分", "zh", 20),
        ("Die Antwort ist 0,125.", "de", Decimal("0.125")),
        ("모두 1만 2,000원입니다.", "ko", 12000),
        ("인구는 3억 5000만 명", "ko", 350000000),
    ],
)
def test_final_numbers(text, language, number):
    assert final_number(text, language) == number


@pytest.mark.parametrize(
    ("text", "language", "number"),
    [
        ("That is 1/2.", "en", "0.5"),
        ("#### 3/4 cup", "en", "0.75"),
        ("It takes 2 1/2 hours", "en", "2.5"),
        ("it is 2 ½, or 2½", "en", "2.5"),
        ("the rest: -1/4", "en", "-0.25"),
        ("es bleiben 2,5/2", "de", "1.25"),
        ("il reste 1 000/8", "fr", "125"),
        ("答案是5／２", "zh", "2.5"),
        ("答案是4分之1", "zh", "0.25"),
        ("4分の3です", "ja", "0.75"),
        ("답은 4분의 3", "ko", "0.75"),
        ("10 / 4 = 2.5, so ⅕", "en", "0.2"),
        ("The answer is 1e5.", "en", "100000"),
        ("1,5E-3 Liter", "de", "0.0015"),
        ("10^5 of them", "en", "100000"),
        ("15² = 225 = 15²", "en", "225"),
        ("about 2.5 × 10⁻³", "en", "0.0025"),
        ("3 x 10 = 30", "en", "30"),
        ("20 m² and 50%", "en", "50"),
        ("on 12/05/2024", "en", None),
        ("at 3:30", "en", None),
        ("3/0", "en", None),
        ("0^-1", "en", None),
    ],
)
def test_fractions_and_powers_are_not_their_last_digits(text, language, number):
    assert final_number(text, language) == (None if number is None else Decimal(number))
    assert final_number(f"The answer is {text}", language) == (None if number is None else Decimal(number))


def test_a_number_that_the_token_limit_cut_does_not_count():
    assert final_number("8 pieces, that is 1/", "en", cut=True) == 8
    assert scores("mgsm", asked("en", "2"), "It is 1/2")["accuracy"] == 0.0
    assert scores("mgsm", asked("en", "12"), "4 * 3 = 12, that is 12")["accuracy"] == 1.0
    assert scores("mgsm", asked("en", "12"), "100 + 25 = 12", cut=True)["accuracy"] == 0.0
    assert final_number("100 + 25 = 12", "en", cut=True) == 25
    assert scores("mgsm", asked("en", "2,125"), "#### 2125")["accuracy"] == 1.0
    assert scores("mgsm", asked("en", "18"), "18 dollars")["accuracy"] == 1.0


def test_rouge_on_words_and_characters():
    assert scores("xlsum", asked("en", "the cat sat down"), "The cat sat.")["ROUGE-L"] == pytest.approx(6 / 7)
    assert scores("xlsum", asked("zh", "北京下雨"), "北京下雪")["ROUGE-L"] == pytest.approx(3 / 4)
    assert scores("xlsum", asked("th", "แมวกินปลา"), "")["ROUGE-L"] == 0.0
    assert scores("xlsum", asked("ru", "кот спит"), "Кот спит!")["ROUGE-2"] == 1.0
    assert scores("xlsum", asked("tr", "İstanbul Isparta"), "istanbul ısparta")["ROUGE-2"] == 1.0
    assert scores("xlsum", asked("fr", "le chat"), "chat")["ROUGE-1"] == pytest.approx(2 / 3)  # articles stay


def test_choices():
    question = asked("en", "hospital", choices=("town", "hospital"))
    assert scores("xcsqa", question, "hospital")["accuracy"] == 1.0


def test_words_of_spaced_languages_and_a_clear_error_else():
    assert word_segmenter("fr")("L'été, c'est bien 2024!") == ["L'été", "c'est", "bien"]
    assert word_segmenter("fr")("e\u0301te\u0301 - soft\u00adware") == ["e\u0301te\u0301", "soft\u00adware"]
    assert word_segmenter("fa")("می\u200cخواهم، برویم") == ["می\u200cخواهم", "برویم"]
    assert word_segmenter("he")('צה״ל ג׳ירפה "שלום"') == ["צה״ל", "ג׳ירפה", "שלום"]
    assert word_segmenter("ca")("col·legi") == ["col·legi"]
    assert word_segmenter("hi")("क्षत्रिय लड़का।") == ["क्षत्रिय", "लड़का"]
    assert word_segmenter("ar")("\u202bمُؤْمِن\u202c") == ["مُؤْمِن"]
    assert word_segmenter("en")("Ｆｕｌｌ ｗｉｄｔｈ") == ["Ｆｕｌｌ", "ｗｉｄｔｈ"]
    assert word_segmenter("ko")("안녕하세요, 여러분! 大韓民國") == ["안녕하세요", "여러분", "大韓民國"]
    with pytest.raises(ImportError, match="'lo' are not separated"):
        word_segmenter("lo")


@pytest.mark.parametrize(
    ("language", "library", "text", "words"),
    [
        ("zh", "jieba", "我来到北京清华大学，很高兴！", ["我", "来到", "北京", "清华大学", "很", "高兴"]),
        ("th", "pythainlp", "แมวกินปลา 3 ตัว", ["แมว", "กิน", "ปลา", "ตัว"]),
    ],
)
def test_words_of_languages_without_spaces(language, library, text, words):
    pytest.importorskip(library)
    assert word_segmenter(language)(text) == words


def test_bad_task_files_are_named(tmp_path):
    good = {"id": "1", "question": {"stem": "?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}}}
    path = tmp_path / "x_csqa.en.dev.jsonl"
    path.write_text(json.dumps({**good, "answerKey": "B"}) + "\n" + json.dumps(good) + "\n")
    with pytest.raises(ValueError, match=r"x_csqa\.en\.dev\.jsonl: question 2 has no field 'answerKey'"):
        load_questions(TASKS["xcsqa"], tmp_path)
    path.write_text(json.dumps({**good, "answerKey": "B"}) + "\n")
    (found,) = load_questions(TASKS["xcsqa"], tmp_path)["en"]
    assert (found.references, found.choices) == (("y",), ("x", "y"))
    with pytest.raises(ValueError, match=r"X-CSQA in .* has no 'zh'; it has en"):
        load_questions(TASKS["xcsqa"], tmp_path, languages=["en", "zh"])
    with pytest.raises(ValueError, match=r"MGSM has no 'vi'"):
        load_questions(TASKS["mgsm"], languages=["vi"])
    for option in ({"languages": "en"}, {"without": "12"}):
        with pytest.raises(ValueError, match=rf"{next(iter(option))}=.* must be a list of strings"):
            load_questions(TASKS["xcsqa"], tmp_path, **option)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_questions(TASKS["mgsm"], tmp_path / "nowhere")
    (tmp_path / "mgsm_en.tsv").write_text("")
    with pytest.raises(ValueError, match=r"mgsm_en\.tsv is empty"):
        load_questions(TASKS["mgsm"], tmp_path / "mgsm_en.tsv")
    (tmp_path / "mgsm_en.tsv").write_text("How many?\n")
    with pytest.raises(ValueError, match=r"question 1 has no field 'answer'"):
        load_questions(TASKS["mgsm"], tmp_path / "mgsm_en.tsv")
    with pytest.raises(ValueError, match="is left"):
        load_questions(TASKS["xcsqa"], path, without=["1"])
    path.write_text("".join(json.dumps({**good, "id": f"question-{i}", "answerKey": "B"}) + "\n" for i in range(9)))
    assert len(load_questions(TASKS["xcsqa"], path, without=["question-1"])["en"]) == 8
    with pytest.raises(
        ValueError, match=r"without: X-CSQA has no question 'qestion-7' here; .* e\.g\. question-7, .{,50}$"
    ):
        load_questions(TASKS["xcsqa"], path, without=["question-1", "qestion-7"])


def test_questions_of_the_public_files():
    import os
    from pathlib import Path

    data = os.environ.get("MWORK_LENS_TEST_DATA")
    if data is None:
        pytest.skip("MWORK_LENS_TEST_DATA is not set")
    xquad = load_questions(TASKS["xquad"], Path(data) / "xquad", languages=["en", "zh"], limit=7)
    assert [q.id for q in xquad["en"]] == [q.id for q in xquad["zh"]]
    assert len({q.document for q in xquad["en"]}) == 7
    mgsm = load_questions(TASKS["mgsm"], Path(data) / "mgsm")
    assert set(mgsm) == {"en", "de", "fr", "es", "zh", "ru", "th", "sw", "ja"}
    assert all(len(questions) == 250 for questions in mgsm.values())
    assert all(as_number(q.references[0], lang) is not None for lang, qs in mgsm.items() for q in qs)
    assert len(load_questions(TASKS["xcsqa"], Path(data) / "xcsqa")["en"]) == 1000
    assert set(load_questions(TASKS["xlsum"], Path(data) / "xlsum_sample")) == {"vi", "th", "id"}


def test_paragraphs_without_ids_are_recognised_by_their_text(tmp_path):
    asked = {"question": "Who?", "answers": {"text": ["I"]}}
    for language in ("en", "zh"):
        rows = [{"id": str(i), "context": f"{language} {i // 3}" + " " * (i % 2), **asked} for i in range(9)]
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "id": "9"}])
        (tmp_path / f"xquad.{language}.jsonl").write_text(lines)
    found = load_questions(TASKS["xquad"], tmp_path, languages=["en", "zh"])
    assert [q.document for q in found["en"]] == [q.document for q in found["zh"]] == [*list("000111222"), "0"]
    assert [q.id for q in load_questions(TASKS["xquad"], tmp_path, limit=3)["zh"]] == ["0", "3", "6"]
