import csv
import gzip
import inspect
import io
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwork_lens.text import Corpus, as_corpus, fault_of, load_corpus
from mwork_lens.text.languages import expected_scripts, main_script

DATA = os.environ.get("MWORK_LENS_TEST_DATA")
SAYS = {
    "ar": "صباح الخير",
    "en": "Good morning",
    "fr": "Bonjour",
    "ja": "おはようございます。",
    "ko": "안녕하세요.",
    "pt": "Bom dia",
    "ru": "Доброе утро.",
    "th": "สวัสดี",
    "zh": "早上好。",
}


def lines(language, count=20):
    return [f"{SAYS[language]} {i}" for i in range(count)]


def write(folder, files):
    """Files by name: text, or a list of lines; compressed where the name ends in .gz."""
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(f"{line}\n" for line in content)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def jsonl(texts, documents):
    rows = zip(texts, documents, strict=True)
    return [json.dumps({"text": text, "document": name}, ensure_ascii=False) for text, name in rows]


def made_up(sizes, languages=("en", "fr", "zh")):
    """A parallel corpus with so many passages in each document."""
    names = tuple(f"d{i}" for i, size in enumerate(sizes) for _ in range(size))
    texts = {lang: tuple(f"{lang} {name} {i}" for i, name in enumerate(names)) for lang in languages}
    return Corpus(texts, dict.fromkeys(languages, names), parallel=True)


# --- split, limit, join ---------------------------------------------------------------------------

document_sizes = st.lists(st.integers(1, 5), min_size=2, max_size=15)


