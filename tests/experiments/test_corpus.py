import inspect
import json

import pytest

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.experiments.corpus import describe_corpus, read_vocabulary

from ..tiny import spelled, words

TEXTS = {"en": ["a dog and a Dog", "two dogs"], "lo": ["ໝາ"], "fr": ["le chien, le chat"]}


def test_words_tokens_and_coverage_by_language():
    corpus = mw.text.as_corpus(TEXTS)
    vocabulary = {"en": [["dog", "hound"], ["cat"]], "lo": [["ໝາ"]]}
    found = describe_corpus(corpus, tokenizer=words(), vocabulary=vocabulary)
    english = found.loc["en"]
    assert (english["documents"], english["passages"], english["words"], english["distinct_words"]) == (2, 2, 7, 5)
    assert (english["covered"], english["vocabulary"], english["coverage"]) == (1, 2, 0.5)
    assert found.loc["lo", "coverage"] == 1.0
    assert "looked for as strings" in found.loc["lo", "note"]
    assert "no segmenter" in found.loc["lo", "words_by"]
    assert found["distinct_words"].isna()["lo"]
    assert found.loc["fr", "note"] == "no reference vocabulary"
    given = describe_corpus(corpus, segmenters={"lo": list})
    assert given.loc["lo", "words"] == len(TEXTS["lo"][0])
    assert given["tokens"].isna().all()


def test_words_are_compared_as_the_language_writes_them():
    texts = {"tr": ["İstanbul ISPARTA"], "fr": ["e\u0301te\u0301 soft\u00adware"], "el": ["ΑΘΗΝΑ"]}
    vocabulary = {"tr": [["istanbul"], ["ısparta"], ["isparta"]], "fr": [["été"], ["software"]], "el": [["Αθήνα"]]}
    found = describe_corpus(mw.text.as_corpus(texts), vocabulary=vocabulary)
    assert found["covered"].to_dict() == {"tr": 2, "fr": 2, "el": 1}
    with pytest.raises(ValueError, match=r"vocabulary=.*: it must be a dict from strings to lists of lists of strings"):
        inspect.unwrap(describe_corpus)(mw.text.as_corpus(texts), vocabulary={"fr": ["chien"]})


def test_vocabularies_are_read_and_bad_ones_named(tmp_path):
    (tmp_path / "fr.txt").write_text("chien\nchat\n")
    assert read_vocabulary(tmp_path, ["fr", "en"]) == {"fr": [["chien"], ["chat"]]}
    table = tmp_path / "words.jsonl"
    table.write_text(json.dumps({"concept": 1, "fr": ["chien *"], "zh": ["狗", "犬"]}) + "\n")
    assert read_vocabulary(table, ["fr", "zh"]) == {"fr": [["chien"]], "zh": [["狗", "犬"]]}
    with pytest.raises(ValueError, match="no words in ru; it has fr, zh"):
        read_vocabulary(table, ["ru"])
    table.write_text(json.dumps({"id": "3", "fr": "chien", "zh": ["狗"]}) + "\n")
    assert read_vocabulary(table, ["zh"]) == {"zh": [["狗"]]}
    with pytest.raises(ValueError, match=r"words\.jsonl cannot be read, line 1: the words in 'fr' are one string"):
        read_vocabulary(table, ["fr"])
    with pytest.raises(ValueError, match="languages='fr' must be a list"):
        read_vocabulary(table, "fr")
    (tmp_path / "RU.TXT").write_text("кот\n\nпёс\u2028\n\n")
    assert read_vocabulary(tmp_path, ["ru"]) == {"ru": [["кот"], ["пёс"]]}
    table.write_text("chien\n")
    with pytest.raises(ValueError, match=r"words\.jsonl cannot be read, line 1"):
        read_vocabulary(table, ["fr"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_vocabulary(tmp_path / "nowhere", ["fr"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus", "--corpus", "/nowhere/at/all"], "/nowhere/at/all"),
        (["corpus", "--languages", "en", "--vocabulary", "/nowhere/words"], "/nowhere/words"),
        (["overlap", "--detection", "/nowhere/a"], "/nowhere/a"),
        (["overlap", "--languages", "en"], "At least two languages"),
        (["reasoning", "--task", "sudoku"], "task='sudoku': it must be one of xquad"),
        (["reasoning", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["reasoning", "--without", "/nowhere/ids"], "/nowhere/ids"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", *arguments, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize(("name", "table"), [("overlap", "overlap"), ("neuron-counts", "specific")])
def test_analyses_of_saved_detections(capsys, tmp_path, name, table):
    model = spelled("llama")
    texts = {"en": ["a b c d", "b c a"], "zh": ["e f g h", "h g"]}
    for other in ("base", "chat"):
        mw.detect(model, texts, progress=False).save(tmp_path / other)
    saved = [part for other in ("base", "chat") for part in ("--detection", str(tmp_path / other))]
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", name, *saved, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 0
    assert "chat" in capsys.readouterr().out
    assert (tmp_path / "out" / f"{table}.csv").is_file()


def test_the_corpus_command_needs_a_tokenizer_only(capsys, tmp_path):
    words().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "fr.txt").write_text("".join(f"a b {i}\n" for i in range(20)))
    arguments = ["--model", str(tmp_path / "tokenizer"), "--corpus", str(tmp_path / "text")]
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", "corpus", *arguments, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 0
    assert "no reference vocabulary" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "out" / "corpus.json").read_text())[0]["tokens"] == 20
    )  # without spaces in its vocabulary, a line is one unknown word
