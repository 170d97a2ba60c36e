"""Documents are recognised whatever they are cut into, their translations too, and other texts are not."""

import warnings

import pytest
import torch

import mwork_lens as mw
from mwork_lens.text import Corpus, SeenDocuments, as_corpus

LANGUAGES = ("en", "fr", "sw")
NAMES = [f"d{i // 4}" for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six documents of four lines in every language."""
    return written(tmp_path_factory.mktemp("texts"), "texts")


def written(folder, word):
    for language in LANGUAGES:
        (folder / f"{language}.txt").write_text("".join(f"{word} in {language}, line {i}\n" for i in range(24)))
    (folder / "DOCUMENT_IDS.tsv").write_text("".join(f"{name}\n" for name in NAMES))
    return folder


def load(source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mw.load_corpus(source, **options)


def read(corpus, *documents):
    """What a detection on some documents of a corpus has read."""
    rows = {lang: [i for i, name in enumerate(names) if name in documents] for lang, names in corpus.documents.items()}
    return SeenDocuments.of(corpus.select(rows).identities)


def statuses(corpus, seen, language):
    """By document."""
    return dict(zip(corpus.documents[language], corpus.seen_by(seen)[language], strict=True))


@pytest.mark.parametrize("sentences", [1, 3, 4])
@pytest.mark.parametrize("again", [1, 2, 4])
def test_a_document_is_recognised_however_it_is_cut(folder, sentences, again):
    seen = read(load(folder, sentences_per_passage=sentences, limit=6), "d1", "d4")
    found = statuses(load(folder, sentences_per_passage=again), seen, "fr")
    assert [name for name, status in found.items() if status == "seen"] == ["d1", "d4"]
    assert set(found.values()) == {"seen", "unseen"}


def test_lines_without_ids_are_recognised_in_other_passages(tmp_path):
    for language in ("en", "fr"):
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} line {i}\n" for i in range(12)))
    seen = read(load(tmp_path, sentences_per_passage=3), "1")  # lines 3, 4, 5
    found = load(tmp_path, sentences_per_passage=2).seen_by(seen)["fr"]
    assert found == ["unseen", "seen", "seen", "unseen", "unseen", "unseen"]


def test_spaces_and_case_do_not_matter_and_token_ids_count():
    ids = torch.tensor([5, 6, 7])
    seen = SeenDocuments.of(as_corpus({"en": ["One  two"], "fr": [ids]}).identities)
    assert as_corpus({"en": ["one two\n", "one three"], "fr": [ids.int(), ids[:2]]}).seen_by(seen) == {
        "en": ["seen", "unseen"], "fr": ["seen", "unseen"],
    }  # fmt: skip


def test_a_corpus_keeps_what_its_documents_are(folder):
    whole = load(folder)
    seen = read(whole, "d1")
    for part in (whole.limit(6), whole.split(0.5)[0], load(whole, sentences_per_passage=2, languages=["fr"])):
        assert {name for name, status in statuses(part, seen, "fr").items() if status == "seen"} <= {"d1"}
    assert statuses(load(whole.limit(6, seed=1)), seen, "fr")["d1"] == "seen"
    assert statuses(load({"fr": whole["fr"][4:8]}), seen, "fr") == dict.fromkeys("0123", "seen")


def test_a_translation_counts_apart(folder):
    whole = load(folder)
    rest = load(folder, languages=["fr", "sw"])
    english = read(load(folder, languages=["en"]), "d2")
    assert statuses(whole, english, "en")["d2"] == "seen"
    assert statuses(rest, english, "sw") == dict.fromkeys(dict.fromkeys(NAMES), "unseen") | {
        "d2": "seen in another language"
    }
    # without names in common, the English text says whose translations its neighbours are
    texts = {language: tuple(whole[language][4:12]) for language in LANGUAGES}
    renamed = Corpus(texts, dict.fromkeys(LANGUAGES, tuple(f"n{i // 4}" for i in range(8))), parallel=True)
    assert statuses(renamed, english, "sw") == {"n0": "unseen", "n1": "seen in another language"}
    assert statuses(load({"sw": whole["sw"]}), english, "sw").keys() == set(map(str, range(24)))
    assert set(load({"sw": whole["sw"]}).seen_by(english)["sw"]) == {"unseen"}


def test_equal_names_of_other_texts_are_not_taken_for_translations(folder, tmp_path):
    other = load(written(tmp_path, "news"))
    for languages in (LANGUAGES, ("fr", "sw")):
        seen = read(load(folder, languages=languages), *NAMES)
        assert {status for each in other.seen_by(seen).values() for status in each} == {"unseen"}


def test_a_division_shares_no_document(folder):
    corpus = load(folder, sentences_per_passage=2)
    for train, held_out in (corpus.split(0.3), *corpus.folds(3)):
        seen = SeenDocuments.of(train.identities)
        assert {status for each in held_out.seen_by(seen).values() for status in each} == {"unseen"}
        assert {status for each in train.seen_by(seen).values() for status in each} == {"seen"}


def test_several_detections_have_read_what_each_has(folder):
    whole = load(folder)
    both = read(load(folder, languages=["en"]), "d0") | read(whole, "d3")
    assert list(statuses(whole, both, "fr").values()) == [
        "seen in another language", "unseen", "unseen", "seen", "unseen", "unseen",
    ]  # fmt: skip
    assert both.texts["en"].dtype == torch.int64
    assert len(both.texts["fr"]) == 1 + 4  # the document, and its passages
