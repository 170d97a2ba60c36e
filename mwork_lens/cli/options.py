"""Commands from dataclasses: each field of a command's settings becomes an option, its docstring the help."""

import functools
import inspect
import itertools
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args

import typer

from ..settings import NO_OPTION, Reader, RunSettings

_FIELD = re.compile(r'^    (\w+): (?:[^\n]*? = (\w+)\.\w+|[^\n]*)\n(?:    """(.*?)""")?', re.MULTILINE | re.DOTALL)

Paths = Sequence[Path]
"""What a command wrote."""


def flatten(command: Callable[..., Paths | None]) -> Callable[..., None]:
    """The command as typer reads it: one option per field of the dataclasses that it takes; it prints what was written.

    The default of such a parameter, an instance, has the defaults of its options; strings in its annotation name fields
    that are not options of this command.
    """
    groups = {each.name: _group(each) for each in inspect.signature(command).parameters.values()}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        groups_read = {
            name: make(**{option.name: option.read(values[option.key]) for option in options})
            for name, (make, options) in groups.items()
        }
        print("Written: " + ", ".join(map(str, command(**groups_read) or ())))

    parameters = [option.parameter for _, options in groups.values() for option in options]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _group(parameter: inspect.Parameter) -> tuple[Callable[..., Any], list["_Option"]]:
    """How to make the settings that a command takes, and their options."""
    kind, *omitted = get_args(parameter.annotation) or [parameter.annotation]
    base = None if parameter.default is inspect.Parameter.empty else parameter.default
    make = kind if base is None else functools.partial(replace, base)
    return make, [option for option in _options(kind, base) if option.name not in omitted]


@dataclass(frozen=True)
class _Option:
    """The option that a field becomes."""

    name: str
    """Of the field."""
    option: str
    reader: Reader
    default: Any
    help: str

    @property
    def key(self) -> str:
        """The option as a name of Python's."""
        return self.option.removeprefix("--").replace("-", "_")

    @property
    def _shown(self) -> Any:
        return inspect.Parameter.empty if self.default is MISSING else self.reader.show(self.default)

    @functools.cached_property
    def parameter(self) -> inspect.Parameter:
        """As typer reads it."""
        kind = self.reader.kind | None if self._shown is None else self.reader.kind
        flag = {bool: self.option, bool | None: f"{self.option}/--no-{self.option.removeprefix('--')}"}
        annotation = Annotated[kind, typer.Option(flag.get(kind, self.option), help=self.help)]
        return inspect.Parameter(self.key, inspect.Parameter.KEYWORD_ONLY, default=self._shown, annotation=annotation)

    def read(self, value: Any) -> Any:
        """The setting, from the option's value."""
        return self.default if value is None or value == self._shown else self.reader.read(self.option, value)


@functools.cache  # commands share them
def _options(kind: Any, base: Any) -> list[_Option]:
    helps, options = _docstrings(kind), []
    for field in fields(kind):
        annotation, *marks = get_args(field.type) if hasattr(field.type, "__metadata__") else [field.type]
        option = next((mark for mark in marks if isinstance(mark, str)), f"--{field.name.replace('_', '-')}")
        reader = next((mark for mark in marks if isinstance(mark, Reader)), Reader(annotation, lambda _, value: value))
        default = field.default if base is None else getattr(base, field.name)
        if option != NO_OPTION:
            options.append(_Option(field.name, option, reader, default, helps[field.name]))
    return options


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under every field, in one line; that of a field with another group's default is the other's."""
    module = sys.modules[kind.__module__]
    texts = dict(ChainMap(*(_docstrings(base) for base in reversed(kind.__bases__) if base is not object)))
    source = re.search(
        rf"^class {kind.__name__}\b.*?(?=^\S|\Z)", _source(module.__file__ or ""), re.DOTALL | re.MULTILINE
    )
    for name, group, text in _FIELD.findall(source[0] if source else ""):
        if not (text or group):
            raise TypeError(f"{kind.__name__}.{name} needs a docstring, and its default on the line of its name.")
        texts[name] = " ".join(text.split()) if text else _docstrings(getattr(module, group))[name]
    return texts


@functools.cache
def _source(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


# --- what commands load and write ---


@dataclass(frozen=True)
class Run(RunSettings):
    """Loads the model and the text, and makes the folder."""

    def load_model(self) -> Any:
        """The hooked model."""
        from ..model import load_model

        return load_model(self.model, device=self.device, dtype=self.dtype)

    def load_text(self, languages: Sequence[str] | None = None) -> Any:
        """The corpus, in ``languages`` if none are set; warns of too few passages to find neurons on."""
        from ..text import load_corpus

        tags = languages if self.languages is None else self.languages
        joined = self.sentences_per_passage
        return load_corpus(self.corpus, languages=tags, sentences_per_passage=joined, limit=self.limit)

    def load_prompts(self, identified_by: str, pivot: Sequence[str] = ("en",)) -> Any:
        """A few passages to read, cut after loading; an identifier must have their languages and those of ``pivot``."""
        from ..text import identifier

        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: it must be at least 1.")
        corpus = replace(self, limit=None).load_text()
        identifier(identified_by, list(dict.fromkeys([*pivot, *corpus])))
        return corpus if self.limit is None else corpus.limit(self.limit)

    def path(self, name: str) -> Path:
        """As set, else the first free directory named after the command."""
        names = (f"mwork-lens-{name}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        return self.output or next(path for path in map(Path, names) if not path.exists())

    def new_folder(self, name: str) -> Path:
        """That directory, made; FileExistsError if something is there already."""
        from ..store import require_free

        folder = require_free(self.path(name))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Resumable(Run):
    """A run that goes on where it was stopped."""

    output: Path | None = None
    """A new directory, or one to resume."""


def write(
    folder: Path,
    results: Mapping[str, Any] = MappingProxyType({}),
    tables: Mapping[str, Any] = MappingProxyType({}),
    figures: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
) -> list[Path]:
    """Save results, tables as CSV (with an index that has names) and figures under their names; returns the paths.

    Figures are made once all else is on disk.
    """
    from ..report import write_figure

    for name, result in results.items():
        result.save(folder / name)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    drawn = [path for name, figure in figures.items() for path in write_figure(folder / name, figure())]
    return [*(folder / name for name in results), *(folder / f"{name}.csv" for name in tables), *drawn]
