"""Files and directories whole or not at all, at any path, by one process at a time."""

import contextlib
import errno
import fcntl
import os
import resource
import signal

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from mwork_lens.experiments.folder import ResultsFolder, load_or_run, piece_name
from mwork_lens.neurons import NeuronSet
from mwork_lens.report import write_figure, write_page
from mwork_lens.store import atomic_directory, atomic_file, output_directory, user_path, write_text

from ..made_up import SPACE, neuron_set


@contextlib.contextmanager
def full_disk(left=1000):
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def other_process(directory):
    """A lock as another process has it: locks are of open files, not of processes."""
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


WRITERS = {
    "text": lambda path: write_text(path / "a.txt", "x" * 5000),
    "page": lambda path: write_page(path / "a.html", "title", []),
    "figure": lambda path: write_figure(path / "a", go.Figure()),
    "table": lambda path: ResultsFolder(path, {}).write({"a": pd.DataFrame({"x": range(2000)})}),
    "tensors": lambda path: NeuronSet(SPACE, {}, {"of": torch.zeros(2000)}).save(path / "a"),
    "header": lambda path: NeuronSet(SPACE, {}, {"of": "x" * 2000}).save(path / "a"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, writer):
    with full_disk(), pytest.raises(OSError, match="File too large"):
        WRITERS[writer](tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["text", "page"])
def test_what_was_there_stays_when_the_disk_is_full(tmp_path, writer):
    for name in ("a.txt", "a.html"):
        (tmp_path / name).write_text("old")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        WRITERS[writer](tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize("name", ["a" * 255, "ก" * 85, "a{b}", "a%20b", " a ", "-a", os.fsdecode(b"a\xff")])
def test_any_name_that_a_file_system_allows(tmp_path, name):
    neurons = neuron_set([(0, "q", 1)])
    neurons.save(tmp_path / name)
    assert NeuronSet.load(tmp_path / name) == neurons
    (~neurons).save(tmp_path / name, overwrite=True)
    assert NeuronSet.load(tmp_path / name) == ~neurons
    with atomic_file(tmp_path / f"{name[:80]}.txt") as building:
        building.write_text("x")
    assert len(list(tmp_path.iterdir())) == 2


def test_no_path():
    for path in ("a\0b", "~nobody-of-that-name/a", "a" * 300):
        for use in (user_path, neuron_set([]).save, NeuronSet.load):
            with pytest.raises(ValueError, match="cannot be") as error:
                use(path)
            assert repr(path) in str(error.value)
    with pytest.raises(ValueError, match="'' is not a path"):
        user_path("")


def test_a_mounted_file_system_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(FileExistsError, match="is a mounted file system"), atomic_directory(tmp_path):
        raise AssertionError
    with atomic_directory(tmp_path / "a") as building:
        (building / "x").write_text("x")


def test_other_errors_are_not_another_process(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), atomic_directory(tmp_path / "a") as building:
        (building / "x").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_replace_one_directory_lose_nothing(tmp_path):
    """Each time one of them succeeds or gets one clear error, and something whole is there in the end."""

    def replace_often(writer):
        for _ in range(60):
            with contextlib.suppress(FileExistsError), atomic_directory(tmp_path / "a", overwrite=True) as building:
                (building / "x").write_text(writer * 2)

    children = [_child(lambda writer=writer: replace_often(writer)) for writer in "1234"]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert (tmp_path / "a" / "x").read_text() in {"11", "22", "33", "44"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_write_one_file_are_not_in_each_others_way(tmp_path):
    def write_often(writer):
        for _ in range(100):
            write_text(tmp_path / "a.txt", writer * 4000)

    children = [_child(lambda writer=writer: write_often(writer)) for writer in "1234"]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert (tmp_path / "a.txt").read_text() in {writer * 4000 for writer in "1234"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("writing", [atomic_directory, atomic_file])
def test_what_a_killed_process_left_goes_with_the_next_write_of_the_same(tmp_path, writing):
    def stop_in_it():
        with writing(tmp_path / "a.txt"):
            os.kill(os.getpid(), signal.SIGSTOP)

    children = [_child(stop_in_it), _child(stop_in_it)]
    for child in children:
        os.waitpid(child, os.WUNTRACED)
    left = [*tmp_path.iterdir()]
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    (tmp_path / ".a.txt.writing-12").touch()  # a user's
    try:
        with writing(tmp_path / "a.txt") as building, contextlib.suppress(IsADirectoryError):
            building.write_text("x")
    finally:
        os.kill(children[1], signal.SIGKILL)
        os.waitpid(children[1], 0)
    assert len(left) == 2
    assert len({path.name for path in tmp_path.iterdir()} - {"a.txt", ".a.txt.writing-12"}) == 1, "one still writes"
    with writing(tmp_path / "b.txt"):  # of another name, nothing goes
        pass
    assert len(list(tmp_path.iterdir())) == 4


def _child(action):
    """A process of its own that ends with 0 after the action."""
    if child := os.fork():
        return child
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


def test_of_two_processes_the_first_wins(tmp_path):
    with pytest.raises(FileExistsError, match="a was written by another process"), atomic_directory(tmp_path / "a"):
        write_text(_made(tmp_path / "a") / "x", "theirs")
    with atomic_directory(tmp_path / "a", first_wins=True) as building:
        (building / "x").write_text("ours")
    assert (tmp_path / "a" / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def other_was_faster():
        neuron_set([(0, "q", 1)]).save(tmp_path / "set")
        return neuron_set([])

    assert len(load_or_run(tmp_path / "set", NeuronSet, other_was_faster)) == 1


def _made(path):
    path.mkdir()
    return path


def test_an_output_directory_is_tried_and_empty_ones_are_removed(tmp_path):
    with output_directory(tmp_path / "a" / "b") as path:
        assert path.is_dir()
    assert not list(tmp_path.iterdir())
    with output_directory(tmp_path / "a" / "b") as path:
        (path / "result").write_text("x")
    assert (tmp_path / "a" / "b" / "result").is_file()
    with pytest.raises(NotADirectoryError), output_directory(tmp_path / "a" / "b" / "result" / "c"):
        pass
    for taken, options in ((tmp_path / "a" / "b" / "result", {}), (tmp_path / "a", {"new": True})):
        with pytest.raises(FileExistsError, match=str(taken)), output_directory(taken, **options):
            pass
    with full_disk(0), pytest.raises(OSError, match="File too large"), output_directory(tmp_path / "c"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_one_process_writes_in_a_directory(tmp_path):
    with output_directory(tmp_path), output_directory(tmp_path):
        ResultsFolder.open(tmp_path, "name", {"a": 1})
    with other_process(tmp_path):
        for use in (lambda: ResultsFolder.open(tmp_path, "name", {"a": 1}), output_directory(tmp_path).__enter__):
            with pytest.raises(FileExistsError, match="is being written by another process"):
                use()
    ResultsFolder.open(tmp_path, "name", {"a": 1})


def test_names_of_pieces_are_one_file_each():
    names = ["a", "a/b", "a%2Fb", "..", ".", "", "a b", "ไทย", "a\\b", "x" * 300, "x" * 301]
    names += ["NUL", "con.x", "com1", "zh-Hant", "a ", "a.", " ", "a:b", 'a"?*<>|', "a\nb", "\ud800", "\0"]
    pieces = [piece_name(name) for name in names]
    assert len(set(pieces)) == len(names)
    assert pieces[0] == "a"
    assert pieces[6:8] == ["a b", "ไทย"]
    assert not any(
        set('/\\:"?*<>|\n\0') & set(piece)
        or piece[-1] in " ."
        or piece.startswith(".")
        or len(os.fsencode(piece)) > 200
        for piece in pieces
    )
