"""Commands from dataclasses: each field of a command's settings becomes an option, its docstring the help."""

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

import mwork_lens as mw

from ..settings import NO_OPTION, Reader, RunSettings

_FIELD = re.compile(r'^    (\w+): (?:[^\n]*? = (\w+)\.\w+|[^\n]*)\n(?:    """(.*?)""")?', re.MULTILINE | re.DOTALL)

Paths = Sequence[Path]
"""What a command wrote."""


class Command(TyperCommand):
    """A command whose options are made when they are first asked for: a list of commands needs none."""

    def __init__(self, function: Callable[..., Paths | None], **settings: Any) -> None:
        self._function = function
        super().__init__(**settings)

    @functools.cached_property
    def _whole(self) -> Any:
        app = typer.Typer(add_completion=False)
        app.command()(_flat(self._function))
        return typer.main.get_command(app)

    @property
    def params(self) -> list[Any]:
        """Its options."""
        return self._whole.params

    @params.setter
    def params(self, _: Any) -> None:
        """Those of a stand-in, which has none."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        return self._whole.invoke(ctx)


def add_command(app: typer.Typer, function: Callable[..., Paths | None]) -> None:
    """A command with one option per field of the dataclasses that the function takes; it prints what was written.

    The default of such a parameter, an instance, has the defaults of its options; strings in its annotation name fields
    that are not options of this command.
    """
    command: Any = functools.partial(Command, function)
    app.command(function.__name__.replace("_", "-"), cls=command, help=inspect.getdoc(function))(lambda: None)


def _flat(function: Callable[..., Paths | None]) -> Callable[..., None]:
    """The function as typer reads it."""
    groups = {each.name: _group(each) for each in inspect.signature(function).parameters.values()}

    def run(**values: Any) -> None:
        settings = {
            name: make(**{option.name: option.read(values[option.key]) for option in options})
            for name, (make, options) in groups.items()
        }
        print("Written: " + ", ".join(map(str, function(**settings) or ())))

    parameters = [option.parameter for _, options in groups.values() for option in options]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _group(parameter: inspect.Parameter) -> tuple[Callable[..., Any], list["_Option"]]:
    """How to make the settings that a function takes, and their options."""
    kind, *omitted = get_args(parameter.annotation) or [parameter.annotation]
    base = None if parameter.default is inspect.Parameter.empty else parameter.default
    helps, options = _docstrings(kind), []
    for field in fields(kind):
        annotation, *marks = get_args(field.type) if hasattr(field.type, "__metadata__") else [field.type]
        option = next((mark for mark in marks if isinstance(mark, str)), f"--{field.name.replace('_', '-')}")
        reader = next((mark for mark in marks if isinstance(mark, Reader)), Reader(annotation, lambda _, value: value))
        default = field.default if base is None else getattr(base, field.name)
        if option != NO_OPTION and field.name not in omitted:
            options.append(_Option(field.name, option, reader, default, helps[field.name]))
    return kind if base is None else functools.partial(replace, base), options


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

    @property
    def parameter(self) -> inspect.Parameter:
        """As typer reads it."""
        kind = self.reader.kind | None if self._shown is None else self.reader.kind
        flag = {bool: self.option, bool | None: f"{self.option}/--no-{self.option.removeprefix('--')}"}
        annotation = Annotated[kind, typer.Option(flag.get(kind, self.option), help=self.help)]
        return inspect.Parameter(self.key, inspect.Parameter.KEYWORD_ONLY, default=self._shown, annotation=annotation)

    def read(self, value: Any) -> Any:
        """The setting, from the option's value."""
        return self.default if value is None or value == self._shown else self.reader.read(self.option, value)


def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under every field, in one line; that of a field with another group's default is the other's."""
    module = sys.modules[kind.__module__]
    texts = {name: text for base in kind.__bases__ if base is not object for name, text in _docstrings(base).items()}
    body = re.search(rf"^class {kind.__name__}\b.*?(?=^\S|\Z)", _source(module), re.DOTALL | re.MULTILINE)
    for name, group, text in _FIELD.findall(body[0] if body else ""):
        if not (text or group):
            raise TypeError(f"{kind.__name__}.{name} needs a docstring, and its default on the line of its name.")
        texts[name] = " ".join(text.split()) if text else _docstrings(getattr(module, group))[name]
    return texts


@functools.cache
def _source(module: ModuleType) -> str:
    return Path(module.__file__ or "").read_text(encoding="utf-8")


# --- what commands load and write ---


@dataclass(frozen=True)
class Run(RunSettings):
    """Loads the model and the text, and makes the folder."""

    def load_model(self) -> Any:
        """The hooked model."""
        return mw.load_model(self.model, device=self.device, dtype=self.dtype)

    def load_text(self, languages: Sequence[str] | None = None) -> Any:
        """The corpus, in ``languages`` if none are set; warns of too few passages to find neurons on."""
        tags, joined = languages if self.languages is None else self.languages, self.sentences_per_passage
        return mw.load_corpus(self.corpus, languages=tags, sentences_per_passage=joined, limit=self.limit)

    def load_prompts(self, identified_by: str, pivot: Sequence[str] = ("en",)) -> Any:
        """A few passages to read, cut after loading; an identifier must have their languages and those of ``pivot``."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: it must be at least 1.")
        corpus = replace(self, limit=None).load_text()
        mw.text.identifier(identified_by, list(dict.fromkeys([*pivot, *corpus])))
        return corpus if self.limit is None else corpus.limit(self.limit)

    def path(self, name: str) -> Path:
        """As set, else the first free directory named after the command."""
        names = (f"mwork-lens-{name}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        return self.output or next(path for path in map(Path, names) if not path.exists())

    def new_folder(self, name: str) -> Path:
        """That directory, made; FileExistsError if something is there already."""
        folder = mw.store.require_free(self.path(name))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Resumable(Run):
    """A run that goes on where it was stopped."""

    output: Path | None = None
    """A new directory, or one to resume."""


def write(
    folder: Path,
    results: Mapping[str, Any] = {},
    tables: Mapping[str, Any] = {},
    figures: Mapping[str, Callable[[], Any]] = {},
) -> list[Path]:
    """Save results, tables as CSV (with an index that has names) and figures under their names; returns the paths.

    Figures are made once all else is on disk.
    """
    for name, result in results.items():
        result.save(folder / name)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    drawn = [path for name, figure in figures.items() for path in mw.report.write_figure(folder / name, figure())]
    return [*(folder / name for name in results), *(folder / f"{name}.csv" for name in tables), *drawn]
