"""Text of any length: read one passage after another, the same each time, and dealt out in windows."""

import gzip
import json

import datasets
import pytest
import torch

import mwork_lens as mw
from mwork_lens.text import StreamedCorpus, as_corpus
from mwork_lens.text.files import iterate_rows

TEXTS = [f"mot {i}" for i in range(7)]
NAMES = [f"d{i // 3}" for i in range(7)]


def streamed(source, **options):
    return mw.load_corpus(source, streaming=True, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One text in six languages, each in a file of another type."""
    place = tmp_path_factory.mktemp("texts")
    table = {"text": TEXTS, "document": NAMES}
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    (place / "en.txt").write_text("".join(f"{text}\n" for text in TEXTS) + "\n\n")
    with gzip.open(place / "fr.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = [",".join(f'"{cell}"' for cell in row.values()) for row in rows]
    (place / "de.csv").write_text("\n".join(["text,document", *lines]))
    (place / "es.tsv").write_text("\n".join(["document\ttext", *("\t".join([*row.values()][::-1]) for row in rows)]))
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table).to_parquet(place / "zh.parquet")
    return place


def test_files_of_every_type_are_streamed_and_read_anew(folder):
    stream = streamed(folder)
    assert sorted(stream) == ["de", "en", "es", "fr", "zh"]
    for _ in range(2):
        assert all([*texts] == TEXTS for texts in stream.values())
    names = {language: window.documents[language] for window in stream.windows() for language in window}
    assert names == {language: tuple(map(str, range(7)) if language == "en" else NAMES) for language in stream}
    assert [*streamed(folder / "zh.parquet")["zh"]] == TEXTS


def test_data_sets_of_a_dict_are_streamed(folder):
    table = datasets.load_dataset("parquet", data_files=str(folder / "zh.parquet"), streaming=True)["train"]
    stream = streamed({"zh": table, "iw": lambda: (text for text in TEXTS), "yo": [torch.tensor([3])]})
    assert list(stream) == ["zh", "he", "yo"]
    for _ in range(2):
        assert [*stream["zh"]] == [*stream["he"]] == TEXTS


def test_lines_take_the_names_of_documents_beside_them(tmp_path):
    for language in ("en", "fr"):
        (tmp_path / f"{language}.txt").write_text("a\nb\nc\n")
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("one\n\ntwo\n")
    (window,) = streamed(tmp_path).windows()
    assert window.documents["fr"] == ("one", "1", "two")
    (tmp_path / "DOCUMENT_IDS.tsv").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"DOCUMENT_IDS\.tsv names fewer lines than en\.txt has"):
        list(streamed(tmp_path)["en"])


def test_windows_hold_every_passage_once_and_in_order():
    stream = streamed({"en": TEXTS, "fr": TEXTS[:4]}, window=5)
    windows = [dict(window) for window in stream.windows()]
    assert windows == [{"en": TEXTS[i : i + 2], "fr": TEXTS[i : i + 2]} for i in (0, 2)] + [
        {"en": TEXTS[4:6]},
        {"en": TEXTS[6:]},
    ]
    assert streamed({"en": TEXTS}, sentences_per_passage=3).take(9)["en"] == [
        "mot 0 mot 1 mot 2",
        "mot 3 mot 4 mot 5",
        "mot 6",
    ]


def test_a_stream_is_taken_skipped_filtered_and_split(folder):
    stream = streamed(folder)
    assert stream.take(3)["fr"] + [*stream.skip(3)["fr"]] == TEXTS
    assert [*stream.filter(lambda text: "5" in text)["de"]] == ["mot 5"]
    assert isinstance(stream.take(3), mw.Corpus)
    many = streamed({"fr": lambda: ({"text": f"{i}", "document": f"d{i // 2}"} for i in range(400)), "en": TEXTS})
    train, held_out = many.split(0.25, seed=1)
    parts = [[*part["fr"]] for part in (train, held_out)]
    assert sorted(parts[0] + parts[1], key=int) == [f"{i}" for i in range(400)]
    assert 60 < len(parts[1]) < 140
    assert not {int(text) // 2 for text in parts[0]} & {int(text) // 2 for text in parts[1]}
    assert held_out.describe()["held_out_part"] == train.describe()["held_out"] == {"share": 0.25, "seed": 1}
    assert [*many.split(0.25, seed=2)[1]["fr"]] != parts[1]


def test_what_needs_all_documents_says_so(folder):
    stream = streamed({"en": TEXTS})
    with pytest.raises(AttributeError, match="has no folds, which needs all documents at once: take"):
        stream.folds(2)
    with pytest.raises(ValueError, match=r"Only detect and collect_means read a stream; .* at once: take"):
        as_corpus(stream)
    for options, message in [
        ({"limit": 3}, "limit=3 of a stream needs all documents at once"),
        ({"parallel": True}, "parallel=True of a stream needs all"),
        ({"max_tokens_per_language": 0}, "max_tokens_per_language=0 must be at least 1"),
        ({"languages": ["th"]}, "has no 'th'; it has "),
    ]:
        with pytest.raises(ValueError, match=message):
            streamed(folder, **options)
    with pytest.raises(ValueError, match=r"max_tokens_per_language=9 ends a stream: add streaming=True"):
        mw.load_corpus(folder, max_tokens_per_language=9)


def test_what_cannot_be_streamed_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"'fr' are read more than once: give a data set, .* not generator"):
        streamed({"fr": (text for text in TEXTS)})
    (tmp_path / "fr.json").write_text('[{"text": "a"}]')
    with pytest.raises(ValueError, match=r"fr\.json is one list, which is read at once: write it as \.jsonl"):
        streamed(tmp_path)
    (tmp_path / "fr.json").unlink()
    (tmp_path / "fr.txt").write_text("\n")
    for source, message in [
        (tmp_path, "has no documents in 'fr'"),
        ({"fr": ["a", ""]}, "Document 1 of 'fr' is empty"),
        ({"fr": [{"text": "a"}, {"txt": "b"}]}, "Row 1 of the texts of 'fr' cannot be read: no text in field 'text'"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(streamed(source).windows())
    with pytest.raises(ValueError, match=r"zh\.parquet cannot be read: no text in field 'txt'"):
        list(streamed(folder / "zh.parquet", text_field="txt")["zh"])


def test_a_long_csv_is_read_as_it_goes(tmp_path):
    """A quoted field of several lines ends where it is closed, and an open one is said before the end of the file."""
    path = tmp_path / "fr.csv"
    path.write_text("text\n" + '"a\nb\n""c""\n"\n' * 3 + "d\n" * 3)
    assert list(iterate_rows(path, lambda row: row["text"], field="text")) == ['a\nb\n"c"\n'] * 3 + ["d"] * 3
    path.write_text("text\n" + "d\n" * 50_000 + '"')
    rows = iterate_rows(path, lambda row: row["text"], field="text")
    assert [next(rows) for _ in range(3)] == ["d"] * 3
    with pytest.raises(ValueError, match="line 50002: the quote that is opened there is not closed"):
        list(rows)


def test_a_stream_shows_itself():
    stream = streamed({"en": TEXTS, "fr": TEXTS}, max_tokens_per_language=9)
    assert repr(stream) == "StreamedCorpus(given: en, fr; window=4096, max_tokens_per_language=9)"
    assert isinstance(stream, StreamedCorpus)
