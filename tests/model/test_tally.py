"""Passes that are stopped go on where they were, to the same bits."""

import copy
import os
import resource
import shutil
import signal
import threading
from functools import cache, partial

import pytest
import torch

import mwork_lens as mw
from mwork_lens.model import forward
from mwork_lens.model.tally import SECONDS, seconds_between
from mwork_lens.store import digest

from ..made_up import LABELS
from ..tiny import some_neurons, tiny, tokens

MODEL = tiny("gemma3", torch.float32)
CORPUS = {
    "en": [tokens(length, seed) for seed, length in enumerate((5, 3, 9, 7, 2, 4))],
    "fr": [tokens(length, seed + 50) for seed, length in enumerate((6, 8, 3, 3, 5))],
}
OPTIONS = {"batch_size": 2, "progress": False}


def detect(model=MODEL, corpus=CORPUS, **options):
    return mw.detect(model, corpus, verify=False, **{**OPTIONS, **options})


def detect_stream(model=MODEL, corpus=CORPUS, **options):
    return detect(model, mw.load_corpus(corpus, streaming=True, window=4), **options)


def means_of_stream(model=MODEL, corpus=CORPUS, **options):
    return collect_means(model, mw.load_corpus(corpus, streaming=True, window=4), **options)


def collect_means(model=MODEL, corpus=CORPUS, **options):
    return mw.collect_means(model, corpus, **{**OPTIONS, **options})


def effect_matrix(model=MODEL, corpus=CORPUS, **options):
    return mw.effect_matrix(model, SETS, corpus, **{**OPTIONS, **options})


def language_ratio(model=MODEL, corpus=CORPUS, **options):
    options = {"token_languages": LABELS, "max_tokens": 512, "directions": 4, **OPTIONS, **options}
    return mw.language_ratio(model, corpus, languages=["en", "fr"], **options)


def collect_firing(model=MODEL, corpus=CORPUS, **options):
    options = {"document_means": True, "histograms": mw.HistogramOptions(bins=5), **OPTIONS, **options}
    return mw.collect_firing(model, corpus, **options)


def tuning_effects(model=MODEL, corpus=CORPUS, **options):
    return mw.tuning_effects(model, {"fr": delta()}, corpus, **{**OPTIONS, **options})


def inspect(model=MODEL, corpus=CORPUS, **options):
    return mw.inspect(model, some_neurons(MODEL, 0.1), corpus, token_languages=LABELS, **{**OPTIONS, **options})


def attribution(model=MODEL, corpus=CORPUS, **options):
    return mw.attribution(model, corpus, **{**OPTIONS, **options})


def single_effects(model=MODEL, corpus=CORPUS, **options):
    return mw.single_effects(model, some_neurons(MODEL, 0.02), corpus, verify=False, **{**OPTIONS, **options})


@cache
def delta():
    return mw.tune(copy.deepcopy(MODEL), SETS["fr"], [tokens(9, 300)], learning_rate=0.1, steps=1, progress=False).delta


SETS = {"fr": some_neurons(MODEL), "control": [some_neurons(MODEL, 0.2, seed) for seed in (1, 2)]}
STREAMS = (detect_stream, means_of_stream)
CALLS = (
    detect,
    collect_means,
    collect_firing,
    attribution,
    effect_matrix,
    single_effects,
    language_ratio,
    tuning_effects,
    inspect,
    *STREAMS,
)
PASSES = {call.__name__: call for call in CALLS}
every_pass = pytest.mark.parametrize("call", PASSES.values(), ids=PASSES)


@pytest.fixture
def passes(monkeypatch):
    """Counts batches; at a given one it does something."""

    class Passes:
        number, at, act = 0, 0, None

    real = forward.run_blocks

    def counting(*arguments, **options):
        Passes.number += 1
        if Passes.number == Passes.at:
            Passes.act()
        return real(*arguments, **options)

    monkeypatch.setattr(forward, "run_blocks", counting)
    return Passes


def count(passes, call, at=0, act=None):
    """How many batches a call takes."""
    passes.number, passes.at, passes.act = 0, at, act
    call()
    return passes.number


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def signalled(number):
    return partial(os.kill, os.getpid(), number)


