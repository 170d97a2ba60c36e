"""``mwork-lens merge``: the folders of several runs as the one that a single run writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import mwork_lens as mw

from ..settings import Reader
from .commands import DETECT, by_name, write_detection
from .options import Paths, Resumable


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What becomes one."""

    parts: Annotated[list[Path], Reader(list[Path], lambda _, paths: paths), "PARTS"]
    """Folders of mwork-lens detect: all parts of --shard, or runs on different documents."""


Output = Annotated[Resumable, "model", "device", "dtype", "languages", "corpus", "sentences_per_passage", "limit"]
"""Of a run, only where it writes."""


def merge(config: MergeConfig, run: Output) -> Paths:
    """Make one detection of several; writes the folder that detecting at once writes, to the same bits.

    The parts are those of --shard, each once, or runs of one model with the same settings on different documents.
    """
    from ..detection.merging import merged_fields
    from ..experiments.folder import ResultsFolder, load_or_run, saved_settings

    paths = by_name(config.parts, "part")
    records = {name: saved_settings(path, DETECT) for name, path in paths.items()}
    quorums = {name: record["quorum"] for name, record in records.items()}
    first, quorum = next(iter(quorums.items()))
    if other := [name for name, value in quorums.items() if value != quorum]:
        raise ValueError(f"{first} was made with quorum={quorum}, {other[0]} with {quorums[other[0]]}.")
    merged = mw.Detection(**merged_fields({name: _detection(path) for name, path in paths.items()}))
    settings = {name: value for name, value in records[first].items() if name not in ("experiment", "shard")}
    path = run.folder("merged")
    folder = ResultsFolder.open(path, DETECT, {**settings, "corpus": merged.settings["corpus"]})
    load_or_run(path / "detection", mw.Detection, lambda: merged)
    return [*folder.written, *write_detection(path, merged, quorum)]


def _detection(path: Path) -> Any:
    """That of a run; a FileNotFoundError where it has not ended."""
    if (path / "detection.checkpoint").exists():
        raise FileNotFoundError(f"{path} is not finished: the same mwork-lens detect goes on with it.")
    return mw.Detection.load(path / "detection")
