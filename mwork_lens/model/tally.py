"""A pass over a plan's batches that goes on where it was stopped: what they add up to is kept in a folder.

Several processes (see :mod:`mwork_lens.store.processes`) deal out what is left of it. Each keeps what it adds up; what
a stopped pass has left is the first one's; in the end all have the sum of all.
"""

import contextlib
import copy
import json
import logging
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from ..store import as_json, digest, output_directory, processes, require_same, user_path, versions, write_text
from .architecture import HookedModel, device_of
from .dealing import share_of
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
_PART = re.compile(r"(\d{4,})-(\d+)(?:-(\d+))?")
"""Number of a reducer, how many batches are in it, and the number of the process (none for the first)."""
_LEFT = re.compile(rf"\.({_PART.pattern}|{re.escape(RECORD)})\..*")
"""What a process leaves that is killed while it writes one."""
Part = TypeVar("Part", bound=Reducer)
logger = logging.getLogger("mwork_lens")


class Tally(Generic[Part]):
    """Reducers by name, and how far they are."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)
        self._done = {name: part.batches.clone() for name, part in parts.items()}
        self._folder: Path | None = None
        self._interrupts = Interrupts(self._save)
        self._unwritten: set[str] = set()
        self._changing = ""
        self._due, self._written = USUAL, 0.0
        self._full = False
        self._whole = False

    def left(self, plan: Plan, name: str | None = None) -> Plan:
        """The batches that are not in the reducer of this name yet, or in none: of several processes, this one's."""
        names = list(self.parts) if name is None else [name]
        left = plan.without(_numbers(self._done[each] for each in names))
        if (of := processes.count()) > 1:
            left = share_of(left, processes.number(), of, first=list(self.parts).index(names[0]))
        return left.without(_numbers(self.parts[each].batches for each in names))

    def add(self, name: str, *observed: Any) -> None:
        """Update a reducer with what was observed of a batch, and write where that is due."""
        with self._interrupts.held():
            self._changing = name  # if it fails, what is there is not whole
            self.parts[name].update(*observed)  # pyright: ignore[reportAttributeAccessIssue]: each has its own
            self._changing = ""
            self._unwritten.add(name)
            if self._folder is not None and time.monotonic() >= self._written + self._due:
                self._save()

    def begin(self) -> None:
        """Have the same batches done in all processes: those that are in the first one's reducers.

        Raises:
            ValueError: for processes that do not run the same pass.
        """
        if processes.count() == 1:
            return
        made = [[name, part.plan, part.language, part.made_with] for name, part in self.parts.items()]
        if len(set(processes.gathered(digest(made)))) > 1:
            raise ValueError("The processes do not run the same pass: all must call it with the same model and text.")
        processes.share([done.copy_(self.parts[name].batches) for name, done in self._done.items()], source=0)

    def end(self) -> None:
        """Add the reducers of all processes together, in all of them."""
        for part in self.parts.values() if processes.count() > 1 else ():
            own = copy.deepcopy(part)
            for source in range(processes.count()):
                theirs = own if source == processes.number() else copy.deepcopy(own)
                processes.share(theirs.tensors, source)
                if theirs is not own:
                    part.merge(theirs)

    @contextlib.contextmanager
    def kept(self, folder: Path, record: Mapping[str, Any]) -> Iterator[None]:
        """Go on from what is in a folder, and write there: now and then, on a signal, and at the end of the block."""
        self._seconds = self._due = seconds_between()
        self._folder, self._record = folder, record
        if processes.is_first():
            self._read(folder, record)
        self.begin()
        self._written = time.monotonic()
        with self._interrupts:
            try:
                yield
                if processes.count() > 1:
                    self._save_at_the_end()
                    self.end()
                    self._whole, self._unwritten = True, set(self.parts if processes.is_first() else ())
            except BaseException as error:
                if not self._full:
                    self._save()
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    logger.info("Stopped. The same call goes on from %s.", folder)
                raise
            self._save_at_the_end()

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
        if states := self._states(folder):
            require_same_pass(saved, record, folder)
        else:
            (folder / RECORD).unlink()
        for name, paths in states.items():
            for path in paths:
                state = type(part := self.parts[name]).load(path)
                if (state.batches & ~part.batches).any():  # else a process was killed that had added it to its own
                    part.merge(state)
        self._whole, self._unwritten = True, {name for name, paths in states.items() if any(map(_of_others, paths))}
        self._save()
        self._whole = False
        _remove_others(folder, {RECORD, *(path.name for paths in self._states(folder).values() for path in paths)})

    def _states(self, folder: Path) -> dict[str, list[Path]]:
        """By name, the last state of the reducer that each process has written, that with the most batches first."""
        names, last = list(self.parts), {}
        numbers = [found for entry in folder.iterdir() if (found := _PART.fullmatch(entry.name))]
        for found in sorted(numbers, key=lambda found: int(found[2])):
            if int(found[1]) < len(names):
                last[names[int(found[1])], found[3]] = folder / found[0]
        states: dict[str, list[Path]] = {}
        for (name, _), path in sorted(last.items(), key=lambda item: -_batches_in(item[1])):
            states.setdefault(name, []).append(path)
        return states

    def _save_at_the_end(self) -> None:
        """Everything was read, and the result is worth more than its checkpoint."""
        try:
            self._save()
        except OSError as error:
            warnings.warn(str(error), stacklevel=5)

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
        part, number = self.parts[name], list(self.parts).index(name)
        process = None if processes.is_first() else str(processes.number())
        target = folder / "-".join([f"{number:04d}", str(int(part.batches.sum())), *filter(None, [process])])
        with processes.alone():  # each keeps its own
            if not (folder / RECORD).exists():
                write_text(folder / RECORD, json.dumps(self._record, indent=1, ensure_ascii=False) + "\n")
            if not target.exists():
                part.save(target)
        self._unwritten.discard(name)
        for entry in folder.glob(f"{number:04d}-*"):
            state = _PART.fullmatch(entry.name)
            if state and entry != target and (self._whole or state[3] == process):
                shutil.rmtree(entry)


