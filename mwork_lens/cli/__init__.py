"""The command line: ``mwork-lens demo | detect | effects | ratio | tune | experiment | report | bench``."""

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from .analyses import corpus, neuron_counts, overlap
from .bench import bench
from .demo import demo
from .detect import detect
from .effects import effects, layer_sweep
from .enhancement import enhancement
from .groups import ungrouped
from .ratio import language_ratio, ratio
from .report import report
from .tasks import TASK_COMMANDS, task_command
from .tune import tune

LIBRARY_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ImportError, KeyError)

app = typer.Typer(
    help="How a multilingual language model works inside.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
experiment = typer.Typer(help="The paper's items, one named experiment each.", no_args_is_help=True)
app.add_typer(experiment, name="experiment")

for _command in (demo, detect, effects, ratio, tune, report, bench):
    app.command()(ungrouped(_command))
for _command in (
    language_ratio,
    layer_sweep,
    *map(task_command, TASK_COMMANDS),
    corpus,
    overlap,
    neuron_counts,
    enhancement,
):
    experiment.command()(ungrouped(_command))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends in one clear line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mwork_lens").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    try:
        app(arguments)
    except LIBRARY_ERRORS as error:
        logging.getLogger("mwork_lens").debug("", exc_info=error)
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"mwork-lens: {message}", file=sys.stderr)
        sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"Warning: {message}", file=sys.stderr)
