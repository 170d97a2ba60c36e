"""The README's Python runs, and its commands have the options that it names."""

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest
import typer

import mwork_lens as mw
from mwork_lens.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PASSAGES, CHARACTERS = 4, 80
"""A language, and of each passage: all of the text would take too long here."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("mwork-lens")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_readme_has_its_options(words):
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="mwork-lens")
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.parse_args(context, words)


def cut(corpus: mw.Corpus) -> mw.Corpus:
    few = corpus.limit(PASSAGES)
    texts = {language: tuple(str(text)[:CHARACTERS] for text in few[language]) for language in few}
    return replace(few, texts=texts)


@pytest.mark.demo
@pytest.mark.filterwarnings("ignore")  # so little text is warned of
def test_every_python_block_of_the_readme_runs(tmp_path, monkeypatch, shared_demo):
    """In order, in one namespace, a statement at a time; a corpus is cut as soon as it is there."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        for statement in ast.parse(block).body:
            exec(compile(ast.Module([statement], []), "README.md", "exec"), namespace)
            for name, value in namespace.items():
                if isinstance(value, mw.Corpus) and len(value["en"]) > PASSAGES:
                    namespace[name] = cut(value)
