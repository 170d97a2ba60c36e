import io
import itertools
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import mwork_lens as mw
from mwork_lens.cli import _interrupted, main
from mwork_lens.model import forward
from mwork_lens.neurons import NeuronSet, NeuronSpace
from mwork_lens.store import digest
from mwork_lens.tuning.result import Tuned

from ..tiny import small_model, tiny, words
from . import run, write_model_and_text


@pytest.fixture
def folder(tmp_path):
    for language, text in (("en", "A short line.\n" * 3), ("fr", "Une ligne courte.\n" * 3)):
        (tmp_path / f"{language}.txt").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--languages", "en,klingonish"], "'klingonish'"),
        (["demo", "--languages", "en,sw"], "'sw'"),
        (["demo", "--corpus", "/nowhere/at/all"], "/nowhere/at/all"),
        (["demo", "--top", "1.5"], "top=1.5"),
        (["detect", "--top", "0"], "top=0.0"),
        (["demo", "--model", "/nowhere/model"], "/nowhere/model"),
        (["demo", "--limit", "0"], "limit=0"),
        (["ratio", "--identifier", "langid"], "'langid'"),
        (["ratio", "--identifier", "script", "--languages", "en,fr"], "'en' and 'fr' are both written in Latn"),
        (["experiment", "language-ratio", "--every", "0"], "--every 0"),
        (["effects", "--neurons", "/nowhere/set"], "/nowhere/set"),
        (["tune", "--language", "sw"], "'sw'"),
        (["tune", "--language", "fr", "--learning-rate", "-1"], "learning_rate=-1.0"),
        (["tune", "--language", "fr", "--languages", "fr", "--model", "/nowhere/model"], "/nowhere/model"),
        (["experiment", "enhancement", "--tune", "sw"], "no 'sw'"),
        (["experiment", "enhancement", "--tune", "fr"], "too few for 40 of detection"),
        (["experiment", "enhancement", "--tune", "fr", "--arms", "best"], "'best'"),
        (["experiment", "enhancement", "--tune", "fr", "--rates", "1e-4;1e-3"], "--rates 1e-4;1e-3"),
        (["effects", "--neurons", "/nowhere/set", "--controls", "fr"], "--neurons goes without"),
        (["effects", "--detection", "/nowhere/run"], "/nowhere/run"),
        (["effects", "--folds", "1"], "--folds 1"),
        (["experiment", "layer-sweep", "--depths", "0,2"], "--depths 0,2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
    code, error = run(capsys, *arguments, "--output", str(tmp_path / "out"))
    assert code == 2
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--limit", "few"], "--limit"),
        (["demo", "--corpora", "x"], "--corpora"),
        (["tune"], "--language"),
        (["experiment", "nothing"], "nothing"),
    ],
)
def test_options_that_do_not_parse_are_named(capsys, arguments, message):
    code, error = run(capsys, *arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_the_command_line_answers_without_importing_torch():
    code = "import sys; from mwork_lens.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bad_files_are_named(capsys, folder):
    (folder / "fr.txt").write_text("")
    code, error = run(capsys, "demo", "--corpus", str(folder), "--languages", "en,fr", "--output", str(folder / "o"))
    assert code == 2
    assert "fr.txt is empty" in error
    (folder / "fr.txt").unlink()
    (folder / "fr.jsonl").write_text(json.dumps({"text": "Bonjour."}) + "\n" + json.dumps({"text": " "}) + "\n")
    code, error = run(capsys, "demo", "--corpus", str(folder), "--languages", "en,fr", "--output", str(folder / "o"))
    assert code == 2
    assert "fr.jsonl cannot be read, line 2: its text is empty" in error


def test_output_is_never_overwritten(capsys, folder):
    code, error = run(capsys, "demo", "--output", str(folder))
    assert code == 2
    assert str(folder) in error


@pytest.fixture
def model_and_text(tmp_path):
    return write_model_and_text(tmp_path)


def test_a_set_of_other_widths_is_refused(capsys, tmp_path, model_and_text):
    model, text = map(str, model_and_text)
    NeuronSet.empty(NeuronSpace.of(tiny("llama"))).save(tmp_path / "set")
    arguments = ["--model", model, "--corpus", text, "--neurons", str(tmp_path / "set")]
    code, error = run(capsys, "effects", *arguments, "--output", str(tmp_path / "out"))
    assert code == 2
    assert "do not fit model" in error.splitlines()[-1]


def test_sets_of_one_name_in_two_folders_are_both_measured(capsys, tmp_path, model_and_text):
    model, text = map(str, model_and_text)
    hooked, files = mw.load_model(model), [tmp_path / part / "fr" for part in "ab"]
    for file, site in zip(files, ("q", "mlp"), strict=True):
        mask = torch.ones(hooked.cfg.n_layers, NeuronSpace.of(hooked).widths[site], dtype=torch.bool)
        NeuronSet(NeuronSpace.of(hooked), {site: mask}).save(file)
    arguments = [
        "effects",
        "--model",
        model,
        "--corpus",
        text,
        "--output",
        str(tmp_path / "out"),
        "--neurons",
        str(files[0]),
    ]
    assert "is given twice" in run(capsys, *arguments, "--neurons", str(files[0]))[1]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--neurons", str(files[1])])
    assert stopped.value.code == 0
    assert [*mw.EffectMatrix.load(tmp_path / "out" / "effects").rows] == [*map(str, files)]


def test_tune_writes_what_changed_and_a_model_that_transformers_loads(capsys, tmp_path, model_and_text):
    model, text = map(str, model_and_text)
    out = tmp_path / "tuned"
    arguments = ["tune", "--language", "sw", "--model", model, "--corpus", text, "--output", str(out)]
    options = ["--learning-rate", "0.01", "--batch-size", "8", "--quorum", "0.5", "--export"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *options])
    assert stopped.value.code == 0
    assert "selected weights changed" in capsys.readouterr().out
    tuned = Tuned.load(out / "tuned")
    assert len(tuned.steps) == 3
    assert tuned.held_out[3] < tuned.held_out[0]
    names = {path.name for path in out.iterdir()}
    assert {"neurons", "delta", "losses.csv", "changes.csv", "losses.html", "model"} <= names
    exported = AutoModelForCausalLM.from_pretrained(out / "model")
    moved = [n for n, p in small_model().state_dict().items() if not torch.equal(p, exported.state_dict()[n])]
    assert moved
    assert not any("embed" in name or "norm" in name or "o_proj" in name for name in moved)


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_looked_for(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"settings')
    commands = [["detect"], ["effects"], ["report"], ["experiment", "reasoning"], ["experiment", "overlap"]]
    commands += [["experiment", "enhancement", "--tune", "fr"], ["experiment", "corpus"]]
    for command in commands:
        for name in ("file/out", "file", "mine", "run"):
            output = str(tmp_path / name)
            code, error = run(capsys, *command, "--model", "/nowhere/model", "--output", output)
            assert code == 2
            assert error.count("\n") == 0
            assert output in error, (command, name)
        code, error = run(capsys, *command, "--model", "/nowhere/model", "--output", "~nobody-of-that-name/x")
        assert code == 2
        assert "'~nobody-of-that-name/x'" in error
        code, error = run(capsys, *command, "--model", "/nowhere/model", "--output", str(tmp_path / "new" / "out"))
        assert code == 2
        assert {path.name for path in (tmp_path / "new").rglob("*")} <= {"out", "settings.json"}
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "notes", "run", "settings.json"]