@settings(deadline=None)
@given(document_sizes, st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_divides_no_document(sizes, share, seed):
    corpus = made_up(sizes)
    kept, out = corpus.split(share, seed=seed)
    assert (kept, out) == corpus.split(share, seed=seed)
    assert len(set(out.documents.values())) == len(set(kept.documents.values())) == 1
    for language in corpus:
        assert not set(kept.documents[language]) & set(out.documents[language])
        assert kept[language]
        assert out[language]
        held = set(out[language])
        assert kept[language] == [text for text in corpus[language] if text not in held]
        assert out[language] == [text for text in corpus[language] if text in held]
        assert all(name in text for name, text in zip(out.documents[language], out[language], strict=True))
        assert abs(len(held) - share * len(corpus[language])) <= max(sizes)


def test_the_seed_decides_the_split():
    corpus = made_up([2] * 20)
    assert len({corpus.split(seed=seed)[1].documents["en"] for seed in range(5)}) == 5


@pytest.mark.parametrize("share", [0.0, 1.0, -0.25, 25.0])
def test_a_split_needs_a_share(share):
    with pytest.raises(ValueError, match=f"held_out={share}"):
        made_up([1, 1]).split(share)


def test_a_split_needs_two_documents():
    with pytest.raises(ValueError, match="'en' has 5 passages of 1 document, too few for a held-out part"):
        made_up([5]).split()


@settings(deadline=None)
@given(document_sizes, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_parts_share_no_document(sizes, wanted, seed):
    corpus, parts = made_up(sizes * 5), {f"part {i}": size for i, size in enumerate(wanted)}
    divided = corpus.divide(parts, seed=seed)
    assert {name: len(part["fr"]) for name, part in divided.items()} == parts
    documents = [set(part.documents["en"]) for part in divided.values()]
    assert len(set.union(*documents)) == sum(map(len, documents))
    assert all(len(set(part.documents.values())) == 1 for part in divided.values())


@settings(deadline=None)
@given(document_sizes, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_parts_have_a_document_for_each_passage(sizes, wanted, seed):
    divided = made_up(sizes * 5).divide({f"part {i}": size for i, size in enumerate(wanted)}, seed=seed)
    assert [len(set(part.documents["en"])) for part in divided.values()] == wanted


def test_a_part_of_forty_passages_is_forty_documents():
    """As the enhancement experiment divides 123 articles of 4 to 30 sentences."""
    corpus = made_up([4 + 26 * i // 122 for i in range(123)], ["en"])
    parts = corpus.divide({"detection": 40, "development": 20, "evaluation": 40, "tuning": 400})
    documents = {name: len(set(part.documents["en"])) for name, part in parts.items()}
    assert documents == {"detection": 40, "development": 20, "evaluation": 40, "tuning": 23}
    assert {name: len(part["en"]) for name, part in parts.items()}["tuning"] == 400


def test_scarce_documents_go_to_small_parts_first():
    taken = {name: len(set(part.documents["en"])) for name, part in made_up([4] * 14).divide(
        {"detection": 12, "development": 4, "evaluation": 12, "tuning": 20}).items()}  # fmt: skip
    assert taken == {"detection": 3, "development": 3, "evaluation": 3, "tuning": 5}
    # 10 passages need 6 + 4, so that 8 are left for the part of 6
    tight = made_up([8, 6, 4], ["en"]).divide({"a": 6, "b": 10})
    assert {name: len(part["en"]) for name, part in tight.items()} == {"a": 6, "b": 10}


def test_too_small_a_corpus_is_not_divided():
    with pytest.raises(ValueError, match="'en' has 32 passages of 16 documents, too few for 40 of a without sharing"):
        made_up([2] * 16).divide({"a": 40})
    with pytest.raises(ValueError, match="limit=0: it must be at least 1"):
        made_up([2]).limit(0)


def test_what_a_seed_gives_stays_the_same():
    """Earlier results name their documents by seed."""
    corpus = made_up([2, 1, 4, 3, 1, 2, 5, 1, 3, 2], ["fr"])
    parts = [corpus.split(0.3, seed=1)[1], corpus.folds(3, seed=2)[0][1], *corpus.divide({"a": 3, "b": 6}).values()]
    assert [sorted(set(part.documents["fr"])) for part in parts] == [
        ["d6", "d8"], ["d1", "d4", "d5", "d7", "d8"], ["d1", "d5", "d8"], ["d0", "d2", "d3", "d4", "d6", "d7"],
    ]  # fmt: skip


@settings(deadline=None)
@given(document_sizes, st.integers(1, 80))
def test_a_limit_spreads_over_documents(sizes, limit):
    corpus = made_up(sizes)
    limited = corpus.limit(limit)
    for language, texts in limited.items():
        assert len(texts) == min(limit, sum(sizes))
        assert texts == [text for text in corpus[language] if text in set(texts)]
        taken = Counter(limited.documents[language])
        fewest_with_more_left = min((taken[f"d{i}"] for i, n in enumerate(sizes) if taken[f"d{i}"] < n), default=9)
        assert max(taken.values()) <= fewest_with_more_left + 1


def test_a_limit_draws_the_same_places_in_every_language():
    corpus = made_up([10] * 30)
    limited, drawn = corpus.limit(30), [corpus.limit(30, seed=seed) for seed in range(4)]
    places = {lang: [text.removeprefix(f"{lang} ") for text in texts] for lang, texts in limited.items()}
    assert places["en"] == places["fr"] == places["zh"]
    firsts = sum(int(text.split()[-1]) % 10 == 0 for text in places["en"])
    assert firsts < 10
    assert limited == drawn[0]
    assert len({part.texts["en"] for part in drawn}) == 4
    assert limited.describe()["limit"] == {"passages": 30, "seed": 0}
    assert limited.describe()["documents"] == {"en": 30, "fr": 30, "zh": 30}
    assert set(corpus.limit(45).texts["en"]) > set(limited.texts["en"])
    assert "en 30 of 30" in repr(limited)
    assert corpus.limit(5).documents["en"] == ("d0", "d1", "d2", "d3", "d4")


@pytest.mark.filterwarnings("ignore:.* has only .* passages")
@settings(deadline=None)
@given(document_sizes, st.integers(1, 6))
def test_joined_passages_never_cross_documents(sizes, sentences):
    corpus = made_up(sizes, ["en", "fr"])
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{lang}.jsonl": jsonl(corpus[lang], corpus.documents[lang]) for lang in corpus}
        loaded = load_corpus(write(Path(folder), files), sentences_per_passage=sentences)
    expected = []
    for name, rows in itertools.groupby(zip(corpus.documents["fr"], corpus["fr"], strict=True), key=lambda row: row[0]):
        texts = [text for _, text in rows]
        starts = range(0, len(texts), sentences)
        expected += [(name, " ".join(texts[start : start + sentences])) for start in starts]
    assert list(zip(loaded.documents["fr"], loaded["fr"], strict=True)) == expected
    assert loaded.documents["en"] == loaded.documents["fr"]
    assert loaded.parallel


@pytest.mark.parametrize(("language", "between"), [("ru", " "), ("th", " "), ("ko", " "), ("zh", ""), ("ja", "")])
def test_sentences_are_joined_as_the_language_writes(tmp_path, language, between):
    texts = [f"{i}{SAYS[language]}" for i in range(40)]
    rows = jsonl(texts, [f"d{i // 2}" for i in range(40)])
    corpus = load_corpus(write(tmp_path, {f"{language}.jsonl": rows}), sentences_per_passage=2)
    assert corpus[language] == [texts[i] + between + texts[i + 1] for i in range(0, 40, 2)]


# --- what a corpus is -----------------------------------------------------------------------------


def test_a_corpus_is_a_mapping_of_lists():
    corpus = made_up([2, 1], ["en", "fr"])
    assert dict(corpus) == {lang: [f"{lang} d0 0", f"{lang} d0 1", f"{lang} d1 2"] for lang in ("en", "fr")}
    assert corpus.ids["fr"] == ("fr/d0/0", "fr/d0/1", "fr/d1/0")
    frame = corpus.to_frame()
    assert frame["passage"].tolist() == [*corpus.ids["en"], *corpus.ids["fr"]]
    assert frame["length"].tolist() == [7] * 6
    assert "th" not in corpus
    with pytest.raises(KeyError, match="'th'; it has en, fr"):
        corpus["th"]


def test_the_hash_is_that_of_the_content():
    corpus = as_corpus({"en": ["a", "b"], "fr": ["c"]})
    assert corpus.hash == as_corpus({"fr": ["c"], "en": ["a", "b"]}).hash
    others = [{"en": ["ab"], "fr": ["c"]}, {"en": ["a"], "fr": ["b", "c"]}, {"en": ["a", "b"], "de": ["c"]}]
    assert corpus.hash not in {as_corpus(other).hash for other in others}


def test_dicts_and_token_ids_are_corpora():
    ids = [torch.tensor([1, i + 2]) for i in range(20)]
    corpus = load_corpus({"fra": lines("fr"), "th": ids})
    assert corpus["fr"] == lines("fr")
    assert all(torch.equal(found, given_) for found, given_ in zip(corpus["th"], ids, strict=True))
    assert not corpus.parallel
    assert corpus.to_frame()["length"].tolist()[-1] == 2
    assert as_corpus(corpus) is corpus
    assert as_corpus({"fr": ["Salut"]})["fr"] == ["Salut"]
    assert load_corpus({"en": lines("en"), "fr": lines("fr")}, parallel=True).parallel


# --- the demo text --------------------------------------------------------------------------------


def test_the_demo_text():
    corpus = load_corpus("demo")
    assert set(corpus) == {"en", "de", "fr", "es", "zh", "ru", "th"}
    assert corpus.parallel
    assert len(set(corpus.documents.values())) == 1
    for language, texts in corpus.items():
        assert len(set(texts)) == len(texts) == 64
        assert {main_script(text) for text in texts} == expected_scripts(language)
        for text in texts:
            assert 90 <= len(text) <= 600
            # Thai does not mark the ends of sentences
            assert language == "th" or 2 <= len(re.findall(r"[.!?…。！？]+", text)) <= 6
    chosen = load_corpus("demo", languages=["tha", "en"], limit=30)
    assert list(chosen) == ["th", "en"]
    assert chosen.documents["th"] == chosen.documents["en"] == corpus.documents["th"][:30]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("fr.txt", "fr"),
        ("fra.txt", "fr"),
        ("news.fr.jsonl.gz", "fr"),
        ("news.fr.txt.gz", "fr"),
        ("newstest2019-ref.fra.txt", "fr"),
        ("newstest2019-ref.arb.txt", "ar"),
        ("newstest2019-ref.zho-CN.txt", "zh"),
        ("x.pt_BR.txt", "pt"),
        ("x.zh-Hant.txt", "zh-Hant"),
        ("ru-latn.txt", "ru-Latn"),
    ],
)
def test_a_file_name_ends_in_its_language(tmp_path, name, language):
    texts = lines("en" if language == "ru-Latn" else language[:2])
    content = [json.dumps({"text": text}) for text in texts] if ".jsonl" in name else texts
    write(tmp_path, {name: content})
    assert dict(load_corpus(tmp_path)) == {language: texts}
    assert list(load_corpus(tmp_path, languages=[language])) == [language]


def test_a_region_counts_where_it_tells_files_apart_or_is_asked_for(tmp_path):
    write(
        tmp_path,
        {"pt-BR.txt": lines("pt"), "pt-PT.txt": [f"{line}!" for line in lines("pt")], "zh-CN.txt": lines("zh")},
    )
    assert set(load_corpus(tmp_path)) == {"pt-BR", "pt-PT", "zh"}
    assert list(load_corpus(tmp_path, languages=["zho-CN", "pt-BR"])) == ["zh-CN", "pt-BR"]


def test_document_ids_make_a_folder_parallel(tmp_path, caplog):
    names = [f"news-{i // 3}" for i in range(20)]
    write(tmp_path, {"ref.fra.txt": lines("fr"), "src.eng.txt": lines("en"), "LANGUAGES.tsv": "x", "notes.txt": "x"})
    assert not load_corpus(tmp_path).parallel
    assert "LANGUAGES.tsv, notes.txt" in caplog.text
    caplog.clear()
    corpus = load_corpus(write(tmp_path, {"DOCUMENT_IDS.tsv": names}), languages=["fr", "en"])
    assert corpus.parallel
    assert corpus.documents == {"fr": tuple(names), "en": tuple(names)}
    assert "DOCUMENT_IDS" not in caplog.text
    with pytest.raises(ValueError, match=r"DOCUMENT_IDS.tsv names 19 lines but ref.fra.txt has 20"):
        load_corpus(write(tmp_path, {"DOCUMENT_IDS.tsv": names[:19]}))


def separated(texts, suffix):
    table = io.StringIO()
    if suffix == ".tsv":
        table.write("document\ttext\r\n" + "".join(f"d\t{text}\r\n" for text in texts))
    else:
        csv.writer(table).writerows([("document", "text"), *(("d", text) for text in texts)])
    return table.getvalue()


ODD = ["NA", "007", "2019-01-01", '"', "a, b", "a\r\nb", "a\rb", "a\tb"]
one_line = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\ufeff\0")
any_character = st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0")


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:.* repeat earlier ones", "ignore:.* hold char")
@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_text_comes_out_of_a_file_as_it_went_in(suffix, data):
    character = any_character if suffix in (".csv", ".jsonl") else one_line
    odd = [text for text in ODD if suffix in (".csv", ".jsonl") or text.isprintable()]
    text = st.text(character, min_size=1).filter(lambda text: fault_of(text) is None) | st.sampled_from(odd)
    texts = data.draw(st.lists(text, min_size=1, max_size=5))
    content = {
        ".txt": texts,
        ".tsv": separated(texts, ".tsv"),
        ".csv": separated(texts, ".csv"),
        ".jsonl": [json.dumps({"text": text, "year": year}) for text, year in zip(texts, [1, "b"] * 3, strict=False)],
    }
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), {f"x{suffix}": content[suffix]})
        assert load_corpus(Path(folder) / f"x{suffix}", labels="free")["x"] == texts


def test_columns_are_found_by_name(tmp_path):
    rows = ["says,id,document", *(f'"Bonjour, ""monde"" {i}",{i},d{i // 2}' for i in range(20))]
    corpus = load_corpus(write(tmp_path, {"fr.csv": "\ufeff" + "\r\n".join(rows)}), text_field="says")
    assert corpus["fr"][3] == 'Bonjour, "monde" 3'
    assert corpus.documents["fr"][2:5] == ("d1", "d1", "d2")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_without_documents_are_their_own(tmp_path, suffix):
    texts = [json.dumps({"text": text}) for text in lines("fr")] if suffix == ".jsonl" else ["text", *lines("fr")]
    corpus = load_corpus(write(tmp_path, {f"fr{suffix}": texts}))
    assert len(set(corpus.documents["fr"])) == 20


def test_a_file_that_names_no_language_is_of_any(tmp_path):
    write(tmp_path, {"unnamed.txt": lines("th")})
    assert dict(load_corpus(tmp_path / "unnamed.txt")) == {"und": lines("th")}


def test_free_labels_are_kept_as_they_are(tmp_path):
    write(tmp_path, {"en-GB.txt": lines("en"), "my.dialect 1.txt": lines("th")})
    assert set(load_corpus(tmp_path, labels="free")) == {"en-GB", "my.dialect 1"}
    groups = load_corpus({"group 2": lines("ru", 30)}, labels="free")
    assert set(groups) == {"group 2"}
    assert load_corpus(groups, limit=25).labels == load_corpus(made_up([20], ["en"]), labels="free").labels == "free"


@pytest.mark.skipif(DATA is None, reason="MWORK_LENS_TEST_DATA names no folder of test data")
def test_ntrex():
    corpus = load_corpus(Path(str(DATA)) / "ntrex", languages=["en", "fr", "zh", "th"], sentences_per_passage=3)
    assert list(corpus) == ["en", "fr", "zh", "th"]
    assert corpus.parallel
    assert {len(texts) for texts in corpus.values()} == {len(corpus["en"])}
    assert 1997 / 3 < len(corpus["en"]) < 1997 / 3 + 123
    assert len(set(corpus.documents["zh"])) == 123


# --- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"en": lines("en"), "fr": lines("fr", 30)}, "unequal numbers of passages: en 20, fr 30"),
        ({"en": lines("en", 19), "fr": lines("fr", 19)}, "'en' has only 19 passages"),
        ({"en": lines("en"), "fr": lines("ru")}, "The text of 'fr' is mostly in Cyrl, not in Latn"),
        ({"ja": lines("en")}, "The text of 'ja' is mostly in Latn, not in Hani/Hira/Kana"),
        ({"ru-Latn": lines("ru")}, "The text of 'ru-Latn' is mostly in Cyrl, not in Latn"),
    ],
)
def test_doubtful_text_warns_once(corpus, message):
    with pytest.warns(UserWarning, match=message) as caught:
        load_corpus(corpus)
    assert len(caught) == 1


