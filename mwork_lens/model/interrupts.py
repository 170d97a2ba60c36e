"""Ctrl-C and SIGTERM while something runs that is not to be lost: never in the middle of a change, and saved first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 128
"""Plus the number of the signal is the exit code of a process that one ended."""


class Interrupts:
    """Within its ``with`` block, in the main thread: ``save`` runs before a signal does what it would have done.

    That is to call the handler that was there before, which stays there after the block, or else to end the process
    with the usual exit code, through all ``finally`` clauses. Signals that are ignored stay so.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save, self._held, self._waiting = save, 0, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block that no signal interrupts: one that comes takes effect at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if not self._held and self._waiting:
                number, self._waiting = self._waiting, 0
                self._receive(number, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number
            return
        self._save()
        handler = self._before[number]
        if handler is signal.SIG_DFL:
            raise SystemExit(STOPPED + number)
        handler(number, frame)
