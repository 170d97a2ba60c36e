"""Files and directories that are written whole or not at all, at paths as users give them, by one process at a time."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from .processes import is_first

_LONGEST = 200
"""Bytes of a name to which something can be added; file systems allow 255."""
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENOENT)
"""Errors of a rename where another process has been at the same place."""
_held: dict[tuple[int, int, int], int] = {}
"""Directories that this process writes in: process, device and number of each, and how many blocks need it."""


def user_path(path: str | Path) -> Path:
    """``path`` with ``~`` as a home directory; a ValueError where there is none, or for what cannot be a path."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r} cannot be found: there is no such home directory.") from None
    if "\0" in str(expanded):
        raise ValueError(f"{str(path)!r} cannot be a path: it holds a NUL character.")
    if not str(path):
        raise ValueError("'' is not a path; the working directory is '.'.")
    try:
        os.lstat(expanded)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{str(path)!r} cannot be a path: a name in it is too long.") from None
    return expanded


def _beside(path: Path, word: str) -> Path:
    """A hidden name for something that goes with ``path``, short enough for a name of any length."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f".{name}.{word}")


def previous(path: Path) -> Path:
    """Where the old result is between the two renames that overwriting takes: no call replaces a full directory."""
    return _beside(Path(os.path.realpath(path)), "previous")


def folded(name: str) -> str:
    """What names have in common that some file systems take for one: they ignore case, or how accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@contextlib.contextmanager
def _temporary(path: Path, suffix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Something hidden beside ``path``, gone when the block ends, as is what killed processes left there of theirs."""
    place = _beside(path, "writing-")
    name = re.compile(rf"{re.escape(place.name)}[0-9a-f]{{8}}{re.escape(suffix)}")
    for left in filter(lambda entry: name.fullmatch(entry.name), path.parent.iterdir()):
        with contextlib.suppress(OSError), _locked(left) as alone:
            _remove(left if alone else None)
    with contextlib.ExitStack() as at_the_end:
        while True:
            temporary = place.with_name(f"{place.name}{secrets.token_hex(4)}{suffix}")
            at_the_end.callback(_remove, temporary)
            make(temporary)
            with contextlib.suppress(FileNotFoundError):  # another process has just taken it for one that was left
                if at_the_end.enter_context(_locked(temporary)) is not False and temporary.exists():
                    break
        yield temporary


def _remove(place: Path | None) -> None:
    if place is not None and place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    elif place is not None:
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[bool | None]:
    """Whether no other such block is in this place; None where the system cannot say. It forgets ended processes."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield None
        return
    descriptor, alone = os.open(place, os.O_RDONLY | os.O_NOFOLLOW), None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
        yield alone
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary file next to ``path`` that takes its place only when the block ends without an error."""
    path = user_path(path)
    with _temporary(path, path.suffix, Path.touch) as building:
        yield building
        os.replace(building, path)


def write_text(path: str | Path, text: str) -> None:
    """In UTF-8, whole or not at all; what UTF-8 lacks (bytes of a path in no encoding) as JSON and Python escape it.

    Of several processes the first writes.
    """
    if not is_first():
        return
    with atomic_file(path) as building:
        building.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A hidden directory next to ``path``, gone when the block ends, as is what killed processes left of theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, "", Path.mkdir) as folder:
        yield folder


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False, first_wins: bool = False) -> Iterator[Path]:
    """A temporary directory next to ``path`` that takes its place only when the block ends without an error.

    What may be at ``path`` before is for :func:`mwork_lens.store.require_free` to say. Of several processes that write
    there the first wins; the others get a FileExistsError, or with ``first_wins``, for caches, use what it wrote.
    """
    path = Path(os.path.realpath(user_path(path)))
    if os.path.ismount(path):
        raise FileExistsError(f"{path} is a mounted file system, which cannot be replaced: choose a path within it.")
    try:
        with temporary_directory(path) as building:
            yield building
            try:
                _take_place(building, path, overwrite)
            except OSError as error:
                if not building.exists() or error.errno not in _TAKEN:
                    raise
                if not first_wins:
                    raise FileExistsError(f"{path} was written by another process in the meantime.") from error
    finally:
        if path.exists():
            shutil.rmtree(previous(path), ignore_errors=True)


def _take_place(building: Path, path: Path, overwrite: bool) -> None:
    """Rename; what is there before goes aside, and comes back if that fails."""
    old = previous(path)
    if overwrite and path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    try:
        os.replace(building, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.replace(old, path)
        raise


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Until the block ends no other process may write here: its own such block raises a FileExistsError.

    The system forgets it with the process, however that ends. Blocks of one process may be inside each other. Of
    several processes that run one program the first one's block stands for all.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        fcntl = None
    if fcntl is None or not is_first():
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        found = os.fstat(descriptor)
        key = os.getpid(), found.st_dev, found.st_ino
        if not _held.get(key):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problem = f"{directory} is being written by another process"
                raise FileExistsError(f"{problem}: wait for it to end, or choose another path.") from None
            except OSError:
                pass  # a file system without locks
        _held[key] = _held.get(key, 0) + 1
        try:
            yield
        finally:
            _held[key] -= 1
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def output_directory(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """``path`` as a directory in which this process can write and no other does, tried at once.

    Directories that were made for it and are still empty when the block ends are removed. A FileExistsError for a file
    at ``path`` (with ``new`` for anything); what the system says where nothing can be written. Of several processes
    that run one program the first makes and holds it.
    """
    path = user_path(path)
    if not is_first():
        yield path
        return
    made = [parent for parent in (path, *path.parents) if not os.path.lexists(parent)]
    try:
        path.mkdir(parents=True, exist_ok=not new)
        with only_writer(path):
            with tempfile.TemporaryFile(dir=path) as tried:
                tried.write(b"tried")
            yield path
    finally:
        for directory in made:
            with contextlib.suppress(OSError):  # not empty
                directory.rmdir()