REPEATED = "9 of 20 passages of 'fr' repeat earlier ones"


def test_repeated_passages_and_copied_languages_are_said():
    with pytest.warns(UserWarning, match=REPEATED) as caught:
        load_corpus({"fr": lines("fr", 11) + [f" {line.upper()} " for line in lines("fr", 9)]})
    assert len(caught) == 1
    for loaded in (load_corpus, as_corpus):
        with pytest.warns(UserWarning, match="20 passages are the same in 'fr' and 'pt'") as caught:
            loaded({"en": lines("en"), "fr": lines("fr"), "pt": lines("fr")})
        assert len(caught) == 1
        with pytest.warns(UserWarning, match=REPEATED):
            loaded({"fr": lines("fr", 11) + lines("fr", 9)})
    with pytest.warns(UserWarning, match="3 passages are the same in 'fr' and 'pt'"):
        load_corpus({"fr": lines("fr"), "pt": lines("pt", 17) + lines("fr", 3)})
    load_corpus({"fr": lines("fr"), "pt": lines("pt", 19) + lines("fr", 1)})


def test_texts_on_both_sides_of_a_division_are_said():
    names = tuple(f"d{i}" for i in range(20))
    corpus = Corpus({"fr": tuple(lines("fr", 10) * 2)}, {"fr": names}, parallel=False)
    for divide in (lambda: corpus.split(0.5), lambda: corpus.folds(4), lambda: corpus.divide({"a": 8, "b": 8})):
        with pytest.warns(
            UserWarning, match=r"\d texts of 'fr' are in several parts, as they are in several documents"
        ):
            divide()
    whole = Corpus({"fr": corpus.texts["fr"]}, {"fr": tuple(f"d{i % 10}" for i in range(20))}, parallel=False)
    assert whole.split(0.5)


