"""Detections that an experiment reads: saved ones by name, or one made on the spot and kept in its folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..detection import Detection, detect
from ..model import HookedModel
from ..text import load_corpus
from .folder import ResultsFolder


def open_detections(
    path: Path,
    name: str,
    saved: Sequence[Path],
    model: Callable[[], HookedModel],
    corpus: str,
    corpus_options: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> tuple[ResultsFolder, dict[str, Detection]]:
    """The results folder, and detections by the name of their directory or model.

    Args:
        path: of the folder.
        name: of the experiment.
        saved: detections to load; none are made then.
        model: loads the model, where a detection is made.
        corpus: what sets are found on then.
        corpus_options: passed on to :func:`load_corpus`.
        asked: settings of the experiment; ``top`` is that of a detection made here.

    Raises:
        ValueError: for detections of the same name, before the work.
    """
    if saved:
        names = [place.name if place.name != "detection" else place.resolve().parent.name for place in saved]
        if len(set(names)) < len(names):
            raise ValueError(f"Two detections are called {max(names, key=names.count)!r}: rename a directory.")
        found = {key: Detection.load(place) for key, place in zip(names, saved, strict=True)}
        settings = {"detections": {key: each.settings for key, each in found.items()}, **asked}
        return ResultsFolder.open(path, name, settings), found
    text = load_corpus(corpus, **corpus_options)
    if len(text) < 2:
        raise ValueError(f"At least two languages are needed to compare; {corpus} has {', '.join(text)}.")
    folder = ResultsFolder.open(path, name, {"corpus": text.describe(), **asked})
    place = folder.path / "detection"
    if not place.exists():
        detect(model(), text, top=asked["top"]).save(place)
    folder.written.append(place)
    made = Detection.load(place)
    return folder, {made.space.model: made}
