import bz2
import csv
import gzip
import io
import json
import lzma
import os

import pytest

from mwork_lens.neurons import NeuronSpace, load_released
from mwork_lens.settings import TaskOptions
from mwork_lens.tasks.answers import KEY, _read
from mwork_lens.text import load_corpus, read_lines, read_rows

from ..tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.* has only .* passages")
FR = [f"Bonjour le monde {i}" for i in range(20)]
EN = [f"Hello world {i}" for i in range(20)]
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Line ends of str.splitlines, but of no file."""


def put(folder, name, content):
    """A file of bytes, of a text or of lines."""
    text = "".join(f"{line}\n" for line in content) if isinstance(content, list) else content
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return folder / name


# --- what is a line ---


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".jsonl", ".csv"])
def test_separators_within_a_text_end_no_line(tmp_path, suffix):
    texts = [f"a{SEPARATORS}b {i}" for i in range(3)]
    content = {".tsv": ["text", *texts], ".csv": ["text", *(f'"{text}"' for text in texts)], ".txt": texts}
    content[".jsonl"] = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    put(tmp_path, f"fr{suffix}", content[suffix])
    assert load_corpus(tmp_path)["fr"] == texts


def test_our_own_files_are_read_line_by_line(tmp_path):
    answer = {"document": "", "output": f"a{SEPARATORS}", "stopped": "end", "scores": {}, "nats": 1.0, "tokens": 1}
    rows = [{**dict(zip(KEY, ("a", "", None, "en", str(i)), strict=True)), **answer} for i in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = put(tmp_path, "rows.jsonl", lines)
    whole = path.read_bytes()
    assert list(_read(path).values()) == rows
    path.write_bytes(whole + '{"output": "é'.encode()[:-1])  # cut within a character
    assert list(_read(path).values()) == rows
    assert path.read_bytes() == whole
    path.write_bytes(whole + b"\xff\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl is not a file of answers"):
        _read(path)


def test_lists_of_other_programs_are_read_line_by_line(tmp_path):
    space = NeuronSpace.of(tiny("llama"))
    path = put(tmp_path, "released.txt", ["{0: {1}}\u2028"] * 5)
    assert len(load_released(path, space)) == 4
    path = put(tmp_path, "ids.txt", [f"x{SEPARATORS}y", "", "b"])
    assert read_lines(path) == [f"x{SEPARATORS}y", "", "b"]
    option = TaskOptions.__annotations__["without"].__metadata__[0]
    assert option.read("--without", path) == (f"x{SEPARATORS}y", "b")


def test_a_carriage_return_within_a_line_is_no_end_of_it(tmp_path):
    put(tmp_path, "fr.txt", "a\rb\nc\r\nd")
    assert load_corpus(tmp_path)["fr"] == ["a\rb", "c", "d"]
    put(tmp_path, "fr.txt", "a\rb\r")
    assert load_corpus(tmp_path)["fr"] == ["a", "b"]


def test_blank_lines_at_the_end_are_none_and_others_are_named(tmp_path):
    put(tmp_path, "fr.txt", [*FR, "", " "])
    assert load_corpus(tmp_path)["fr"] == FR
    put(tmp_path, "DOCUMENT_IDS.tsv", [*"abcdefghijklmnopqrst", ""])
    assert load_corpus(tmp_path).documents["fr"] == tuple("abcdefghijklmnopqrst")
    put(tmp_path, "fr.txt", [*FR[:3], "", *FR])
    with pytest.raises(ValueError, match=r"fr\.txt cannot be read, line 4: it is empty"):
        load_corpus(tmp_path)


# --- what is a file ---


@pytest.mark.parametrize("name", ["FR.TXT", "fr.txt.GZ", "Fr.Jsonl", "fr.json", "fr.JSON.gz"])
def test_every_file_of_a_language_is_read(tmp_path, name):
    put(tmp_path, "en.txt", EN)
    rows = [{"text": text} for text in FR]
    lines = json.dumps(rows) if "json" in name.lower() else FR
    lines = [json.dumps(row) for row in rows] if "jsonl" in name.lower() else lines
    path = put(tmp_path, name, lines)
    if name.lower().endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert dict(load_corpus(tmp_path)) == {"en": EN, "fr": FR}


@pytest.mark.parametrize("name", ["fr.parquet", "fr.docx", "fr", "fr.txt.bz2", "news.fr.jsonl.zst", "fr.txt.bak"])
def test_what_is_named_after_a_language_but_not_read_is_said(tmp_path, name):
    put(tmp_path, "en.txt", EN)
    put(tmp_path, "README.md", "x")
    if "." in name:
        put(tmp_path, name, b"PAR1")
    else:
        (tmp_path / name).mkdir()
    with pytest.warns(UserWarning, match=f"{name} in .* is named after a language but not read") as caught:
        assert list(load_corpus(tmp_path)) == ["en"]
    assert len(caught) == 1


def test_what_is_not_a_file_is_never_waited_for(tmp_path):
    put(tmp_path, "en.txt", EN)
    os.mkfifo(tmp_path / "fr.txt")
    with pytest.warns(UserWarning, match=r"fr\.txt in .* named after a language but not read"):
        assert list(load_corpus(tmp_path)) == ["en"]
    with pytest.raises(ValueError, match=r"fr\.txt cannot be read: it is not a file"):
        read_rows(tmp_path / "fr.txt", dict)


def test_words_that_are_codes_of_small_languages_are_no_languages(tmp_path, caplog):
    for name in ("log.txt", "dev.txt", "raw.txt", "fr.txt"):
        put(tmp_path, name, FR)
    assert list(load_corpus(tmp_path)) == ["fr"]
    assert "dev.txt, log.txt, raw.txt" in caplog.text
    assert list(load_corpus(tmp_path, languages=["log"])) == ["log"]


def test_parts_of_a_data_set_follow_the_language(tmp_path):
    for name, text in {"flores.eng_Latn.dev.txt": EN, "flores.fra_Latn.dev.txt": FR}.items():
        put(tmp_path, name, text)
    assert dict(load_corpus(tmp_path)) == {"en": EN, "fr": FR}
    put(tmp_path, "flores.fra_Latn.devtest.txt", FR)
    with pytest.raises(ValueError, match=r"dev\.txt and flores\.fra_Latn\.devtest\.txt in .* are both 'fr'"):
        load_corpus(tmp_path)


# --- what is a text ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ok\n".encode("utf-16-le"), "line 1: it holds a NUL character, as UTF-16 text"),
        ("Привет\nмир\n".encode("utf-16-be"), "line [12]: it holds a NUL character, as UTF-16 text"),
        (
            "ok\n".encode("utf-16"),
            "line 1: it is not UTF-8 text but begins like UTF-16 or UTF-32. Files are read as UTF-8",
        ),
        ("ok\n".encode("utf-32"), "begins like UTF-16 or UTF-32"),
        ("ok\nété\n".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8 .in Latin-1 or Windows-1252 .*'été'"),
        ("ok\n“a”\n".encode("cp1252"), "line 2: byte 0x93 is not UTF-8"),
        (gzip.compress(b"ok\n", mtime=0), "begins like gzip .name it .gz"),
        (b"PK\x03\x04zip", "begins like a zip archive"),
        (bz2.compress(b"ok\n"), "begins like bzip2[.]$"),
        (lzma.compress(b"ok\n"), "begins like xz[.]$"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins like a pointer of Git LFS"),
        (b"a\nb\0c\n", "line 2: it holds a NUL character"),
        ("a\n\ufeffbc\n".encode(), "line 2: its text is not clean text: it holds a byte-order mark .U.FEFF. at char"),
        (b"a\n\xed\xa0\x80\n", "line 2: byte 0xed is not UTF-8"),
    ],
)
def test_what_is_not_utf8_text_is_named_with_its_line(tmp_path, content, message):
    put(tmp_path, "fr.txt", content)
    with pytest.raises(ValueError, match=rf"fr\.txt cannot be read, .*{message}"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Bonjour \\ud83d monde", r"line 2: \\ud83d is half of a character"),
        ("Bonjour \\udc00\\ud83d", r"line 2: \\udc00 is half of a character"),
        ("a\\u0000b", "line 2: its text is not clean text: it holds a NUL character at character 2"),
        ("a\\ufeffb", "line 2: its text is not clean text: it holds a byte-order mark"),
        ("\\u200b\\ufeff", "line 2: its text is empty"),
    ],
)
def test_escapes_in_json_that_are_no_text_are_named_with_their_line(tmp_path, text, message):
    put(tmp_path, "fr.jsonl", ['{"text": "Bonjour \\ud83d\\ude00"}', f'{{"text": "{text}"}}'])
    with pytest.raises(ValueError, match=rf"fr\.jsonl cannot be read, {message}"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("text", ["a\0b", "a\ufeff", "a\ud83d", "\u200b"])
def test_what_is_no_text_is_refused_in_a_dict_too(text):
    with pytest.raises(ValueError, match=r"Document 1 of 'fr' is (not|empty)"):
        load_corpus({"fr": ["Bonjour", text]})


def test_brackets_without_end_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jsonl cannot be read, line 1: its brackets are nested too deeply"):
        read_rows(put(tmp_path, "x.jsonl", "[" * 100_000), dict)


def test_errors_in_json_name_the_line_or_the_item(tmp_path):
    with pytest.raises(ValueError, match=r"fr\.json cannot be read, item 2: no text in field 'text'"):
        load_corpus(put(tmp_path, "fr.json", '[{"text": "a"},\n\n{"txt": "b"}]'))
    with pytest.raises(ValueError, match=r"fr\.json cannot be read, line 3: Expecting .* line 3"):
        load_corpus(put(tmp_path, "fr.json", '[{"text": "a"},\n\n{"text" "b"}]'))


# --- tables ---


def test_a_field_of_a_csv_may_be_of_any_length(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * 300_000
    put(tmp_path, "fr.csv", ["text", f'"{long}"', long + "y"])
    assert load_corpus(tmp_path)["fr"] == [long, long + "y"]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text", "a", '"b', "c"] + ["d"] * 50_000, "line 3: the quote that is opened there is not closed"),
        (["text", '"a\nb"', '"c"d', "e"], "line 4: the quote that is opened there is followed by more text"),
        (["text,x", 'a,"b', 'c",d', 'e,"f"g"'], "line 2: 3 columns where the header has 2"),
    ],
)
def test_a_quote_that_is_not_closed_is_named_where_it_is_opened(tmp_path, lines, message):
    put(tmp_path, "fr.csv", lines)
    with pytest.raises(ValueError, match=rf"fr\.csv cannot be read, {message}"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_are_read_as_the_module_csv_writes_them(tmp_path, end):
    rows = [["a", ""], ["", "b"], ['"', "x,y"], ["a\r\nb", "c\rd\n"], [" s", 'q"q'], ["", ""]]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator=end).writerows([["one", "two"], *rows])
    path = put(tmp_path, "x.csv", table.getvalue() + end)
    assert read_rows(path, lambda row: [row["one"], row["two"]]) == rows
    assert list(csv.reader(io.StringIO(table.getvalue(), newline=""), strict=True))[1:] == rows
