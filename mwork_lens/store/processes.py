"""Several processes that run one program, as torchrun starts them: the one place that knows ``torch.distributed``.

All make the same calls in the same order. Without torchrun's variables, and within :func:`alone`, there is one process,
and nothing here costs anything.
"""

import atexit
import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

NUMBER, COUNT, ON_THIS_MACHINE = "RANK", "WORLD_SIZE", "LOCAL_RANK"
_LAUNCHER = (NUMBER, COUNT, ON_THIS_MACHINE, "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS = ("TORCHELASTIC_", "GROUP_", "ROLE_")
"""Variables of the environment by which a process knows the others, and beginnings of the names of more."""
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"
_TO_MEET, _LONGEST = timedelta(hours=1), timedelta(days=30)
"""How long a process waits for the others at first, and then; it is told at once when one ends."""
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def count() -> int:
    """How many processes share the work."""
    return 1 if _alone.get() or not {NUMBER, COUNT} <= os.environ.keys() else int(os.environ[COUNT])


def number() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ[NUMBER]) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes, shows bars, and starts kernels and browsers."""
    return number() == 0


def hidden(progress: object) -> bool:
    """Whether a bar is not shown: none is asked for, or another process shows it."""
    return not progress or not is_first()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A block that this process runs as if there were no others."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def default_device() -> str | None:
    """Of the GPUs of this machine the one for this process; None for one process, or without GPUs.

    Raises:
        ValueError: for more processes than GPUs.
    """
    if count() == 1 or not torch.cuda.is_available():
        return None
    place, there = int(os.environ.get(ON_THIS_MACHINE, number())), torch.cuda.device_count()
    if place >= there:
        raise ValueError(f"{ON_THIS_MACHINE}={place}, but GPUs: {there}; start at most so many processes per machine.")
    return f"cuda:{place}"


def children_environment() -> dict[str, str]:
    """The environment without torchrun's variables, for programs that would wait for the other processes."""
    return {
        name: value
        for name, value in os.environ.items()
        if count() == 1 or (name not in _LAUNCHER and not name.startswith(_LAUNCHERS))
    }


def wait_for_all() -> None:
    """Until every process is here."""
    gathered(None)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """A block that the first process ends before the others begin it, e.g. to find in a cache what it has made."""
    if not is_first():
        wait_for_all()
    try:
        yield
    finally:
        if is_first():
            wait_for_all()


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, of JSON, in all of them."""
    return _shared(make() if is_first() else None, source=0)


def gathered(content: Any) -> list[Any]:
    """What each process has, of JSON, in order and in all of them."""
    return [_shared(content, source) for source in range(count())]


def share(tensors: Sequence[Tensor], source: int) -> None:
    """Fill tensors on the CPU with those that the process ``source`` has; all have them of the same shapes.

    Raises:
        ConnectionError: if another process has ended.
    """
    if count() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        whole = tensor.contiguous()
        with _naming():
            dist.broadcast(whole, source, group=_group())
        if whole is not tensor:
            tensor.copy_(whole)


def is_first_to_say(what: str) -> bool:
    """Whether no other process has asked this before, of the same thing; it waits for none."""
    if count() == 1:
        return True
    with _naming():
        return _meeting().add(what, 1) == 1


def _shared(content: Any, source: int) -> Any:
    if count() == 1:
        return content
    text = json.dumps(content).encode() if source == number() else b""
    length = torch.tensor([len(text)])
    share([length], source)
    characters = torch.zeros(int(length), dtype=torch.uint8)
    if text:
        characters = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    share([characters], source)
    return json.loads(characters.numpy().tobytes())


@contextlib.contextmanager
def _naming() -> Iterator[None]:
    """What torch says of a lost connection as one error that a user understands."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"Process {number()} of {count()} has lost another one, which has ended.") from error


@functools.cache
def _meeting() -> Any:
    """The store at which torchrun lets its processes meet; after a restart nothing counts that is there of before."""
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://", timeout=_TO_MEET))
    return PrefixStore(f"mwork_lens/{os.environ.get(_ATTEMPT, 0)}", store)


@functools.cache
def _group() -> Any:
    """A group of all processes for tensors on the CPU, which meets nobody else's messages."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(store=_meeting(), rank=number(), world_size=count(), timeout=_LONGEST)
        atexit.register(dist.destroy_process_group)
    return dist.new_group(backend="gloo", timeout=_LONGEST)
