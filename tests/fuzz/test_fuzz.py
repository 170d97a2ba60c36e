"""Damaged and hostile files and command lines: a correct load or a clear error, no code run, nothing else changed.

``MWORK_LENS_FUZZ=10000 pytest -n 0 -s tests/fuzz`` tries so many cases of each kind.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import WhitespaceSplit

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.report import pictures
from mwork_lens.store.result import _hashes
from mwork_lens.tasks.run import Condition, run_task
from mwork_lens.tuning.result import Checkpoint

from ..made_up import made_up_detection
from ..saved.kinds import FOLDER, KINDS, facts
from ..tasks.test_run import TASK, prompt
from ..tiny import small_model, spelled, tiny, tokens, words
from .changes import EDITS, ODD, PLACES, edited, replaced
from .process import EXAMPLES, Outcome, counts, run_case

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and fork")
ITSELF = ("cfg.json", "tensors.safetensors")
TEXTS = [tokens(9), tokens(7, 1)]


def fuzz(few):
    """So many cases, the same in every run of the tests; by hand more, and others."""
    return settings(
        max_examples=EXAMPLES or few,
        deadline=None,
        database=None,
        derandomize=not EXAMPLES,
        report_multiple_bugs=bool(EXAMPLES),
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # smaller cases would cost more than they tell
    )


@pytest.fixture(scope="module", autouse=True)
def _counted():
    counts.clear()
    yield
    print(f"\n{dict(counts)}")


@pytest.fixture
def around(tmp_path_factory):
    """A folder with a neighbour, for one case at a time."""
    return tmp_path_factory.mktemp("fuzz")


def fresh(around: Path) -> Path:
    """An empty folder for a case, between others that may not change."""
    shutil.rmtree(around, ignore_errors=True)
    for name in ("before", "case", "z"):
        (around / name).mkdir(parents=True)
        (around / name / "canary").write_text("alive")
    (around / "case" / "canary").unlink()
    return around / "case"


def require_clear(outcome: Outcome, *words: str) -> None:
    assert outcome.kind in ("loaded", "error"), outcome
    assert outcome.kind == "loaded" or any(word in outcome.text for word in words), outcome


# --- results ---


def same_result(path, kind):
    cls, original = KINDS[kind][0], FOLDER / kind
    assert repr(cls.load(path)) == repr(cls.load(original))
    return "the same"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each kind as this version writes it."""
    folder = tmp_path_factory.mktemp("saved")
    for kind, (cls, _) in KINDS.items():
        cls.load(FOLDER / kind).save(folder / kind)
    return folder


NAMES = st.sampled_from(ITSELF)


@fuzz(25)
@given(st.sampled_from(sorted(KINDS)), NAMES, EDITS, st.sampled_from(["edit", "edit", "edit", "remove", "swap"]))
def test_changed_results(around, saved, kind, name, edits, way):
    path = fresh(around)
    shutil.copytree(saved / kind, path, dirs_exist_ok=True)
    file = path / name
    if way == "edit":
        file.write_bytes(edited(file.read_bytes(), edits))
    elif way == "remove":
        file.unlink()
    else:
        shutil.copy(saved / ("tuned" if kind != "tuned" else "detection") / name, file)
    require_clear(run_case(lambda: same_result(path, kind), around), str(path))


