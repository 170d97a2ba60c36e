import os
from collections import Counter
from pathlib import Path

import pytest
import regex

from mwork_lens.text import read_lines, read_rows
from mwork_lens.text.kanji import han_form
from mwork_lens.text.languages import SHARED, identifier, word_segmenter

DATA = os.environ.get("MWORK_LENS_TEST_DATA")
WORDS = """
経済 労働 会議 経済学 気 働く 円 駅 売上 伝説 人々 図書館 広い 払戻 読書 躊躇い 辻 畑 込 済 発売中 実験室 関係
经济 劳动 會議 经济学 气 我们 这 說 說話 圖書館 妳 吗 他们 东西 钱 买 為什麼 氣候 學校 时间
日本 人 大学 学生 中国 電 語彙 可能 山 水 一 国 勉強 綺麗 埃 蜘蛛 珈琲 壹 肆 人。 東京、大阪 亖
"""
JAPANESE, CHINESE, COMMON = (line.split() for line in WORDS.strip().split("\n"))


@pytest.mark.parametrize("name", ["lingua", "script", "cld3"])
def test_japanese_and_chinese_words_are_told_apart_by_their_characters(name):
    identify = identifier(name, ["en", "zh", "ja"])
    assert set(identify(JAPANESE)) == {"ja"}
    assert set(identify(CHINESE)) == {"zh"}
    assert set(identify(COMMON)) == {SHARED}
    assert identify(["食べる", "カタカナ", "hello the world"])[:2] == ["ja", "ja"]


def test_other_text_has_no_form():
    assert [han_form(text) for text in ("", "12", "々", "abc", "日本の", "日本 Japan", "한국")] == [None] * 7
    assert han_form("2年") == "both"
    # compatibility characters are composed first: \uf9fe is 茶
    assert identifier("lingua", ["zh", "ja"])(["\uf9fe", "天氣很好,他們去散步了很久。"]) == [SHARED, "zh"]


def test_one_language_alone_is_as_its_identifier_says():
    assert identifier("lingua", ["en", "zh"])(["経済", "日本"]) == ["zh", "zh"]
    assert identifier("lingua", ["en", "ja"])(["経済", "日本", "食べる"]) == ["ja", "ja", "ja"]


def swadesh():
    rows = read_rows(Path(str(DATA)) / "panlex_swadesh/swadesh207.jsonl", dict)
    return {tag: sorted({word for row in rows for word in row.get(tag, ())}) for tag in ("zh", "ja")}


def mgsm():
    text = {tag: " ".join(read_lines(Path(str(DATA)) / f"mgsm/mgsm_{tag}.tsv")) for tag in ("zh", "ja")}
    pytest.importorskip("jieba")
    words = {"zh": word_segmenter("zh")(text["zh"]), "ja": regex.findall(r"[\p{Han}々]+", text["ja"])}
    return {tag: sorted({word for word in some if han_form(word)}) for tag, some in words.items()}


@pytest.mark.skipif(DATA is None, reason="MWORK_LENS_TEST_DATA names no folder of test data")
@pytest.mark.parametrize("source", [swadesh, mgsm])
def test_words_of_public_text(source):
    """No form that Chinese lacks is called Chinese, hardly any Japanese word is, and no Chinese word Japanese."""
    words = source()
    identify = identifier("lingua", ["en", "zh", "ja"])
    chinese, japanese = (Counter(identify(words[tag])) for tag in ("zh", "ja"))
    assert chinese["ja"] == chinese["en"] == 0
    assert chinese["zh"] > 0.45 * len(words["zh"])
    lacking = [word for word in words["ja"] if han_form(word) and not usual_in_chinese(word)]
    assert len(lacking) > 20
    assert "zh" not in identify(lacking)
    ours = [word for word in words["ja"] if han_form(word) and word not in words["zh"]]
    assert sum(label == "zh" for label in identify(ours)) <= 0.02 * len(ours)  # 仨 and 幺 are no Japanese words
    assert japanese["ja"] > 0.1 * len(words["ja"])


def test_a_clause_without_kana_is_chinese():
    clauses = ["我被咬了!“", "不能行走。", "他是自由的，", "造成1100多人死亡。", "稍等一下。"]
    assert set(identifier("lingua", ["en", "zh", "ja"])(clauses)) == {"zh"}
    assert identifier("lingua", ["zh", "ja"])(["人々は日本語で書く。", "発売中止決定！"]) == ["ja", "ja"]


@pytest.mark.skipif(DATA is None, reason="MWORK_LENS_TEST_DATA names no folder of test data")
def test_chinese_sentences_stay_chinese():
    lines = read_lines(Path(str(DATA)) / "ntrex/newstest2019-ref.zho-CN.txt")
    questions = [line.split("\t")[0] for line in read_lines(Path(str(DATA)) / "mgsm/mgsm_ja.tsv")]
    identify = identifier("lingua", ["en", "zh", "ja"])
    assert Counter(identify(lines)) == {"zh": 1995, "en": 2}  # as lingua alone has it
    assert set(identify(questions)) == {"ja"}


def usual_in_chinese(word):
    return any(word.encode(codec, errors="ignore").decode(codec) == word for codec in ("gb2312", "big5"))