def test_unexpected_errors_are_one_line_too(capsys, monkeypatch, model_and_text):
    model, text = model_and_text
    (model / "tokenizer.json").write_text('{"a": 1}')
    arguments = ["detect", "--model", str(model), "--corpus", str(text), "--output", str(text / "out")]
    code, error = run(capsys, *arguments)
    assert code == 2
    assert error.splitlines()[-1].startswith("mwork-lens: ")
    assert "Traceback" not in error
    monkeypatch.setenv("MWORK_LENS_TRACEBACK", "1")
    with pytest.raises(Exception, match=r"added_tokens|tokenizer"):
        main(arguments)


def test_a_terminal_without_the_letters_of_a_path_or_table(tmp_path, monkeypatch, model_and_text):
    model, text = map(str, model_and_text)
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/browser")
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    for name in ("ไทย−", os.fsdecode(b"\xff")):
        arguments = ["detect", "--model", model, "--corpus", text, "--quorum", "0.5", "--output", str(tmp_path / name)]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert (tmp_path / name / "counts.html").is_file()
    out.flush()
    assert rb"\u0e44\u0e17\u0e22\u2212" in out.buffer.getvalue()


def test_directories_named_after_the_command_are_numbered(tmp_path, monkeypatch, model_and_text):
    model, text = map(str, model_and_text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/browser")
    (tmp_path / "mwork-lens-detection").symlink_to("nowhere")
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["detect", "--model", model, "--corpus", text, "--quorum", "0.5"])
    with pytest.raises(SystemExit):
        main(["detect", "--model", "/nowhere/model", "--corpus", text])
    names = {path.name for path in tmp_path.glob("mwork-lens-*")}
    assert names == {f"mwork-lens-detection{number}" for number in ("", "-2", "-3")}


