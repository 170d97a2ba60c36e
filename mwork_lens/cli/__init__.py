"""The command line: ``mwork-lens demo | detect | effects | ratio | tune | experiment | report | bench``."""

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..settings import TASK_EXPERIMENTS
from .commands import bench, demo, detect, effects, ratio, report, tune
from .experiments import corpus, enhancement, language_ratio, layer_sweep, neuron_counts, overlap, task_command
from .options import add_command

LIBRARY_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ImportError, KeyError, OverflowError)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
experiment = typer.Typer(help="The paper's items, one named experiment each.", no_args_is_help=True)
app.add_typer(experiment, name="experiment")

_TASKS = [task_command(name, each.item) for name, each in TASK_EXPERIMENTS.items()]
for _command in (demo, detect, effects, ratio, tune, report, bench):
    add_command(app, _command)
for _command in (language_ratio, layer_sweep, *_TASKS, corpus, overlap, neuron_counts, enhancement):
    add_command(experiment, _command)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")


@app.callback()
def _app(version: Annotated[bool, _VERSION] = False) -> None:
    """How a multilingual language model works inside."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends in one clear line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mwork_lens").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}", file=sys.stderr)
    try:
        app(arguments)
    except LIBRARY_ERRORS as error:
        logging.getLogger("mwork_lens").debug("", exc_info=error)
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"mwork-lens: {message}", file=sys.stderr)
        sys.exit(2)