@pytest.fixture(scope="module")
def whole():
    return {name: digest(call()) for name, call in PASSES.items()}


@pytest.mark.parametrize(
    ("act", "error"),
    [(stop, Stopped), (signalled(signal.SIGINT), KeyboardInterrupt), (signalled(signal.SIGTERM), SystemExit)],
    ids=["error", "Ctrl-C", "SIGTERM"],
)
@every_pass
def test_a_stopped_pass_loses_no_batch_and_repeats_none(tmp_path, passes, whole, call, act, error):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    batches = count(passes, call)
    with pytest.raises(error) as raised:
        count(passes, partial(call, checkpoint=tmp_path / "run"), 4, act)
    assert error is not SystemExit or raised.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    # the fourth one had not ended
    assert count(passes, partial(call, checkpoint=tmp_path / "run")) == batches - 3
    assert digest(call(checkpoint=tmp_path / "run")) == whole[call.__name__]
    assert count(passes, partial(call, checkpoint=tmp_path / "run")) == 0


@every_pass
def test_stopped_at_every_batch(tmp_path, passes, whole, call):
    for _ in range(count(passes, call) - 1):
        with pytest.raises(Stopped):
            count(passes, partial(call, checkpoint=tmp_path), 2, stop)
    assert digest(call(checkpoint=tmp_path)) == whole[call.__name__]


def test_what_other_processes_left_is_taken_over(tmp_path, passes, whole):
    with pytest.raises(Stopped):
        count(passes, partial(detect, checkpoint=tmp_path), 6, stop)
    (tmp_path / "0000-3").rename(tmp_path / "0000-3-1")
    assert count(passes, partial(detect, checkpoint=tmp_path)) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0000-3", "0001-3", "pass.json"]
    # of a process that was killed when the first had it, and its own was still there
    shutil.copytree(tmp_path / "0001-3", tmp_path / "0001-3-2")
    assert count(passes, partial(detect, checkpoint=tmp_path)) == 0
    assert digest(detect(checkpoint=tmp_path)) == whole["detect"]
    assert not (tmp_path / "0001-3-2").exists()


@every_pass
def test_another_run_is_refused_and_what_differs_is_named(tmp_path, passes, call):
    with pytest.raises(Stopped):
        count(passes, partial(call, checkpoint=tmp_path), 3, stop)
    written = sorted(entry.name for entry in tmp_path.iterdir())
    passes.number, passes.at = 0, 0
    other, fewer = copy.deepcopy(MODEL), {**CORPUS, "fr": CORPUS["fr"][:-1]}
    other_beginning = {**CORPUS, "fr": CORPUS["fr"][1:]}
    other.blocks[0].attn.W_O.data[0] += 1
    for options, named in [
        ({"top_k": 5}, "top_k = 10, not 5")
        if call is language_ratio
        else ({"max_tokens": 20}, "max_tokens = 512, not 20"),
        ({"batch_size": 3}, "batch_size = 2, not 3"),
        ({"corpus": other_beginning}, "does not begin with the 4 passages that were read before")
        if call in STREAMS
        else ({"corpus": fewer}, r"corpus\.hash"),
        ({"model": other}, "with other weights"),
    ]:
        with pytest.raises(ValueError, match=named):
            call(checkpoint=tmp_path, **options)
    assert passes.number == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == written


@pytest.mark.skipif(torch.get_num_threads() != 1, reason="the tests' own number of threads")
def test_another_number_of_threads_is_named(tmp_path, passes):
    with pytest.raises(Stopped):
        count(passes, partial(detect, checkpoint=tmp_path), 3, stop)
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="threads = 1, not 2"):
            detect(checkpoint=tmp_path)
    finally:
        torch.set_num_threads(1)


def test_a_pass_that_added_nothing_leaves_nothing(tmp_path, passes):
    with pytest.raises(Stopped):
        count(passes, partial(detect, checkpoint=tmp_path / "run"), 1, stop)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other things \(notes\.txt\)"):
        detect(checkpoint=tmp_path)


