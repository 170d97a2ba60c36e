"""A pass over a plan's batches that goes on where it was stopped: what they add up to is kept in a folder."""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ..store import as_json, output_directory, require_same, user_path, versions, write_text
from .architecture import HookedModel, device_of
from .fingerprint import require_same_model
from .forward import Plan
from .interrupts import Interrupts
from .reducers import Reducer

SECONDS, USUAL = "MWORK_LENS_CHECKPOINT_SECONDS", 30.0
"""A variable of the environment: the longest time between two writes; 0 writes after every batch."""
SHARE = 0.01
"""Of the time, which writing takes at most: where one write takes longer, the next comes later."""
RECORD = "pass.json"
"""What decides the numbers: a folder with this file holds the checkpoint of a pass."""
_PART = re.compile(r"(\d{4,})-(\d+)")
"""Number of a reducer, and of the batches that are in it."""
_LEFT = re.compile(rf"\.({_PART.pattern}|{re.escape(RECORD)})\..*")
"""What a process leaves that is killed while it writes one."""
Part = TypeVar("Part", bound=Reducer)
logger = logging.getLogger("mwork_lens")


class Tally(Generic[Part]):
    """Reducers by name, and how far they are."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)
        self._folder: Path | None = None
        self._interrupts = Interrupts(self._save)
        self._unwritten: set[str] = set()
        self._changing = ""
        self._due, self._written = USUAL, 0.0
        self._full = False

    def left(self, plan: Plan, name: str | None = None) -> Plan:
        """The batches that are not in the reducer of this name yet, or in none."""
        done = torch.zeros(len(plan), dtype=torch.bool)
        for part in self.parts.values() if name is None else [self.parts[name]]:
            done |= part.batches
        return plan.without(done.nonzero().flatten().tolist())

    def add(self, name: str, *observed: Any) -> None:
        """Update a reducer with what was observed of a batch, and write where that is due."""
        with self._interrupts.held():
            self._changing = name  # if it fails, what is there is not whole
            self.parts[name].update(*observed)  # pyright: ignore[reportAttributeAccessIssue]: each has its own
            self._changing = ""
            self._unwritten.add(name)
            if self._folder is not None and time.monotonic() >= self._written + self._due:
                self._save()

    @contextlib.contextmanager
    def kept(self, folder: Path, record: Mapping[str, Any]) -> Iterator[None]:
        """Go on from what is in a folder, and write there: now and then, on a signal, and at the end of the block."""
        self._seconds = self._due = seconds_between()
        self._folder, self._record = folder, record
        self._read(folder, record)
        self._written = time.monotonic()
        with self._interrupts:
            try:
                yield
            except BaseException as error:
                if not self._full:
                    self._save()
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    logger.info("Stopped. The same call goes on from %s.", folder)
                raise
            try:
                self._save()
            except OSError as error:  # everything was read, and the result is worth more than its checkpoint
                warnings.warn(str(error), stacklevel=4)

    def _read(self, folder: Path, record: Mapping[str, Any]) -> None:
        """What was tallied before; other things in the folder, and other runs, are refused."""
        if not (folder / RECORD).is_file():
            if other := [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]:
                raise FileExistsError(f"{folder} holds no checkpoint but other things ({min(other)}): choose another.")
            return
        try:
            saved = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder / RECORD} is damaged: {error}") from error
        found = self._found(folder)
        if found:
            _require_same_pass(saved, record, folder)
        else:
            (folder / RECORD).unlink()
        for name, path in found.items():
            self.parts[name].merge(type(self.parts[name]).load(path))
        _remove_others(folder, {RECORD, *(path.name for path in found.values())})

    def _found(self, folder: Path) -> dict[str, Path]:
        """By name, the last state of each reducer that was written."""
        names, last = list(self.parts), {}
        numbers = [found for entry in folder.iterdir() if (found := _PART.fullmatch(entry.name))]
        for found in sorted(numbers, key=lambda found: int(found[2])):
            if int(found[1]) < len(names):
                last[names[int(found[1])]] = folder / found[0]
        return last

    def _save(self) -> None:
        """Write the reducers that have changed, each whole or not at all."""
        if self._folder is None:
            return
        start = time.monotonic()
        with self._interrupts.held():
            try:
                for name in sorted(self._unwritten - {self._changing}):
                    self._write(self._folder, name)
            except OSError as error:
                self._full = True
                raise OSError(
                    f"{self._folder} cannot be written ({error.strerror or str(error).rpartition(': ')[2]}): the run "
                    "stops. What was written before is whole; once there is room, the same call goes on from there."
                ) from error
        self._written = time.monotonic()
        self._due = max(self._seconds, (self._written - start) / SHARE) if self._seconds else 0.0

    def _write(self, folder: Path, name: str) -> None:
        if not (folder / RECORD).exists():
            write_text(folder / RECORD, json.dumps(self._record, indent=1, ensure_ascii=False) + "\n")
        part, number = self.parts[name], list(self.parts).index(name)
        target = folder / f"{number:04d}-{int(part.batches.sum())}"
        if not target.exists():
            part.save(target)
        self._unwritten.discard(name)
        for entry in folder.glob(f"{number:04d}-*"):
            if entry != target:
                shutil.rmtree(entry)


@contextlib.contextmanager
def tallied(
    parts: Mapping[str, Part], checkpoint: str | Path | None, record: Callable[[], Mapping[str, Any]]
) -> Iterator[Tally[Part]]:
    """Reducers to add batches to, which begin as what a stopped pass has left in a folder.

    What is added is written there at least every 30 seconds (``MWORK_LENS_CHECKPOINT_SECONDS``; less often where one
    write takes more than 1 % of that), on Ctrl-C and SIGTERM, and at the end, however that comes. Nothing is written
    without a checkpoint.

    Args:
        parts: reducers without batches, by name.
        checkpoint: a folder that is new, empty or of the same pass.
        record: everything that decides the numbers, with ``model`` and ``fingerprint``.

    Raises:
        FileExistsError: for a folder with other things in it, or that another process writes in.
        ValueError: for one of another pass, naming the first difference.
        OSError: for one that cannot be written.
    """
    tally = Tally(parts)
    if checkpoint is None:
        yield tally
        return
    with output_directory(user_path(checkpoint)) as folder, tally.kept(folder, as_json(record())):
        yield tally


def pass_record(name: str, model: HookedModel, plan: Plan, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the bits of a pass: what was asked, and where, by how many threads and what it runs."""
    device = device_of(model)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"pass": name, **asked, "device": where, **threads, "versions": versions(), "plan": plan.hash}


def seconds_between() -> float:
    """The longest time between two writes, as the environment has it.

    Raises:
        ValueError: for what is not a number of seconds.
    """
    text = os.environ.get(SECONDS) or str(USUAL)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{SECONDS}={text!r}: it must be a number of seconds, 0 or more.")
    return seconds


def _require_same_pass(saved: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    require_same({"pass": saved.get("pass")}, {"pass": record["pass"]}, folder)
    require_same_model(saved, record, folder, stacklevel=6)
    require_same(saved, record, folder)


def _remove_others(folder: Path, names: set[str]) -> None:
    """What a process left that was killed while it wrote here."""
    for entry in folder.iterdir():
        if entry.name not in names and (_LEFT.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