def test_tags_have_one_form_wherever_they_come_from(tmp_path):
    hebrew = [f"שלום {i}" for i in range(20)]
    write(tmp_path, {"iw.txt": hebrew})
    for corpus in (load_corpus(tmp_path), load_corpus({"iw": hebrew}), as_corpus({"iw": hebrew})):
        assert list(corpus) == ["he"]
        assert corpus["he"] == hebrew
        with pytest.raises(KeyError, match="no 'iw'; it has he"):
            corpus["iw"]
    with pytest.raises(ValueError, match="'he' and 'iw' are the same language \\(he\\)"):
        as_corpus({"he": ["a"], "iw": ["b"]})
    assert list(as_corpus({"iw": ["a"], "my group": ["b"]})) == ["iw", "my group"]


def unchecked(function):
    """Without the types that are checked in tests only."""
    return inspect.unwrap(function)


@pytest.mark.parametrize("kind", [list, tuple, pd.Series, np.array, lambda texts: pd.Series(texts, dtype="string")])
def test_lists_of_other_kinds_are_lists(kind):
    assert unchecked(load_corpus)({"fr": kind(lines("fr"))})["fr"] == lines("fr")
    assert unchecked(as_corpus)({"fr": kind(lines("fr"))}).hash == as_corpus({"fr": lines("fr")}).hash


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (["a", "b"], "A corpus .*not list"),
        ("a text", "A corpus must be a dict from languages to lists of documents, not str"),
        (pd.Series(["a"]), "A corpus .*not Series"),
        (pd.DataFrame({"fr": ["a"]}), "A corpus .*not DataFrame"),
        (None, "A corpus .*not NoneType"),
        ({1: ["a"]}, "The languages of a corpus are strings, not 1"),
        ({"fr": "a"}, "The texts of 'fr' must be a list of documents, not str: put a single one in a list"),
        ({"fr": b"ab"}, "The texts of 'fr' must be a list of documents, not bytes"),
        ({"fr": torch.tensor([1, 2])}, "The texts of 'fr' must be a list of documents, not Tensor"),
        ({"fr": {"de": ["a"]}}, "The texts of 'fr' must be .* not dict by language: give those of one"),
        ({"fr": {"a", "b"}}, "The texts of 'fr' must be a list of documents, not set"),
        ({"fr": (text for text in "ab")}, "The texts of 'fr' must be a list of documents, not generator"),
        ({"fr": np.ones((2, 2), int)}, r"The texts of 'fr' must be .* not an array of shape \(2, 2\) and int64"),
        ({"fr": pd.Series(["a", float("nan")])}, "Document 1 of 'fr' is a float, not a string"),
        ({"fr": [["a"]]}, "Document 0 of 'fr' is a list, not a string"),
        ({"fr": [None]}, "Document 0 of 'fr' is a NoneType, not a string"),
    ],
)
def test_arguments_of_another_shape_are_named(corpus, message):
    with pytest.raises(ValueError, match=message):
        unchecked(as_corpus)(corpus)
    if not isinstance(corpus, str):
        with pytest.raises(ValueError, match=message):
            unchecked(load_corpus)(corpus)


