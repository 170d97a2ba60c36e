"""``mwork-lens merge``: the folders of several runs as the one that a single run writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import mwork_lens as mw

from ..settings import Reader
from .commands import DETECT, RatioConfig, by_name, finish_effects, write_detection, write_ratio
from .experiments import write_sweep
from .options import Paths, Resumable

COMMANDS: Mapping[str, str] = {
    DETECT: "detect",
    "effects": "effects",
    "effects of sets": "effects",
    "ratio": "ratio",
    "language-ratio": "experiment language-ratio",
    "layer-sweep": "experiment layer-sweep",
}
"""What the settings of a folder say, and the command that has written it."""
Pieces = Mapping[str, Any]
"""By the name of its directory in the folder: a result, or its kind."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What becomes one."""

    parts: Annotated[list[Path], Reader(list[Path], lambda _, paths: paths), "PARTS"]
    """Folders of all parts of --shard, of one command; or of mwork-lens detect on different documents."""


Output = Annotated[Resumable, "languages", "corpus", "sentences_per_passage", "limit"]
"""Of a run, only its model and where it writes."""


def merge(config: MergeConfig, run: Output) -> Paths:
    """Make one run of several: writes the folder that the command writes without --shard, to the same bits.

    The parts are those of --shard, each once; of detect also runs of one model with the same settings on different
    documents. Language ratios decode their random directions last, so they take --model, --device and --dtype too.
    """
    from ..experiments.folder import ResultsFolder, load_or_run, saved_settings
    from ..model.shards import require_same_settings

    paths = by_name(config.parts, "part")
    saved = {name: saved_settings(path, COMMANDS) for name, path in paths.items()}
    records = {name: {key: each[key] for key in each if key != "shard"} for name, each in saved.items()}
    require_same_settings(records)
    settings = next(iter(records.values()))
    kind, model = settings.pop("experiment"), cache(run.load_model)
    pieces = {
        piece: _merged(of, {name: _part(path, piece, of, kind) for name, path in paths.items()}, model)
        for piece, of in _kinds(kind, settings).items()
    }
    if kind == DETECT:
        settings |= {"corpus": pieces["detection"].settings["corpus"]}
    path = run.folder("merged")
    folder = ResultsFolder.open(path, kind, settings)
    for name, piece in pieces.items():
        load_or_run(path / name, type(piece), lambda piece=piece: piece)
    return _finish(kind, settings, folder, pieces, model)


def _kinds(kind: str, settings: Mapping[str, Any]) -> Pieces:
    """The results in the folder of a command, by name."""
    from ..experiments.effects import EFFECTS, EFFECTS_OF_SETS, pieces_of

    if kind == EFFECTS:
        return pieces_of(settings)
    if kind == EFFECTS_OF_SETS:
        return {"effects": mw.EffectMatrix}
    if kind == "layer-sweep":
        return {"sweep": mw.LayerSweep}
    return {"detection": mw.Detection} if kind == DETECT else {"ratio": mw.LanguageRatio}


def _part(path: Path, name: str, kind: Any, command: str) -> Any:
    """A result of one run; a FileNotFoundError where it has not ended."""
    if not (path / name).exists():
        raise FileNotFoundError(f"{path} is not finished: the same mwork-lens {COMMANDS[command]} goes on with it.")
    return kind.load(path / name)


def _merged(kind: Any, parts: Mapping[str, Any], model: Callable[[], Any]) -> Any:
    if kind is not mw.LanguageRatio:
        return kind.merge(parts)
    mw.model.shards.in_order({name: part.settings for name, part in parts.items()})  # before a model is loaded
    return kind.merge(parts, model())


def _finish(kind: str, settings: Mapping[str, Any], folder: Any, pieces: Pieces, model: Callable[[], Any]) -> Paths:
    """The tables and figures beside the results."""
    from ..experiments.effects import EFFECTS, EFFECTS_OF_SETS, put_together

    if kind == EFFECTS:
        return finish_effects(folder, *put_together([pieces]))
    if kind == EFFECTS_OF_SETS:
        return finish_effects(folder, pieces["effects"], None)
    if kind == DETECT:
        write = partial(write_detection, folder.path, pieces["detection"], settings["quorum"])
    elif kind == "layer-sweep":
        write = partial(write_sweep, folder.path, pieces["sweep"])
    else:
        config = RatioConfig(**{field.name: settings[field.name] for field in fields(RatioConfig)})
        write = partial(write_ratio, folder.path, pieces["ratio"], config, model())
    return [*folder.written, *write()]
