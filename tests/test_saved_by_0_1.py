"""Results and folders that version 0.1 wrote, out of ``tests/analyses.py``, are loaded and resumed."""

import copy
import json
import math
import re
import shutil
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mwork_lens as mw
from mwork_lens.cli import main
from mwork_lens.report import pictures

from . import analyses
from .compare_floats import worded_as_before
from .saved.kinds import FOLDER, KINDS, facts

EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
TASK_OPTIONS = {
    "data": "questions",
    "detection": "detection",
    "max_new_tokens": 3,
    "quorum": 0.5,
    "limit": 2,
    "arms": ("random", "specific"),
    "wording": "paper",
    "shown": False,
}
"""Of the folder ``tasks``."""
SHARED = ["--model", "model", "--corpus", "text", "--top", "0.3", "--quorum", "0.5"]
COMMANDS = {
    "effects": ["effects", *SHARED, "--folds", "2", "--controls", "fr", "--stages", "fr,ru"],
    "enhancement-run": [
        *["experiment", "enhancement", *SHARED, "--tune", "fr", "--documents", "6", "--arms", "specific,random"],
        *["--seeds", "1", "--paper-rate", "0", "--rates", "1e-3,1e-2", "--batch-size", "3"],
        *["--detection-passages", "8", "--development-passages", "4", "--evaluation-passages", "6"],
    ],
}
"""Folders that a command resumes, run in the folder above them."""


INFERRED = re.compile(
    r"(.*_)?(low|high|p|p_adjusted|ratio|documents|claim|verdict|hypothesis|findings?)|(first|last)_loss|loss_\w+"
)
"""What follows from the numbers that were saved, by statistics that may become better, and which loss of a run is in a
table: it is not compared."""


NEW = re.compile(r"(evaluation_|development_)?(passages|documents)|tokens|beyond|neurons|role")
"""Columns that tables have now and did not have then."""


def measured(value):
    """What was measured, without what is inferred from it; of a cell of a table of tasks its score."""
    if isinstance(value, dict):
        return {key: measured(item) for key, item in value.items() if not INFERRED.fullmatch(key)}
    return value


def measured_table(text):
    """The same of a table, from its text."""
    text = re.sub(r"( \(n \d+)/\d+\)", r"\1)", text)  # the documents of its questions
    table = pd.read_csv(StringIO(text)).rename(columns=lambda name: name.split(" / ")[-1])
    columns = [name for name in table if not INFERRED.fullmatch(name) and name != "q"]
    return table[columns].map(
        lambda cell: cell.split()[0].rstrip("*") if isinstance(cell, str) and " n " in cell else cell
    )


def require_same(found, expected, where="", stored=False):
    """Whole numbers and texts exactly; floats that were stored to 1e-12, those that follow from them to 1e-9."""
    if isinstance(expected, dict | list):
        stored = stored or (isinstance(expected, dict) and "shape" in expected)
        assert type(found) is type(expected), where
        if isinstance(expected, dict):
            found = {key: value for key, value in found.items() if key in expected or not NEW.fullmatch(key)}
        assert len(found) == len(expected), where
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            require_same(found[key], expected[key], f"{where}/{key}", stored)
    elif isinstance(expected, float) and not math.isnan(expected):
        limits = {"rel": 1e-12, "abs": 0} if stored else {"rel": 1e-9, "abs": 1e-12}
        assert found == pytest.approx(expected, **limits), where
    else:
        found = worded_as_before(found) if isinstance(found, str) else found
        assert found == expected or (found != found and expected != expected), where


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_loaded(kind):
    expected = EXPECTED[kind]
    if kind == "detection":  # its table counted passages under another name
        frame = expected["frame"]
        expected = {**expected, "frame": {i: {**row, "passages": row["documents"]} for i, row in frame.items()}}
    require_same(measured(facts(kind, KINDS[kind][0].load(FOLDER / kind))), measured(expected))


def other_weights(model):
    """A model of the same name: with it, what is computed again becomes something else."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.unembed.W_U.mul_(-1)
        other.embed.W_E.mul_(0.7)
    return other


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A copy of everything saved, in which commands run; no pictures are drawn."""
    shutil.copytree(FOLDER, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    monkeypatch.setattr(pictures, "_without_browser", ["no pictures here."])
    return tmp_path / "saved"


def require_same_folder(folder: Path, before: Path):
    """No piece was made again, and the tables say the same."""
    for old in (path for path in before.rglob("*") if path.is_file()):
        new = folder / old.relative_to(before)
        if old.suffix == ".csv":
            texts = worded_as_before(new.read_text(encoding="utf-8")), old.read_text(encoding="utf-8")
            table, expected = map(measured_table, texts)
            table = table.loc[:, [name in expected or not NEW.fullmatch(name) for name in table]]
            pd.testing.assert_frame_equal(table, expected, rtol=1e-9, atol=1e-12)
        else:
            assert new.read_bytes() == old.read_bytes(), new
    names = {path.relative_to(before) for path in before.rglob("*.safetensors")}
    assert {path.relative_to(folder) for path in folder.rglob("*.safetensors")} == names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"enhancement-run"}))
def test_commands_resume_their_folders(place, name):
    weights = load_file("model/model.safetensors")
    save_file({key: 1.3 * tensor for key, tensor in weights.items()}, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit) as stopped:
        main([*COMMANDS[name], "--output", name])
    assert stopped.value.code == 0
    require_same_folder(place / name, FOLDER / name)


@pytest.mark.filterwarnings("ignore")
def test_an_enhancement_whose_documents_were_divided_otherwise_is_refused(place, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*COMMANDS["enhancement-run"], "--output", "enhancement-run"])
    assert stopped.value.code == 2
    assert "holds a run with corpora.detection.hash = " in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The tokenizer does not know part")
def test_tasks_resume_their_folder(place):
    options = mw.TaskOptions(**TASK_OPTIONS)
    with pytest.warns(UserWarning, match="tasks.* does not say with which weights .* they are unknown"):
        result, _ = mw.run_task_experiment(other_weights(analyses.reader()), "reasoning", "tasks", options)
    require_same_folder(place / "tasks", FOLDER / "tasks")
    lines = Path("tasks/rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [dict(row) for row in result.rows] == [json.loads(line) for line in lines]


def test_tuning_resumes_its_checkpoint(place):
    model = copy.deepcopy(analyses.reader())
    with pytest.warns(UserWarning, match="step-.* they are unknown"):
        tuned = analyses.tune(model, checkpoint="checkpoint")
    require_same(facts("tuned", tuned), EXPECTED["checkpoint"])
    assert [path.name for path in Path("checkpoint").iterdir()] == [p.name for p in (FOLDER / "checkpoint").iterdir()]


def test_labels_of_tokens_by_older_rules_are_identified_again(place, monkeypatch):
    monkeypatch.setenv("MWORK_LENS_CACHE", "cache")
    folder = place / "cache" / "token-languages"
    (old,) = folder.iterdir()
    spoilt = torch.zeros_like(load_file(old / "tensors.safetensors")["labels"])
    save_file({"labels": spoilt}, old / "tensors.safetensors")

    def labels():
        return mw.label_vocabulary(analyses.reader(), ["en", "ru"], identifier="script").of(range(50))

    assert labels() == EXPECTED["token_languages"]
    (new,) = set(folder.iterdir()) - {old}
    shutil.copytree(old, new, dirs_exist_ok=True)
    # the spoilt labels show that today's are read from where they are kept
    assert len(set(labels())) == 1
