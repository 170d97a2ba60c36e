"""Options from dataclasses: names, defaults, readers, help from docstrings, and that each is declared once or twice."""

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import mwork_lens
from mwork_lens.cli import app
from mwork_lens.cli.options import add_command
from mwork_lens.settings import NO_OPTION, DetectionSettings, Names, Positive, Seeds


@dataclass(frozen=True)
class Small:
    """Settings of every kind."""

    languages: Annotated[Names, "--tags"] = ("en", "fr")
    """Tags, and more
    of them."""
    seeds: Seeds = (0,)
    """Draws."""
    top: float = DetectionSettings.top
    hidden: Annotated[int, NO_OPTION] = 3
    """Of Python alone."""


@dataclass(frozen=True)
class Larger(Small):
    """Settings that inherit some."""

    number: Positive = 5
    """How many."""
    loud: bool = False
    """Whether to shout."""


def run(*arguments, **defaults):
    """What the command is given, or the end of what is printed."""
    given = []

    def command(config: Annotated[Larger, defaults]):
        given.append(config)
        return given

    single = typer.Typer()
    add_command(single, command)
    result = CliRunner().invoke(single, list(arguments), env={"COLUMNS": "200"})
    if isinstance(result.exception, ValueError):
        raise result.exception
    return given[0] if given else result.output


def test_fields_become_options_and_options_fields():
    assert run() == Larger()
    config = run("--tags", "zh, ru,zh", "--seeds", "3", "--top", "0.1", "--number", "7", "--loud")
    assert config == Larger(languages=["zh", "ru"], seeds=(0, 1, 2), top=0.1, number=7, loud=True)
    assert run("--number", "2", top=0.5, hidden=4) == Larger(top=0.5, hidden=4, number=2)
    with pytest.raises(ValueError, match="--number 0: it must be at least 1"):
        run("--number", "0")


def test_docstrings_are_the_help():
    text = run("--help")
    assert "Tags, and more of them." in text
    assert "Active: the top fraction of each layer and site." in text
    assert "hidden" not in text
    assert "en,fr" in text


def commands(command):
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)


def test_every_option_has_help():
    for command in commands(typer.main.get_command(app)):
        assert all(option.help for option in command.params), command.name


def test_no_option_is_declared_more_than_twice():
    """A field whose default is another group's is the same setting, not a declaration of its own."""
    package = Path(mwork_lens.__file__).parent
    files = [package / "settings.py", *(package / "cli").glob("*.py")]
    kinds = (node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef))
    declared = Counter()
    settings = (kind for kind in kinds if kind.name != "TaskExperiment")
    for field in (field for kind in settings for field in kind.body if isinstance(field, ast.AnnAssign)):
        marks = [node.value for node in ast.walk(field.annotation) if isinstance(node, ast.Constant)]
        names = [mark for mark in marks if str(mark).startswith("--")] or [f"--{field.target.id.replace('_', '-')}"]
        hidden = any(isinstance(node, ast.Name) and node.id == "NO_OPTION" for node in ast.walk(field.annotation))
        declared.update(() if hidden or isinstance(field.value, ast.Attribute) else names)
    options = {name for command in commands(typer.main.get_command(app)) for o in command.params for name in o.opts}
    assert len(options) > 50
    assert not {name: number for name, number in declared.items() if name in options and number > 2}