@pytest.mark.parametrize("languages", ["fr", b"fr", 3, ["fr", 3]])
def test_languages_are_a_list(languages):
    with pytest.raises(ValueError, match=r"languages.* must be a list of strings"):
        unchecked(load_corpus)("demo", languages=languages)


# --- bad input ------------------------------------------------------------------------------------

TEXTS = {"en": lines("en"), "fr": lines("fr")}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("demo", {"languages": ["en", "klingonish"]}, "'klingonish' is not a language tag"),
        ({"klingonish": ["nuqneH"]}, {}, "'klingonish' is not a language tag"),
        ("demo", {"languages": ["en", "sw"]}, "demo has no 'sw'; it has de, en"),
        ("demo", {"languages": []}, "languages is empty"),
        (TEXTS, {"languages": ["th"]}, "given has no 'th'; it has en, fr"),
        ({"fr": ["a"], "fra": ["b"]}, {}, "'fr' and 'fra' are the same language"),
        ({}, {}, "'given' is empty"),
        ({"fr": []}, {}, "'given' is empty"),
        ({**TEXTS, "de": []}, {}, "'given' has no documents in 'de'"),
        ({"fr": ["Bonjour", " \n"]}, {}, "Document 1 of 'fr' is empty"),
        ({"fr": "Bonjour"}, {}, "The texts of 'fr' must be a list of documents, not str"),
        ({"fr": [torch.ones(2, 3).long()]}, {}, r"Document 0 of 'fr' is a tensor of shape \(2, 3\)"),
        ({"fr": [torch.tensor(3)]}, {}, r"Document 0 of 'fr' is a tensor of shape \(\)"),
        ({"fr": [torch.tensor([]).long()]}, {}, r"Document 0 of 'fr' is a tensor of shape \(0,\)"),
        ({"fr": [torch.ones(3)]}, {}, r"Document 0 of 'fr' is a tensor of shape \(3,\) and torch.float32"),
        ({"fr": [torch.ones(3) * 1j]}, {}, r"Document 0 of 'fr' is a tensor of shape \(3,\) and torch.complex64"),
        (TEXTS, {"sentences_per_passage": 0}, "sentences_per_passage=0"),
        (TEXTS, {"limit": 0}, "limit=0"),
        ({"en": lines("en"), "fr": lines("fr", 3)}, {"parallel": True}, "'given' is said to be parallel"),
    ],
)
def test_bad_input_is_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(source, **options)


