"""The results folder of an experiment: settings first, then rows, tables and figures; it resumes if settings agree."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go

from ..detection import Detection
from ..model.fingerprint import UNKNOWN, require_same_model
from ..report import Section, write_figures, write_page
from ..store import (
    Result,
    as_json,
    folded,
    only_writer,
    processes,
    require_free,
    require_same,
    user_path,
    versions,
    write_text,
)

SETTINGS = "settings.json"
NEWER = ("documents", "limit", "held_out", "held_out_part", "fingerprint")
"""What a corpus or a detection says of itself now and older versions did not record."""
LONGEST_NAME = 150
"""Bytes of a name within a longer one; file systems allow 255."""
_NOT_PORTABLE = re.compile(r'[/\\%\0-\x1f<>:"|?*\ud800-\udfff]|[. ]$')
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
"""Which Windows does not have as names of files, with or without a suffix."""
Piece = TypeVar("Piece", bound=Result)
NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_or_run(path: Path, kind: type[Piece], make: Callable[..., Piece], *arguments: Any, **options: Any) -> Piece:
    """The result at ``path``, made and saved there first if it is not there: so that a run resumes piece by piece.

    What has a ``checkpoint`` also resumes within a piece; that is in a folder next to it, until the piece is saved.
    Several processes make it together, and the first saves it.
    """
    checkpoint = path.with_name(f"{path.name}.checkpoint")
    if not processes.from_first(path.exists):
        if "checkpoint" in inspect.signature(make).parameters:
            options["checkpoint"] = checkpoint
        piece = make(*arguments, **options)
        with contextlib.suppress(FileExistsError):  # another process with these settings has made it in the meantime
            piece.save(path)
    if processes.is_first():
        shutil.rmtree(checkpoint, ignore_errors=True)
    processes.wait_for_all()
    return kind.load(path)


def piece_name(name: str) -> str:
    """A name of the user's as the name of one file on any system: ``a/b`` is not in a folder ``a``.

    Two names are two files; those that differ in case only are one on some systems (see ``store.folded``).
    """
    if not name or _NOT_PORTABLE.search(name):
        name = quote(name, safe="", errors="surrogatepass").replace(".", "%2E") or "%"
    elif name.split(".")[0].upper() in _RESERVED:
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(encoded := os.fsencode(name)) > LONGEST_NAME:
        name = f"{encoded[:100].decode(errors='ignore')}%{hashlib.sha256(encoded).hexdigest()[:16]}"
    return name


def require_resumable(path: str | Path) -> Path:
    """``path``, if nothing is there or the settings of a run; a FileExistsError or a ValueError otherwise."""
    path = user_path(path)
    if _read_settings(path) is None:
        require_free(path)
    return path


def load_detections(paths: Sequence[Path]) -> dict[str, Detection]:
    """Saved detections by the name of their directory; ValueError for two of the same name, in whatever case."""
    names = [path.name if path.name != "detection" else path.resolve().parent.name for path in paths]
    alike = [*map(folded, names)]
    if len(set(alike)) < len(names):
        twice = max(alike, key=alike.count)
        both = " and ".join(dict.fromkeys(repr(name) for name in names if folded(name) == twice))
        raise ValueError(f"Two detections are called {both}: rename a directory.")
    return {name: Detection.load(path) for name, path in zip(names, paths, strict=True)}


@dataclass(frozen=True)
class ResultsFolder:
    """A directory that one run of an experiment fills; :meth:`open` makes or resumes it."""

    path: Path
    settings: Mapping[str, Any]
    """Everything that decides the result, as JSON holds it."""
    written: list[Path] = field(default_factory=list)
    """What was written in this run, in order."""

    @classmethod
    def open(cls, path: str | Path, name: str, settings: Mapping[str, Any]) -> "ResultsFolder":
        """Begin the folder of experiment ``name``, or go on with one of the same experiment and settings.

        FileExistsError for a directory with other things in it; a ValueError names the first setting that differs, and
        both models where their weights or dtypes do.
        """
        path = require_resumable(path)
        record = as_json({"experiment": name, **settings})
        path.mkdir(parents=True, exist_ok=True)
        with processes.first_before_others(), only_writer(path):
            if (saved := _read_settings(path)) is not None:
                record |= _require_resumed(saved, record, path)
            else:
                require_free(path)
                _write_json(path / SETTINGS, {"settings": record, "versions": versions()})
        return cls(path, record, [path / SETTINGS])

    def write(self, tables: Mapping[str, pd.DataFrame] = NOTHING, figures: Mapping[str, go.Figure] = NOTHING) -> None:
        """Tables as ``NAME.csv`` (index first) and ``NAME.json`` (one record per row); figures as HTML and PNG."""
        for name, frame in tables.items():
            if frame.columns.nlevels > 1:  # files have one name per column
                frame = frame.set_axis([" / ".join(filter(None, column)) for column in frame.columns], axis=1)
            flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
            records = [{str(column): value for column, value in row.items()} for row in flat.to_dict("records")]
            self.written.append(self._file(name, ".csv"))
            write_text(self.written[-1], frame.to_csv())
            self.document(name, records)
        self.written.extend(write_figures({self._file(name, ".html"): figure for name, figure in figures.items()}))

    def document(self, name: str, content: Any) -> None:
        """Write ``NAME.json``; ValueError for the name of the run's own settings."""
        file = self._file(name, ".json")
        if file.name == SETTINGS:
            raise ValueError(f"{name!r} is the name of the settings of {self.path}: choose another one.")
        self.written.append(file)
        _write_json(self.written[-1], content)

    def _file(self, name: str, suffix: str) -> Path:
        """The file of a table or figure; ValueError where another one of this run has its name on some systems."""
        file = self.path / f"{piece_name(name)}{suffix}"
        for other in self.written:
            if other != file and folded(str(other)) == folded(str(file)):
                raise ValueError(f"{file} and {other.name} are one file on some systems: choose another name.")
        return file

    def section(self, title: str, name: str, content: pd.DataFrame | go.Figure) -> Section:
        """Write a table or a figure, and show it on the page."""
        if isinstance(content, pd.DataFrame):
            self.write({name: content})
        else:
            self.write(figures={name: content})
        return Section(title, (), content)

    def page(self, title: str, sections: Sequence[Section]) -> None:
        """Write ``report.html`` from sections, with the settings at its end."""
        closing = Section("Settings", (), {**self.settings, "versions": versions()})
        self.written.append(write_page(self.path / "report.html", title, [*sections, closing]))


