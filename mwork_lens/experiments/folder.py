"""The results folder of an experiment: settings first, then rows, tables and figures; it resumes if settings agree."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go

from ..detection import Detection
from ..report import Section, write_figure, write_page
from ..store import Result, require_free, versions

SETTINGS = "settings.json"
Piece = TypeVar("Piece", bound=Result)
NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_or_run(path: Path, kind: type[Piece], make: Callable[..., Piece], *arguments: Any, **options: Any) -> Piece:
    """The result at ``path``, made and saved there first if it is not there: so that a run resumes piece by piece."""
    if not path.exists():
        make(*arguments, **options).save(path)
    return kind.load(path)


def load_detections(paths: Sequence[Path]) -> dict[str, Detection]:
    """Saved detections by the name of their directory; ValueError for two of the same name."""
    names = [path.name if path.name != "detection" else path.resolve().parent.name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"Two detections are called {max(names, key=names.count)!r}: rename a directory.")
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

        FileExistsError for a directory with other things in it; a ValueError names the first setting that differs.
        """
        path = Path(path)
        record = json.loads(json.dumps({"experiment": name, **settings}, ensure_ascii=False, default=str))
        if (path / SETTINGS).is_file():
            _require_same(json.loads((path / SETTINGS).read_text(encoding="utf-8"))["settings"], record, path)
        else:
            require_free(path).mkdir(parents=True, exist_ok=True)
            _write_json(path / SETTINGS, {"settings": record, "versions": versions()})
        return cls(path, record, [path / SETTINGS])

    def write(self, tables: Mapping[str, pd.DataFrame] = NOTHING, figures: Mapping[str, go.Figure] = NOTHING) -> None:
        """Tables as ``NAME.csv`` (index first) and ``NAME.json`` (one record per row); figures as HTML and PNG."""
        for name, frame in tables.items():
            if frame.columns.nlevels > 1:  # files have one name per column
                frame = frame.set_axis([" / ".join(filter(None, column)) for column in frame.columns], axis=1)
            frame.to_csv(self.path / f"{name}.csv")
            flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
            records = [{str(column): value for column, value in row.items()} for row in flat.to_dict("records")]
            self.written.append(self.path / f"{name}.csv")
            self.document(name, records)
        for name, figure in figures.items():
            self.written.extend(write_figure(self.path / name, figure))

    def document(self, name: str, content: Any) -> None:
        """Write ``NAME.json``."""
        _write_json(self.path / f"{name}.json", content)
        self.written.append(self.path / f"{name}.json")

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


def _write_json(path: Path, content: Any) -> None:
    """Whole or not at all; what JSON has no number for is null."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str)
    building = path.with_name(f".{path.name}.part")
    building.write_text(text + "\n", encoding="utf-8")
    os.replace(building, path)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    number = content.item() if hasattr(content, "item") else content
    return None if isinstance(number, float) and not abs(number) < float("inf") else number


def _require_same(saved: Any, settings: Any, path: Path, name: str = "") -> None:
    if isinstance(saved, dict) and isinstance(settings, dict):
        for key in dict.fromkeys([*saved, *settings]):
            _require_same(saved.get(key), settings.get(key), path, f"{name}.{key}" if name else key)
    elif saved != settings:
        texts = [json.dumps(value, ensure_ascii=False) for value in (saved, settings)]
        before, after = (text if len(text) <= 80 else f"{text[:77]}..." for text in texts)
        raise ValueError(
            f"{path} holds a run with {name} = {before}, not {after}: give the same settings to resume it, or another "
            "directory."
        )
