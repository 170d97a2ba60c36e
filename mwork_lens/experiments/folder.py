"""The results folder of an experiment: settings first, then rows, tables and figures; it resumes if settings agree."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
import plotly.graph_objects as go

from ..detection import Detection, detect
from ..model import HookedModel
from ..report import Section, write_figure, write_page
from ..settings import DetectionSettings, TextSettings
from ..store import require_free, versions

SETTINGS = "settings.json"


@runtime_checkable
class Saveable(Protocol):
    """A result that saves itself to a directory and is loaded from it."""

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """Read what :meth:`save` wrote."""
        ...


Result = TypeVar("Result", bound=Saveable)


def load_or_run(path: Path, kind: type[Result], make: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """The result at ``path``, made and saved there first if it is not there: so that a run resumes piece by piece."""
    if not path.exists():
        make(*arguments, **options).save(path)
    return kind.load(path)


@dataclass(frozen=True)
class ResultsFolder:
    """A directory that one run of an experiment fills; :meth:`open` makes or resumes it."""

    path: Path
    settings: Mapping[str, Any]
    """Everything that decides the result, as JSON holds it."""
    resumed: bool
    """Whether an earlier run with the same settings began it."""
    written: list[Path] = field(default_factory=list)
    """What was written in this run, in order."""

    @classmethod
    def open(cls, path: str | Path, name: str, settings: Mapping[str, Any]) -> "ResultsFolder":
        """Begin a folder, or go on with one that a run of the same experiment and settings began.

        Args:
            path: a directory that does not exist, is empty, or holds such a run.
            name: of the experiment.
            settings: everything that decides the result.

        Raises:
            FileExistsError: for a directory with other things in it.
            ValueError: for a run of another experiment, or with other settings; the message names the first that
                differs.
        """
        path = Path(path)
        wanted = _as_json({"experiment": name, **settings})
        resumed = (path / SETTINGS).is_file()
        if resumed:
            _require_same(json.loads((path / SETTINGS).read_text(encoding="utf-8"))["settings"], wanted, path)
        else:
            require_free(path).mkdir(parents=True, exist_ok=True)
            _write_json(path / SETTINGS, {"settings": wanted, "versions": versions()})
        return cls(path, wanted, resumed, [path / SETTINGS])

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as ``NAME.csv`` (its index first) and ``NAME.json`` (one record per row)."""
        frame.to_csv(self.path / f"{name}.csv")
        flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
        records = [{str(column): value for column, value in row.items()} for row in flat.to_dict("records")]
        _write_json(self.path / f"{name}.json", records)
        self.written.extend([self.path / f"{name}.csv", self.path / f"{name}.json"])

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``NAME.json``."""
        _write_json(self.path / f"{name}.json", content)
        self.written.append(self.path / f"{name}.json")

    def figure(self, name: str, figure: go.Figure) -> None:
        """Write a figure as ``NAME.html`` and, where a browser is there for it, ``NAME.png``."""
        self.written.extend(write_figure(self.path / name, figure))

    def page(self, title: str, sections: Sequence[Section]) -> None:
        """Write ``report.html`` from sections, with the settings at its end."""
        closing = Section("Settings", (), {**self.settings, "versions": versions()})
        self.written.append(write_page(self.path / "report.html", title, [*sections, closing]))


def open_detections(
    path: Path,
    name: str,
    saved: Sequence[Path],
    load_model: Callable[[], HookedModel],
    text: TextSettings,
    rule: DetectionSettings,
) -> tuple[ResultsFolder, dict[str, Detection]]:
    """The results folder of an experiment, and detections by the name of their directory or model.

    Args:
        path: of the folder.
        name: of the experiment.
        saved: detections to load; otherwise one is made, and kept in the folder.
        load_model: loads the model then.
        text: what neurons are detected on then.
        rule: the top fraction of a detection made here, and the quorum.

    Raises:
        ValueError: for detections of the same name, before the work.
    """
    settings = {"quorum": rule.quorum, "top": rule.top}
    if saved:
        names = [place.name if place.name != "detection" else place.resolve().parent.name for place in saved]
        if len(set(names)) < len(names):
            raise ValueError(f"Two detections are called {max(names, key=names.count)!r}: rename a directory.")
        detections = {key: Detection.load(place) for key, place in zip(names, saved, strict=True)}
        recorded = {key: each.settings for key, each in detections.items()}
        return ResultsFolder.open(path, name, {"detections": recorded, **settings}), detections
    corpus = text.load()
    if len(corpus) < 2:
        raise ValueError(f"At least two languages are needed to compare; {text.corpus} has {', '.join(corpus)}.")
    folder = ResultsFolder.open(path, name, {"corpus": corpus.describe(), **settings})
    detection = load_or_run(folder.path / "detection", Detection, lambda: detect(load_model(), corpus, top=rule.top))
    folder.written.append(folder.path / "detection")
    return folder, {detection.space.model: detection}


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, ensure_ascii=False, default=str))


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


def _require_same(saved: Any, wanted: Any, path: Path, name: str = "") -> None:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*saved, *wanted]):
            _require_same(saved.get(key), wanted.get(key), path, f"{name}.{key}" if name else key)
    elif saved != wanted:
        raise ValueError(
            f"{path} holds a run with {name} = {_shown(saved)}, not {_shown(wanted)}: give the same settings to resume "
            "it, or another directory."
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