GOOD = '{"text": "Bonjour"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fr.jsonl", [GOOD, GOOD, '{"text": "Bon'], r"fr.jsonl cannot be read, line 3: .*: Unterminated string"),
        ("fr.jsonl", [GOOD, "", '"Bonjour"'], r"fr.jsonl cannot be read, line 3: no text in field 'text'"),
        ("fr.jsonl", [GOOD, '{"text": null}'], r"fr.jsonl cannot be read, line 2: no text in field 'text'"),
        ("fr.jsonl.gz", [GOOD, '{"says": "Salut"}'], r"fr.jsonl.gz cannot be read, line 2: no text in field 'text'"),
        ("fr.csv", ["says,year", "Bonjour,1"], r"fr.csv cannot be read, line 1: no column 'text' among \['says', 'y"),
        ("fr.tsv", ["says\tyear", "Bonjour\t1"], r"fr.tsv cannot be read, line 1: no column 'text' among \['says', 'y"),
        ("fr.csv", ["document,text", "a,Bonjour, monde"], r"fr.csv cannot be read, line 2: 3 columns where .* has 2"),
        ("fr.tsv", ["document\ttext", "a\tb", "c"], r"fr.tsv cannot be read, line 3: 1 columns where .* has 2"),
        (
            "fr.csv",
            ["document,text", 'a,"Bonjour', "b,Salut"],
            r"fr.csv cannot be read, line 2: the quote that is opened there is not closed",
        ),
        ("fr.csv", ["document,text", "a,Bonjour", "b,"], r"fr.csv cannot be read, line 3: its text is empty"),
        ("fr.csv", ["document,text"], r"fr.csv is empty"),
        ("fr.txt", "", r"fr.txt is empty"),
        ("fr.txt", ["Bonjour", "", "Salut"], r"fr.txt cannot be read, line 2: it is empty; remove it"),
        ("fr.json", ["[]"], r"fr.json is empty"),
        (
            "fr.jsonl",
            ['{"text": "a", "text": "b"}'],
            r"fr.jsonl .* line 1: the field .text. is there twice",
        ),
        (
            "fr.jsonl",
            ["[", GOOD, "]"],
            r"fr.jsonl .* line 1: its lines must be JSON, each by itself \(a list",
        ),
        ("fr.csv", ["text,text", "a,b"], r"fr.csv cannot be read, line 1: the column 'text' is there twice"),
        ("fr.csv", ["document,text", 'a, "b"'], r"fr.csv cannot be read, line 2: there is a space before a quote"),
        ("fr.xml", ["<a/>"], r"fr.xml: unsupported file type \(.txt, .jsonl"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path, name, content, message):
    write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path / name)


