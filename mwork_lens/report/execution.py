"""A notebook executed with parameters: in this interpreter, in a process that has limits and ends with the call."""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..store import atomic_file, user_path
from ..store.processes import is_first
from .helpers import helper_environment

SECONDS_TO_START, SECONDS_PER_CELL = 60, 900
PACKAGES = ("papermill", "nbconvert", "ipykernel")
"""Of the extra ``report``."""


def require_extra() -> None:
    """Refuse, as an ImportError, where notebooks cannot be executed or shown."""
    absent = ", ".join(name for name in PACKAGES if find_spec(name) is None)
    if absent:
        raise ImportError(f"Reports need the extra 'report' ({absent} missing): pip install 'mwork_lens[report]'.")


def read_notebook(path: str | Path | None) -> Any:
    """The notebook of a file (None: the package's own report).

    An ImportError without the extra ``report``, a FileNotFoundError for a file that is not there, a ValueError for one
    that is not a notebook.
    """
    require_extra()
    import nbformat

    path = Path(__file__).with_name("report.ipynb") if path is None else user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no notebook {str(path)!r}.")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook, relax_add_props=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, nbformat.ValidationError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is not a notebook: {reason}") from error
    return notebook


def execute(
    notebook: str | Path | None,
    path: str | Path,
    parameters: Mapping[str, Any],
    *,
    timeout: int = SECONDS_PER_CELL,
    progress: bool = True,
) -> Path:
    """Execute a notebook (None: the package's own report) with parameters, and write it with its outputs to ``path``.

    Whatever kernels are installed, it runs in this interpreter, in a process that ends with this call, together with
    all that it has started. Raises what :func:`read_notebook` raises, and a ValueError for a cell that fails, takes
    longer than ``timeout`` seconds or ends the process: the notebook up to there is at ``path``. Of several processes
    the first does it.
    """
    content, path = read_notebook(notebook), user_path(path)
    if not is_first():
        return path
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    name, problem = notebook or "The report", ""
    with tempfile.TemporaryFile() as errors, _kernels(errors) as kernel, atomic_file(path) as building:
        try:
            _run(content, building, parameters, kernel, execution_timeout=timeout, progress_bar=progress)
        except papermill.PapermillExecutionError as error:
            problem = f"cell [{error.exec_count}] raised {error.ename}: {error.evalue}".rstrip(".")
        except CellTimeoutError:
            problem = f"a cell did not end within {timeout} seconds"
        except DeadKernelError:
            problem = f"its process ended within a cell{_last_line(errors)}"
        except RuntimeError as error:
            raise ValueError(f"{name}: its process did not start: {error}{_last_line(errors)}.") from error
    if problem:
        raise ValueError(f"{name}: {problem}. What ran before is in {path}.")
    return path


def _run(content: Any, path: Path, parameters: Mapping[str, Any], kernel: Any, **options: Any) -> None:
    import papermill

    with _silent(logging.getLogger("papermill")):
        papermill.execute_notebook(
            content,
            str(path).replace("{", "{{").replace("}", "}}"),  # between braces it fills in parameters
            dict(parameters),
            kernel_name="python3",
            language="python",
            kernel_manager_class=kernel,
            start_timeout=SECONDS_TO_START,
            log_output=False,
            extra_arguments=["--log-level=ERROR"],  # or the kernel warns that it listens on this machine
            **options,
        )


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _last_line(file: Any) -> str:
    """The last that a process wrote, in brackets; nothing if it wrote nothing."""
    file.seek(0)
    lines = file.read().decode(errors="replace").split("\n")
    return next((f" (the last that it wrote: {line.strip()})" for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _kernels(errors: Any) -> Iterator[Any]:
    """What manages kernels of this interpreter, whichever one is installed under the name of Python, in this block."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    started: list[Any] = []

    class KernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> Any:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

        async def start_kernel(self, **given: Any) -> None:
            await super().start_kernel(**{**given, **options})
            started.append(getattr(self.provisioner, "process", None))

    try:
        with helper_environment() as environment:
            # figures as data, which the page draws with its one copy of plotly.js
            options = {"env": {**environment, "PLOTLY_RENDERER": "plotly_mimetype"}, "stderr": errors}
            yield KernelManager
    finally:
        for process in filter(None, started):
            process.kill()
            process.wait()
