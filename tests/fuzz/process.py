"""One case in a process of its own: with limits, a watch over what it runs, and a look at the folders around it."""

import contextlib
import hashlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = int(os.environ.get("MWORK_LENS_FUZZ", "0"))
"""How many cases of each kind are tried by hand; 0: the few of every test run."""
SECONDS, MEMORY = 300, 6 * 2**30
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_FORBIDDEN += ("socket.connect", "pickle.find_class")
CLEAR = (ValueError, FileNotFoundError, FileExistsError)
counts: Counter[str] = Counter()


@dataclass(frozen=True)
class Outcome:
    """``loaded``, ``error`` (a clear one), or what must not be, with a text."""

    kind: str
    text: str


def files_in(folder: Path) -> dict[str, str]:
    """Every file and folder, with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def run_case(action: Callable[[], Any], around: Path, *, may_write: str | None = None) -> Outcome:
    """What an action on things within ``around`` comes to; nothing there may change but the folder ``may_write``."""
    before, (reader, writer) = files_in(around), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a fork does not have: the case needs none
        process = os.fork()
    if not process:
        _end(action, around, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        text = _read(file, process)
    after = files_in(around)
    outcome = Outcome(*json.loads(text)) if text else Outcome("died", f"no answer within {SECONDS} s, or killed")
    names = {name for name, _ in after.items() ^ before.items()}
    if changed := sorted(name for name in names if not may_write or not f"{name}/".startswith(f"{may_write}/")):
        outcome = Outcome("changed files", f"{changed[:3]} after {outcome}")
    counts[outcome.kind] += 1
    return outcome


def _read(file: Any, process: int) -> bytes:
    text, end = b"", time.monotonic() + SECONDS
    while select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(file.fileno(), 65536)):
            break
        text += part
    else:
        text = b""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return text


def _end(action: Callable[[], Any], around: Path, writer: int) -> None:
    """The child: never returns."""
    outcome = Outcome("died", "")
    try:
        ran: list[str] = []
        with _limits(around, ran):
            outcome = _outcome(action)
        if ran:
            outcome = Outcome("ran code", f"{ran[:3]} before {outcome}")
    finally:
        text = outcome.text if len(outcome.text) < 30000 else f"{outcome.text[:5000]} … {outcome.text[-25000:]}"
        os.write(writer, json.dumps([outcome.kind, text]).encode())  # a pipe holds 64 kB
        os._exit(0)


@contextlib.contextmanager
def _limits(around: Path, ran: list[str]) -> Iterator[None]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    place = str(around)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        code = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
        if event == "pickle.find_class" and _by_numba():
            return
        if event in _FORBIDDEN or code.startswith(place):
            ran.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(watch)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _by_numba() -> bool:
    """Which keeps what it compiled in files of its own."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_globals["__name__"].startswith("numba"):
        frame = frame.f_back
    return frame is not None


def _outcome(action: Callable[[], Any]) -> Outcome:
    try:
        return Outcome("loaded", repr(action())[:200])
    except CLEAR as error:
        return Outcome("error", str(error))
    except BaseException as error:
        return Outcome(type(error).__name__, str(error))