@pytest.mark.parametrize(("name", "content"), [("fr.txt", "été".encode("latin-1")), ("fr.txt.gz", b"no gzip")])
def test_a_file_in_another_encoding_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        load_corpus(tmp_path)


def test_a_folder_needs_one_file_a_language(tmp_path):
    write(tmp_path, {"readme.md": "x", "notes.txt": "x"})
    with pytest.raises(ValueError, match=f"{tmp_path} has no file named after a language"):
        load_corpus(tmp_path)
    write(tmp_path, {"fr.txt": lines("fr"), "news.fra.txt": lines("fr")})
    with pytest.raises(ValueError, match=r"fr\.txt and news\.fra\.txt .* are both 'fr'"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("name", ["nowhere.txt", "./no/where", "/no/where"])
def test_a_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=name):
        load_corpus(name)


def test_lines_without_documents_are_one_running_text():
    ids = [torch.tensor([1, i + 2]) for i in range(40)]
    corpus = load_corpus({"fr": [f"Phrase {i}." for i in range(40)], "th": ids}, sentences_per_passage=2)
    assert corpus["fr"][0] == "Phrase 0. Phrase 1."
    assert corpus["th"][0].tolist() == [1, 2, 1, 3]
    assert len(corpus["fr"]) == len(set(corpus.documents["fr"])) == 20
    again = load_corpus(load_corpus("demo"), languages=["fr", "zh"], limit=30)
    assert again.parallel
    assert again.source == "demo"
    assert {language: len(texts) for language, texts in again.items()} == {"fr": 30, "zh": 30}


