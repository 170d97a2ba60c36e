import json

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
    ],
)
def test_final_numbers(text, language, number):
    assert final_number(text, language) == number


def test_a_number_that_the_token_limit_cut_does_not_count():
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


def test_choices():
    question = asked("en", "hospital", choices=("town", "hospital"))
    assert scores("xcsqa", question, "hospital")["accuracy"] == 1.0


def test_words_of_spaced_languages_and_a_clear_error_else():
    assert word_segmenter("fr")("L'été, c'est bien 2024!") == ["L'été", "c'est", "bien"]
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