def test_a_handler_of_the_users_runs_and_the_pass_goes_on(tmp_path, passes, whole):
    received = []
    before = signal.signal(signal.SIGTERM, lambda *given: received.append([*(tmp_path / "run").iterdir()]))
    try:
        detection = count(passes, partial(detect, checkpoint=tmp_path / "run"), 4, signalled(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert detection == 6
    assert len(received[0]) == 2  # the record and one language, written before the user's handler ran
    assert digest(detect(checkpoint=tmp_path / "run")) == whole["detect"]


def test_a_signal_that_comes_while_a_batch_is_added_waits_for_its_end(tmp_path, passes, whole, monkeypatch):
    real = mw.detection.detecting.DetectionCounts.update

    def update(self, *observed):
        os.kill(os.getpid(), signal.SIGINT)
        real(self, *observed)

    with monkeypatch.context() as patched:
        patched.setattr(mw.detection.detecting.DetectionCounts, "update", update)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                detect(checkpoint=tmp_path)
    assert count(passes, partial(detect, checkpoint=tmp_path)) == 3
    assert digest(detect(checkpoint=tmp_path)) == whole["detect"]


def test_a_batch_that_was_added_in_part_is_not_written(tmp_path, passes, whole, monkeypatch):
    real = mw.detection.detecting.DetectionCounts.claim

    def claim(self, batch):
        real(self, batch)
        if batch.number == 2:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(mw.detection.detecting.DetectionCounts, "claim", claim)
        patched.setenv(SECONDS, "0")
        with pytest.raises(Stopped):
            detect(checkpoint=tmp_path)
    assert count(passes, partial(detect, checkpoint=tmp_path)) == 4
    assert digest(detect(checkpoint=tmp_path)) == whole["detect"]


def test_a_pass_in_another_thread_is_kept_too(tmp_path, whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(digest(detect(checkpoint=tmp_path))))
    thread.start()
    thread.join()
    assert found == [whole["detect"]]


@every_pass
def test_a_full_disk_is_one_line_and_loses_nothing_that_was_written(tmp_path, passes, whole, monkeypatch, call):
    monkeypatch.setenv(SECONDS, "0")
    batches, limits = count(passes, call), resource.getrlimit(resource.RLIMIT_FSIZE)
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError, match=r"run\S* cannot be written .*\(File too large.* the same call goes on"):
            count(passes, partial(call, checkpoint=tmp_path / "run"), 3, full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [entry for entry in (tmp_path / "run").iterdir() if entry.name.startswith(".")]
    assert count(passes, partial(call, checkpoint=tmp_path / "run")) == batches - 2
    assert digest(call(checkpoint=tmp_path / "run")) == whole[call.__name__]


@every_pass
def test_a_folder_that_cannot_be_written_any_more_is_one_line(tmp_path, passes, whole, monkeypatch, call):
    monkeypatch.setenv(SECONDS, "0")
    folder, kept = tmp_path / "run", tmp_path / "kept"

    def lose():  # as root may write anywhere
        folder.rename(kept)
        folder.write_text("a file")

    with pytest.raises(OSError, match=r"run\S* cannot be written .*the same call goes on"):
        count(passes, partial(call, checkpoint=folder), 3, lose)
    folder.unlink()
    kept.rename(folder)
    assert digest(call(checkpoint=folder)) == whole[call.__name__]


def test_how_often_is_written(tmp_path, passes, monkeypatch):
    for wrong in ("often", "-1", "nan", "inf"):
        monkeypatch.setenv(SECONDS, wrong)
        with pytest.raises(ValueError, match=f"{SECONDS}='{wrong}'"):
            detect(checkpoint=tmp_path / "run")
    monkeypatch.delenv(SECONDS)
    assert seconds_between() == 30
    written = []

    def look():
        written.append((tmp_path / "run").exists() and len([*(tmp_path / "run").iterdir()]))
        passes.at += 1

    for seconds in ("30", "0"):
        monkeypatch.setenv(SECONDS, seconds)
        count(passes, partial(detect, checkpoint=tmp_path / "run"), 2, look)
        (tmp_path / "run").rename(tmp_path / f"run-{seconds}")
    assert written == [0] * 5 + [2, 2, 2, 3, 3]