@pytest.mark.filterwarnings("ignore:.* has only .* passages")
def test_spaces_around_names_of_columns_do_not_count(tmp_path):
    write(tmp_path, {"fr.csv": ["text, document ", "Bonjour,a", "Salut,a"]})
    assert load_corpus(tmp_path).documents["fr"] == ("a", "a")


@pytest.mark.parametrize(
    "content",
    [
        {"fr.jsonl": ['{"text": "a", "document": "1"}', '{"text": "b"}']},
        {"fr.csv": ["text,document", "a,1", "b,"]},
        {"fr.txt": ["a", "b", "c"], "DOCUMENT_IDS.tsv": ["1", "", "2"]},
    ],
)
def test_documents_are_named_for_all_passages_or_for_none(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"1 of \d passages of 'fr' .* name no document: all or none must"):
        load_corpus(tmp_path)


@pytest.mark.filterwarnings("ignore:.* has only .* passages")
@pytest.mark.parametrize("text", ["caf\ufffd", "caf\u00c3\u00a9", "l\u00e2\u20ac\u2122homme"])
def test_text_that_was_misread_is_said(text):
    with pytest.warns(UserWarning, match="1 passages of 'fr' hold characters such as"):
        load_corpus({"fr": [text, "Café, l’homme, São, Ã, â"]})