def test_a_stopped_detection_goes_on_in_its_folder(capsys, tmp_path, monkeypatch, model_and_text):
    model, text = map(str, model_and_text)
    options = ["detect", "--model", model, "--corpus", text, "--output"]
    real, batches = forward.run_blocks, itertools.count(1)

    def stop(model, tokens, **settings):
        if len(tokens) == 24 and next(batches) == 2:  # all texts of the second language
            raise ValueError("stopped")
        return real(model, tokens, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(forward, "run_blocks", stop)
        assert run(capsys, *options, str(tmp_path / "run"))[0] == 2
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {"settings.json", "detection.checkpoint"}
    code, error = run(capsys, *options, str(tmp_path / "run"), "--quorum", "0.5")
    assert (code, error.splitlines()[-1].endswith("another directory.")) == (2, True)
    assert "quorum = 0.9, not 0.5" in error
    for name in ("run", "whole"):
        assert run(capsys, *options, str(tmp_path / name))[0] == 0
    files = [{path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in ("run", "whole")]
    assert files[0] == files[1]
    detections = [digest(mw.Detection.load(tmp_path / name / "detection")) for name in ("run", "whole")]
    assert detections[0] == detections[1]


@pytest.mark.filterwarnings("ignore:Of these documents detection has seen")
def test_finished_commands_compute_nothing_again(capsys, tmp_path, monkeypatch, model_and_text):
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/browser")
    model, text = map(str, model_and_text)
    source = ["--model", model, "--corpus", text]
    assert run(capsys, "detect", *source, "--quorum", "0.5", "--output", str(tmp_path / "run"))[0] == 0
    neurons = ["--neurons", str(tmp_path / "run" / "sw")]
    commands = {
        "effects": ["effects", *source, *neurons],
        "ratio": ["ratio", *source, "--limit", "2"],
        "tuned": ["tune", *source, *neurons, "--language", "sw", "--batch-size", "8", "--export"],
    }
    for name, arguments in commands.items():
        folder, seen = tmp_path / name, []
        for _ in range(2):
            code, error = run(capsys, *arguments, "--output", str(folder))
            assert code == 0, error
            files = {path.relative_to(folder) for path in folder.rglob("*")}
            seen.append(
                (files, (folder / name / "tensors.safetensors").read_bytes(), (folder / name).stat().st_ctime_ns)
            )
        assert seen[0][:2] == seen[1][:2]
        assert name == "tuned" or seen[0] == seen[1]  # the same directory
        assert not [path for path in seen[0][0] if "checkpoint" in path.name]


def test_effects_are_measured_on_what_detection_has_kept_aside(capsys, tmp_path, model_and_text):
    model, text = map(str, model_and_text)
    options = ["--model", model, "--corpus", text, "--quorum", "0.5"]
    for name, more in (("run", ["--held-out", "0.25"]), ("all", [])):
        with pytest.raises(SystemExit) as stopped:
            main(["detect", *options, *more, "--output", str(tmp_path / name)])
        assert stopped.value.code == 0
    with pytest.raises(SystemExit) as stopped:
        main(["effects", *options, "--detection", str(tmp_path / "run"), "--output", str(tmp_path / "effects")])
    assert stopped.value.code == 0
    said = "Detection has seen none of the documents (6 passages of 6 documents per language)."
    assert said in capsys.readouterr().out.splitlines()
    table = pd.read_csv(tmp_path / "effects" / "documents.csv", index_col="read")
    assert table[["documents", "seen", "unseen"]].to_numpy().tolist() == [[6, 0, 6]] * 2
    arguments = ["effects", *options, "--detection", str(tmp_path / "all"), "--overlap", "refuse"]
    code, error = run(capsys, *arguments, "--output", str(tmp_path / "same"))
    assert code == 2
    assert "detection has seen 100 % in this language (en 24 of 24, sw 24 of 24)" in error.splitlines()[-1]


@pytest.mark.filterwarnings("ignore:.* has only .* passages", "ignore:.* repeat earlier ones")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_what_is_printed_at_the_end_cannot_be_written(folder, capsys, monkeypatch):
    output, model = folder / "out", folder / "model"
    words().save_pretrained(model)
    small_model().save_pretrained(model)
    arguments = ["experiment", "corpus", "--corpus", str(folder), "--model", str(model), "--output", str(output)]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, error = run(capsys, *arguments)
    assert code == 2
    assert error.endswith("mwork-lens: What is printed cannot be written: No space left on device")
    assert (output / "corpus.csv").is_file()


def test_a_reader_that_left_is_no_error(folder, capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run(capsys, "--version") == (0, "")


def test_an_interruption_that_python_turned_into_another_error():
    error = RuntimeError("Error calling __set_name__")
    assert not _interrupted(error)
    error.__cause__ = KeyboardInterrupt()
    assert _interrupted(error)
