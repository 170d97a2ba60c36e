"""Text that is read in windows: the bits of merged windows, however it is dealt out, and memory for two windows."""

import threading
import warnings
import weakref

import pytest
import torch

import mwork_lens as mw
from mwork_lens.model.windows import ahead
from mwork_lens.store import Hashes, digest

from ..tiny import spelled, tiny, tokens

MODEL = tiny("gemma3", torch.float32)
CORPUS = {
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5, 7, 4))],
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7))],
}
FIELDS = ("counts", "mean_scores", "screened", "sums", "documents", "tokens", "seen")


def streamed(corpus=CORPUS, window=4, **options):
    return mw.load_corpus(corpus, streaming=True, window=window, **options)


def detect(corpus, **options):
    return mw.detect(MODEL, corpus, verify=False, progress=False, batch_size=2, **options)


def in_one_order(detection, name):
    """A field whose languages are in the order of the alphabet."""
    value = getattr(detection, name)
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def test_one_window_has_the_bits_of_the_corpus():
    whole, stream = detect(CORPUS), detect(streamed(window=4096))
    for name in FIELDS:
        assert digest(getattr(stream, name)) == digest(getattr(whole, name)), name
    assert [*stream.documents_of["fr"]] == [*whole.documents_of["fr"]]
    ours, theirs = (detection.settings["corpus"] for detection in (stream, whole))
    assert {**theirs, "window": 4096} == ours
    assert stream.tokens == {"fr": 36, "en": 24}
    assert "fr 7 of 7 (36), en 4 of 4 (24)" in repr(stream)
    assert set(stream.to_frame()["tokens"]) == {36, 24}


@pytest.mark.parametrize(("window", "order"), [(4, (2, 0, 1)), (6, (1, 0))])
def test_windows_and_parts_in_any_order_have_the_same_bits(window, order):
    stream, of = streamed(window=window), len(order)
    whole, windows = detect(stream), list(stream.windows())
    merged = mw.Detection.merge([detect(dict(one)) for one in windows[::-1]])
    for name in FIELDS:
        assert digest(in_one_order(merged, name)) == digest(in_one_order(whole, name)), name
    parts = [detect(stream, shard=(number, of)) for number in order]
    assert digest(mw.Detection.merge(parts)) == digest(whole)
    with pytest.raises(ValueError, match=rf"the stream has {len(windows)} windows of {window} passages only"):
        detect(stream, shard=(8, 9))


def test_a_streamed_detection_is_saved_with_8_bytes_of_each_document(tmp_path):
    detection = detect(streamed())
    detection.save(tmp_path / "detection")
    loaded = mw.Detection.load(tmp_path / "detection")
    assert digest(loaded) == digest(detection)
    assert isinstance(loaded.documents_of["fr"], Hashes)
    assert loaded.documents_of["fr"].numbers.nbytes == 8 * 7


@pytest.mark.parametrize("window", [3, 100])
def test_a_language_ends_with_the_passage_that_reaches_its_tokens(window):
    stream = streamed(window=window, max_tokens_per_language=17)
    few = {"fr": CORPUS["fr"][:3], "en": CORPUS["en"][:3]}  # 6 + 8 + 3, and 5 + 3 + 9
    detection = detect(stream)
    assert detection.documents == {"fr": 3, "en": 3}
    assert detection.tokens == {"fr": 17, "en": 17}
    assert digest(in_one_order(detection, "sums")) == digest(in_one_order(detect(streamed(few, window)), "sums"))
    if window < 100:
        assert digest(mw.Detection.merge([detect(stream, shard=(i, 2)) for i in (1, 0)])) == digest(detection)


def test_no_more_than_three_windows_are_in_memory_and_the_next_is_read_beside_the_model():
    alive, most, threads = weakref.WeakSet(), 0, set()

    def texts():
        nonlocal most
        for seed in range(60):
            alive.add(text := tokens(4, seed))
            most = max(most, len(alive))
            threads.add(threading.current_thread())
            yield text
            del text

    detection = detect(streamed({"fr": texts}, window=5))
    assert detection.documents == {"fr": 60}
    assert most <= 15
    assert threading.main_thread() not in threads


def test_an_error_in_the_text_comes_out_and_what_was_read_is_kept(tmp_path):
    texts = {**CORPUS, "fr": [*CORPUS["fr"][:5], torch.tensor([]), *CORPUS["fr"][5:]]}
    with pytest.raises(ValueError, match="Document 5 of 'fr' is a tensor of shape"):
        detect(streamed(texts), checkpoint=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["read-000002"]
    assert digest(detect(streamed(), checkpoint=tmp_path)) == digest(detect(streamed()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["read-000004"]


def test_a_thread_ends_with_its_reader():
    before = threading.active_count()
    items = ahead(iter(range(9)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_what_is_cut_or_unknown_is_said_once_of_all_windows():
    model = spelled("llama")
    texts = ["a b c d e f g h", "a b", "a zz", "a b c d e"] * 3
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mw.detect(model, streamed({"fr": texts}, 5), max_tokens=4, verify=False, progress=False)
    cut, unknown = (str(one.message) for one in said)
    assert cut.startswith("6 of 12 documents are longer than 4 tokens")
    assert "<unk> by language: fr" in unknown
