import json

import pytest

from mwork_lens.cli import main
from mwork_lens.neurons import NeuronSet, NeuronSpace

from .tiny import tiny


def run(capsys, *arguments):
    """Exit code and what stands on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code, capsys.readouterr().err.strip()


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
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
    code, error = run(capsys, *arguments, "--output", str(tmp_path / "out"))
    assert code == 2
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_bad_files_are_named(capsys, folder):
    (folder / "fr.txt").write_text("")
    code, error = run(capsys, "demo", "--corpus", str(folder), "--languages", "en,fr", "--output", str(folder / "o"))
    assert code == 2
    assert "fr.txt is empty" in error
    (folder / "fr.txt").unlink()
    (folder / "fr.jsonl").write_text(json.dumps({"text": "Bonjour."}) + "\n" + json.dumps({"text": " "}) + "\n")
    code, error = run(capsys, "demo", "--corpus", str(folder), "--languages", "en,fr", "--output", str(folder / "o"))
    assert code == 2
    assert "Document 1 of 'fr' is empty" in error


def test_output_is_never_overwritten(capsys, folder):
    code, error = run(capsys, "demo", "--output", str(folder))
    assert code == 2
    assert str(folder) in error


@pytest.mark.demo
def test_a_set_of_other_widths_is_refused(capsys, tmp_path):
    NeuronSet.empty(NeuronSpace.of(tiny("llama"))).save(tmp_path / "set")
    arguments = ["--neurons", str(tmp_path / "set"), "--languages", "en", "--limit", "20"]
    code, error = run(capsys, "effects", *arguments, "--output", str(tmp_path / "out"))
    assert code == 2
    assert "do not fit gemma-3-270m" in error.splitlines()[-1]