@fuzz(25)
@given(st.sampled_from(sorted(KINDS)), PLACES, ODD, st.booleans(), st.booleans())
def test_results_with_other_content_and_right_hashes(around, saved, kind, share, value, remove, old):
    path = fresh(around)
    shutil.copytree((FOLDER if old else saved) / kind, path, dirs_exist_ok=True)
    cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    if old:
        cfg = replaced(cfg, share, value, remove)
    else:
        cfg["fields"] = replaced(cfg["fields"], share, value, remove)
        cfg["sha256"] = _hashes(cfg, path / "tensors.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    require_clear(run_case(lambda: load_and_use(path, kind), around), str(path))


def load_and_use(path, kind):
    """What a result that loads is asked for is there too, or refused."""
    result = KINDS[kind][0].load(path)
    with contextlib.suppress(ValueError):
        facts(kind, result)
    return type(result)


@fuzz(10)
@given(st.sampled_from(sorted(KINDS)), EDITS)
def test_tensors_of_0_1_which_have_no_hash(around, kind, edits):
    path = fresh(around)
    shutil.copytree(FOLDER / kind, path, dirs_exist_ok=True)
    file = path / "tensors.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(edited(content[:header], edits) + content[header:])
    require_clear(run_case(lambda: type(KINDS[kind][0].load(path)), around), str(path))


# --- corpora ---

SIGNS = st.sampled_from("\0\r\n\t\"',\u202e\u2066\ufeff\u2028\x85\x1c\u0301אمกあ")
LETTERS = st.text(st.characters(codec="utf-8") | SIGNS, max_size=40)
TEXT = LETTERS | st.sampled_from(["x" * 200_000, '"', '""', "=1+1", "{{7*7}}", "__import__('os')", " ", "\ufffd"])
ENCODINGS = st.sampled_from(
    [*["utf-8"] * 4, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "gb18030"]
)
SUFFIXES = st.sampled_from(
    [".txt", ".jsonl", ".csv", ".tsv", ".json", ".TXT", ".txt.gz", ".jsonl.gz", ".parquet", ".txt.bz2", ".txt~", ""]
)
LANGUAGES = st.sampled_from(
    ["en", "fr", "zh", "iw", "und", "news.de", "dev", "x" * 60, "a b", "..", "DOCUMENT_IDS", "fr (1)", ".fr"]
)


def as_file(suffix, lines):
    """Rows in a format, mostly well-formed."""
    kind = suffix.removesuffix(".gz").lower()
    if kind in (".jsonl", ".json"):
        rows = [json.dumps({"text": line}, ensure_ascii=len(line) % 2 == 0) for line in lines]
        return "\n".join(rows) if kind == ".jsonl" else f"[{','.join(rows)}]"
    separator = {".csv": ",", ".tsv": "\t"}.get(kind)
    rows = [f"text{separator}document", *(f"{line}{separator}1" for line in lines)]
    return "\n".join(lines if separator is None else rows)


@fuzz(40)
@given(st.lists(st.tuples(LANGUAGES, SUFFIXES, st.lists(TEXT, max_size=4), ENCODINGS, EDITS | st.just([])), max_size=3))
def test_corpora(around, files):
    path = fresh(around)
    for name, suffix, lines, encoding, edits in files:
        content = edited(as_file(suffix, lines).encode(encoding, "replace"), edits)
        with contextlib.suppress(OSError):  # a name such as ".."
            (path / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)

    def load():
        corpus = mw.load_corpus(path)
        assert all(isinstance(text, str) and text.strip() for texts in corpus.values() for text in texts)
        assert len(corpus.to_frame()) == sum(map(len, corpus.values()))
        return corpus

    names = [f"{name}{suffix}" for name, suffix, *_ in files]
    require_clear(run_case(load, around), str(path), path.name, *names, *(repr(name) for name, *_ in files))


# --- neuron sets of other programs ---


class Canary:
    """Unpickled by anything that runs what it reads, it leaves a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.write_text, (self.place, "dead")


@fuzz(20)
@given(st.sampled_from(["released", "lape", "pickle"]), EDITS | st.just([]))
def test_sets_of_other_programs(around, kind, edits):
    path, space = fresh(around) / "set", made_up_detection().space
    if kind == "released":
        path.write_text("\n".join(["{0: {1, 2}, 1: set()}", "{0: [3]}", "{1: {4}}", "{}", "{0: {0}}"]))
    elif kind == "lape":
        torch.save([[torch.tensor([1, 2]), torch.tensor([3])]] * 2, path)
    else:
        path.write_bytes(pickle.dumps([Canary(around / "z" / "canary")], protocol=2))
    path.write_bytes(edited(path.read_bytes(), edits))
    load = mw.load_released if kind == "released" else mw.load_lape
    arguments = [] if kind == "released" else [["en", "fr"]]
    outcome = run_case(lambda: load(path, space, *arguments), around)
    require_clear(outcome, str(path), space.model)
    assert outcome.kind == "error" or kind != "pickle" or edits


# --- deltas and checkpoints ---


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model with a delta of it, and the checkpoint of a run that goes on."""
    folder, model = tmp_path_factory.mktemp("tuned"), tiny("llama", torch.float32)
    options = {"learning_rate": 1e-2, "steps": 2, "checkpoint_every": 1, "progress": False}
    neurons = mw.NeuronSet.from_list(mw.NeuronSpace.of(model), [(0, "q", 3), (1, "mlp", 5)])
    tuned = mw.tune(model, neurons, TEXTS, **options, checkpoint=folder / "run")
    tuned.delta.revert(model)
    tuned.delta.save(folder / "delta")
    return folder, model, lambda path: mw.tune(model, neurons, TEXTS, **options, checkpoint=path)


def changed_weights(model, action):
    """An error leaves every weight as it was."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        return action()
    except ValueError:
        assert all(map(torch.equal, before, model.parameters())), "weights differ after an error"
        raise


def change(path, name, edits, share, value, remove, rehash):
    """One file of a result in other bytes, or its fields with right hashes."""
    if not rehash:
        (path / name).write_bytes(edited((path / name).read_bytes(), edits))
        return
    cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    cfg["fields"] = replaced(cfg["fields"], share, value, remove)
    cfg["sha256"] = _hashes(cfg, path / "tensors.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")


@fuzz(20)
@given(NAMES, EDITS, PLACES, ODD, st.booleans(), st.booleans())
def test_deltas(around, tuned, name, edits, share, value, remove, rehash):
    path, (folder, model, _) = fresh(around), tuned
    shutil.copytree(folder / "delta", path, dirs_exist_ok=True)
    change(path, name, edits, share, value, remove, rehash)

    def apply():
        return changed_weights(model, lambda: mw.NeuronDelta.load(path).apply(model))

    require_clear(run_case(apply, around), str(path), model.cfg.model_name, "blocks.", "made-up", "delta")


@fuzz(15)
@given(NAMES, EDITS, PLACES, ODD, st.booleans(), st.booleans())
def test_checkpoints(around, tuned, name, edits, share, value, remove, rehash):
    path, (folder, model, resume) = fresh(around), tuned
    shutil.copytree(folder / "run", path, dirs_exist_ok=True)
    change(next(path.glob("step-*")), name, edits, share, value, remove, rehash)

    def go_on():
        return changed_weights(model, lambda: (resume(path), Checkpoint.load(next(path.glob("step-*"))))[0])

    require_clear(run_case(go_on, around, may_write="case"), str(path))


# --- rows of a task ---


@fuzz(20)
@given(EDITS | st.just([]), st.lists(st.tuples(st.integers(0, 2), PLACES, ODD, st.booleans()), max_size=2))
def test_rows_of_a_task(around, rows, edits, changes):
    path, model = fresh(around) / "rows.jsonl", spelled("llama")
    content = [json.loads(line) for line in rows.splitlines()]
    for number, share, value, remove in changes:
        content[number] = replaced(content[number], share, value, remove)
    path.write_bytes(edited("".join(json.dumps(row) + "\n" for row in content).encode(), edits))
    require_clear(run_case(lambda: ask(model, path), around, may_write="case"), str(path))


def ask(model, path):
    prompts = {"en": [prompt(5, 0, name="0"), prompt(6, 1, name="1"), prompt(4, 2, name="2")]}
    conditions = [Condition("original", "", None, None, ("en",))]
    return run_task(model, TASK, prompts, conditions, path, max_new_tokens=2, progress=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    ask(spelled("llama"), path)
    return path.read_text(encoding="utf-8")


# --- command lines ---

COMMANDS = ["detect", "effects", "ratio", "tune", "report", "demo", "bench", "experiment"]
EXPERIMENTS = ["language-ratio", "layer-sweep", "reasoning", "corpus", "overlap", "neuron-counts", "enhancement", "x"]
OPTIONS = ["--top", "--quorum", "--limit", "--languages", "--language", "--neurons", "--detection", "--dtype"]
OPTIONS += ["--tune", "--folds", "--controls", "--identifier", "--every", "--depths", "--vocabulary", "--checkpoint"]
OPTIONS += ["--seeds", "--rates", "--documents", "--data", "--without", "--sentences-per-passage", "--max-tokens"]
VALUES = ["0", "-1", "1", "0.5", "nan", "inf", "1e400", "", "en", "en,sw", "fr", ",", "case", "case/x", "/proc/self"]
VALUES += [
    "~",
    "~no/x",
    "x" * 300,
    "a\nb",
    "\ud800",
    "ไทย",
    "--",
    "$(touch z/canary)",
    "9" * 30,
    "true",
    "meta",
    "1.5",
    "0x1",
    "١",
    "1,2",
    "/dev/full",
    "case/en.txt",
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model") / "model", words()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    small_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@fuzz(12)
@given(
    st.sampled_from(COMMANDS),
    st.sampled_from(EXPERIMENTS),
    st.lists(st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)), max_size=3),
    st.sampled_from(["model", "", "case", "nowhere/x", "/nowhere", "x.gguf"]),
    st.sampled_from(
        ["out", "out/deep", "case/en.txt/x", "case", "/proc/x", "a" * 300, "out{a}", "ไทย", "\udcff", "z/x", " %#\n"]
    ),
)
def test_command_lines(around, model_folder, command, name, options, model, output):
    path = fresh(around)
    for language, letters in (("en", "abcd"), ("sw", "efgh")):
        lines = [" ".join(random.Random(i).choices(letters, k=9)) for i in range(24)]
        (path / f"{language}.txt").write_text("\n".join(lines))
    first = [command, name] if command == "experiment" else [command]
    model = str(model_folder) if model == "model" else model
    arguments = [*first, *(part for option in options for part in option), "--model", model]
    # a report's notebook needs a kernel, a process that is not to be started here
    arguments += ["--corpus", "case", "--output", output if command != "report" else "case"]

    def run():
        os.chdir(around)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "cp1252") for _ in range(2))
        pictures._without_browser.append("no browser here.")
        with pytest.raises(SystemExit) as end:
            main(arguments)
        sys.stderr.flush()
        text = sys.stderr.buffer.getvalue().decode("cp1252")
        assert end.value.code in (0, 2), (end.value.code, text)
        assert "Traceback" not in text, text
        assert "unexpected" not in text, text
        return end.value.code

    allowed = {
        "out": "out",
        "out/deep": "out",
        "out{a}": "out{a}",
        "ไทย": "ไทย",
        "\udcff": "\udcff",
        "z/x": "z/x",
        " %#\n": " %#\n",
    }.get(output)
    outcome = run_case(run, around, may_write=allowed)
    assert outcome.kind == "loaded", (arguments, outcome)