@contextlib.contextmanager
def tallied(
    parts: Mapping[str, Part], checkpoint: str | Path | None, record: Callable[[], Mapping[str, Any]]
) -> Iterator[Tally[Part]]:
    """Reducers to add batches to, which begin as what a stopped pass has left in a folder.

    What is added is written there at least every 30 seconds (``MWORK_LENS_CHECKPOINT_SECONDS``; less often where one
    write takes more than 1 % of that), on Ctrl-C and SIGTERM, and at the end, however that comes. Nothing is written
    without a checkpoint.

    Of several processes each adds the batches that :meth:`Tally.left` gives it; after the block all reducers are whole.

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
        tally.begin()
        yield tally
        tally.end()
        return
    with output_directory(user_path(checkpoint)) as folder, tally.kept(folder, as_json(record())):
        yield tally


def pass_record(name: str, model: HookedModel, plan: Plan | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the bits of a pass: what was asked, and where, by how many threads and what it runs."""
    device = device_of(model)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"pass": name, **asked, "device": where, **threads, "versions": versions(), "plan": plan and plan.hash}


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


def require_same_pass(saved: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a pass of another kind, model or setting, naming the first difference."""
    require_same({"pass": saved.get("pass")}, {"pass": record["pass"]}, folder)
    require_same_model(saved, record, folder, stacklevel=6)
    require_same(saved, record, folder)


def _numbers(masks: Iterable[Bool[Tensor, " batch"]]) -> list[int]:
    return torch.stack([*masks]).any(0).nonzero().flatten().tolist()


def _batches_in(state: Path) -> int:
    return int(state.name.split("-")[1])


def _of_others(state: Path) -> bool:
    """Whether it is of a process that was not the first."""
    return state.name.count("-") > 1


def _remove_others(folder: Path, names: set[str]) -> None:
    """What a process left that was killed while it wrote here."""
    for entry in folder.iterdir():
        if entry.name not in names and (_LEFT.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
