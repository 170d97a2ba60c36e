"""``merge`` writes the folder that the command writes without --shard, with the same bytes."""

import re
import resource

import pytest

from . import run, write_model_and_text

KINDS = {
    "detect": ["detect", "--quorum", "0.5", "--held-out", "0.25"],
    "effects": ["effects", "--quorum", "0.5", "--controls", "sw", "--stages", "sw", "--detection", "RUN"],
    "sets": ["effects", "--neurons", "RUN/en", "--neurons", "RUN/sw"],
    "ratio": ["ratio", "--limit", "2", "--text", "a b e f"],
    "sweep": ["experiment", "layer-sweep", "--quorum", "0.5", "--detection", "RUN"],
}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}") for words in ("Of these documents detection has seen", "The control")
]

_FIGURE = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The name that a figure draws for itself."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, text, and what was written of them."""
    place = tmp_path_factory.mktemp("merging")
    write_model_and_text(place, num_hidden_layers=3)
    return place


@pytest.fixture
def written(capsys, place):
    """The folder of a command, or of a part of it, written once."""

    def write(kind, part=None):
        path = place / (kind if part is None else f"{kind}-{part}")
        if not path.exists():
            detection = None if kind == "detect" else str(write("detect"))
            arguments = [each.replace("RUN", detection or "") for each in KINDS[kind]]
            source = ["--model", str(place / "model"), "--corpus", str(place / "text"), "--output", str(path)]
            more = [] if part is None else ["--shard", f"{part}/2"]
            code, error = run(capsys, *arguments, *source, *more)
            assert code == 0, error
        return path

    return write


def files(place):
    return {path.relative_to(place): path for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_merged_to_the_folder_of_the_whole(capsys, tmp_path, place, written, kind):
    whole, parts = files(written(kind)), [str(written(kind, part)) for part in (1, 0)]
    model = ["--model", str(place / "model")] if kind == "ratio" else []
    code, error = run(capsys, "merge", *parts, *model, "--output", str(tmp_path / "merged"))
    assert code == 0, error
    merged = files(tmp_path / "merged")
    assert merged.keys() == whole.keys()
    assert not {*merged} & {path for path in files(written(kind, 0)) if path.suffix in (".csv", ".html")}
    for name, path in whole.items():
        ours, theirs = (_FIGURE.sub(b"", each.read_bytes()) for each in (path, merged[name]))
        assert ours == theirs, name


def test_folders_that_do_not_make_a_whole_are_named(capsys, tmp_path, place, written):
    one, two, whole, ratio = (str(written(*each)) for each in [("detect", 0), ("detect", 1), ("detect",), ("ratio", 0)])
    for wrong, message in [
        ([one], "Of 2 parts 1/2 is missing."),
        ([one, whole], "detect is not a part of --shard, as detect-0 is."),
        ([one, two, ratio], "detect-0 was made with experiment='detect', ratio-0 with 'ratio'."),
        ([str(written("ratio", 0)), str(written("ratio"))], "ratio is not a part of --shard, as ratio-0 is."),
        ([str(place / "text")], "text is not a folder of a command that merges: detect, effects, ratio, "),
        ([str(written("effects", 0))], "Of 2 parts 1/2 is missing."),
    ]:
        code, error = run(capsys, "merge", *wrong, "--output", str(tmp_path / "other"))
        assert (code, message in error.splitlines()[-1]) == (2, True), error
    both = [str(written("ratio", part)) for part in (0, 1)]
    code, error = run(capsys, "merge", *both, "--model", str(place / "nowhere"), "--output", str(tmp_path / "other"))
    assert (code, "nowhere" in error) == (2, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "--shard", "2/2"], "--shard 2/2: give a part and the number of parts, from 0/8 to 7/8."),
        (["effects", "--shard", "0/2"], "--shard 0/2 goes with saved neurons: first mwork-lens detect --shard and"),
        (["experiment", "layer-sweep", "--shard", "0/2"], "--shard 0/2 goes with saved neurons"),
        (["ratio", "--validate", "--shard", "0/2"], "--validate goes without --shard"),
    ],
)
def test_parts_that_cannot_be_are_refused_at_once(capsys, tmp_path, arguments, message):
    code, error = run(capsys, *arguments, "--output", str(tmp_path / "out"))
    assert (code, message in error) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["effects", "ratio"])
def test_a_full_disk_is_one_line_and_merging_goes_on_once_there_is_room(capsys, tmp_path, place, written, kind):
    parts = [str(written(kind, part)) for part in (0, 1)]
    arguments = ["merge", *parts, "--model", str(place / "model"), "--output", str(tmp_path / "merged")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        code, error = run(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, error.count("Traceback"), "File too large" in error.splitlines()[-1]) == (2, 0, True), error
    left = files(tmp_path / "merged")
    assert not [name for name in left if name.name.startswith(".")]
    assert run(capsys, *arguments)[0] == 0
    assert files(tmp_path / "merged").keys() == files(written(kind)).keys()