def _require_resumed(saved: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Refuse another model, whatever its name, and other settings; returns what older folders do not say."""
    first, ours = ({key: each.get(key) for key in ("experiment", "model")} for each in (saved, record))
    require_same(first, ours, path)
    require_same_model(saved, record, path, stacklevel=4)
    absent = {key for key in ("dtype", "fingerprint") if key not in saved}
    require_same(saved, {key: value for key, value in record.items() if key not in absent}, path, newer=NEWER)
    return {} if "fingerprint" in saved or "fingerprint" not in record else {"fingerprint": UNKNOWN}


def saved_settings(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Those of a finished or unfinished run of some kinds, each with its command; a ValueError for anything else."""
    settings = _read_settings(user_path(path))
    if settings is None or settings["experiment"] not in names:
        commands = ", ".join(dict.fromkeys(names.values()))
        raise ValueError(f"{path} is not a folder of a command that merges: {commands}.")
    return settings


def _read_settings(path: Path) -> Any:
    """Those of the run in a folder, None if it holds none; a ValueError if they cannot be read."""
    file = path / SETTINGS
    if not os.path.isfile(file):
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))["settings"]
        settings["experiment"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} does not hold the settings of a run: {type(error).__name__}: {error}.") from error
    return settings


def _write_json(path: Path, content: Any) -> None:
    """What JSON has no number for is null."""
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    number = content.item() if hasattr(content, "item") else content
    return None if isinstance(number, float) and not abs(number) < float("inf") else number
