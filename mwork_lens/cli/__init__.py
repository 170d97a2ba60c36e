"""The command line: ``mwork-lens demo | detect | merge | effects | ratio | tune | experiment | report ...``."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import mwork_lens as mw

from .. import __version__
from ..settings import TASK_EXPERIMENTS
from .commands import bench, demo, detect, effects, plan, ratio, report, tune
from .experiments import corpus, enhancement, language_ratio, layer_sweep, neuron_counts, overlap, task_command
from .merging import merge
from .options import add_command

TRACEBACK = "MWORK_LENS_TRACEBACK"
"""A variable of the environment; set, errors are shown with where they came from."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
experiment = typer.Typer(help="The paper's items, one named experiment each.", no_args_is_help=True)
app.add_typer(experiment, name="experiment")

_TASKS = [task_command(name, each.item) for name, each in TASK_EXPERIMENTS.items()]
for _command in (demo, detect, merge, effects, ratio, tune, report, bench, plan):
    add_command(app, _command, shared=_command not in (merge, tune, bench, plan))
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
    """Run the command line; whatever goes wrong ends in one clear line and exit code 2.

    Of several processes the first speaks, but for errors, of which the first to come is said.
    """
    errors, others = sys.stderr, _other_processes()
    if others and not others.is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end of the process)
    for stream in (sys.stdout, sys.stderr):
        # a character that the terminal or file does not have must not end the work
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mwork_lens").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}", file=sys.stderr)
    try:
        _run(arguments)
    except Exception as error:
        if _interrupted(error):
            sys.exit(130)
        if os.environ.get(TRACEBACK):
            raise
        if not others or others.is_first_to_say("error"):
            print(f"mwork-lens: {_in_one_line(error)}", file=errors)
        sys.exit(2)


def _other_processes() -> Any:
    """What knows of the others that torchrun has started; it imports torch, which one process can do without."""
    return mw.store.processes if "RANK" in os.environ else None


def _run(arguments: Sequence[str] | None) -> None:
    """Ends with what was printed on its way: a full disk is said here, and a reader that left (``| head``) is not."""
    printed = sys.stdout
    try:
        app(arguments)
    finally:
        if printed is not None:
            _flush(printed)


def _flush(printed: Any) -> None:
    try:
        printed.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), printed.fileno())  # or Python tries again at its end
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, f"What is printed cannot be written: {error.strerror}") from None


def _interrupted(error: BaseException | None) -> bool:
    """Whether it comes of Ctrl-C, which Python turns into a RuntimeError while a class is made."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _interrupted(error.__cause__))


def _in_one_line(error: Exception) -> str:
    """What a user should read of an error: its message, and its kind where that is not one that this package raises."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        places = [os.fsdecode(place) for place in (error.filename, error.filename2) if isinstance(place, str | bytes)]
        return ": ".join([*places[:1], error.strerror])
    if isinstance(error, KeyError) and error.args and " " in str(error.args[0]):
        return str(error.args[0])  # one of ours; others have just the key
    if isinstance(error, ValueError | OSError | ImportError) and not isinstance(error, UnicodeError):
        return text
    return f"{type(error).__name__}: {text} (unexpected; {TRACEBACK}=1 shows where it comes from)"
