"""Commands from dataclasses: each field of a command's settings becomes an option, its docstring the help."""

import contextlib
import functools
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

import mwork_lens as mw

from ..settings import DEVICE_MAP, MAX_MEMORY, NO_OPTION, OptionalNames, Reader, TaskOptions

_FIELD = re.compile(r'^    (\w+): (?:[^\n]*? = (\w+)\.\w+|[^\n]*)\n(?:    """(.*?)""")?', re.MULTILINE | re.DOTALL)

_outputs: ContextVar[contextlib.ExitStack] = ContextVar("outputs")
"""What a command holds until its end: the directories that it writes in."""

DEMO_LANGUAGES = ("en", "fr", "zh", "ru", "th")
"""Of the demo text, where no languages are named."""
Paths = Sequence[Path]
"""What a command wrote."""


def add_command(app: typer.Typer, function: Callable[..., Paths], *, shared: bool = True) -> None:
    """A command with one option per field of the dataclasses that the function takes; it prints what was written.

    In the annotation of such a parameter, strings name fields that are not options of this command, and a dict has
    defaults of its own. Processes that do not have the command ``shared`` leave it to the first of them.
    """
    command: Any = functools.partial(_Command, function if shared else _by_first(function))
    app.command(function.__name__.replace("_", "-"), cls=command, help=inspect.getdoc(function))(lambda: None)


def _by_first(function: Callable[..., Paths]) -> Callable[..., Paths]:
    @functools.wraps(function)
    def run(**settings: Any) -> Paths:
        if not mw.store.processes.is_first():
            return []
        with mw.store.processes.alone():
            return function(**settings)

    return run


class _Command(TyperCommand):
    """A command whose options are made when they are first asked for: a list of commands needs none."""

    def __init__(self, function: Callable[..., Paths], **settings: Any) -> None:
        super().__init__(**settings)
        self._function = function
        del self.params, self.callback  # so that __getattr__ is asked for them

    def __getattr__(self, name: str) -> Any:
        if name not in ("params", "callback"):
            raise AttributeError(name)
        app = typer.Typer(add_completion=False)
        app.command()(_flat(self._function))
        command = typer.main.get_command(app)
        self.params, self.callback = command.params, command.callback
        return getattr(self, name)


def _flat(function: Callable[..., Paths]) -> Callable[..., None]:
    """The function as typer reads it."""
    groups = {each.name: _group(each.annotation) for each in inspect.signature(function).parameters.values()}

    def run(**values: Any) -> None:
        settings = {
            group: make(**{name: read(values[parameter.name]) for name, (parameter, read) in options.items()})
            for group, (make, options) in groups.items()
        }
        with contextlib.ExitStack() as outputs:
            before = _outputs.set(outputs)
            try:
                if written := function(**settings):
                    print("Written: " + ", ".join(map(str, written)))
            finally:
                _outputs.reset(before)

    parameters = [parameter for _, options in groups.values() for parameter, _ in options.values()]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _group(annotation: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """How to make the settings that a parameter takes, and the options of their fields."""
    kind, *marks = get_args(annotation) or [annotation]
    defaults = next((mark for mark in marks if isinstance(mark, dict)), {})
    helps, options = _docstrings(kind), {}
    for field in fields(kind):
        setting, *notes = get_args(field.type) if hasattr(field.type, "__metadata__") else [field.type]
        declared: dict[Any, Any] = {type(note): note for note in notes}
        option = declared.get(str, f"--{field.name.replace('_', '-')}")
        reader = declared.get(Reader, Reader(setting, lambda _, value: value))
        if option != NO_OPTION and field.name not in marks:
            default = defaults.get(field.name, field.default)
            options[field.name] = _option(option, reader, default, helps[field.name])
    return functools.partial(kind, **defaults), options


def _option(option: str, reader: Reader, default: Any, text: str) -> tuple[inspect.Parameter, Callable[[Any], Any]]:
    """An option as typer reads it, and the setting from its value."""
    shown = inspect.Parameter.empty if default is MISSING else reader.show(default)
    kind = reader.kind | None if shown is None else reader.kind
    names = f"{option}/--no-{option.removeprefix('--')}" if kind == bool | None else option
    shown_as = typer.Option(names, help=text) if option.startswith("--") else typer.Argument(metavar=option, help=text)
    annotation = Annotated[kind, shown_as]
    key = option.removeprefix("--").replace("-", "_")
    parameter = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)
    return parameter, lambda value: default if value is None or value == shown else reader.read(option, value)


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under every field, in one line; that of a field with another group's default is the other's."""
    texts = {name: text for base in kind.__bases__ if base is not object for name, text in _docstrings(base).items()}
    module = sys.modules[kind.__module__]
    source = inspect.getsource(module)  # that of the class would parse all of it
    [body] = re.findall(rf"^class {kind.__name__}\b.*?(?=^\S|\Z)", source, re.DOTALL | re.MULTILINE)
    for name, group, text in _FIELD.findall(body):
        if not (text or group):
            raise TypeError(f"{kind.__name__}.{name} needs a docstring, and its default on the line of its name.")
        texts[name] = " ".join(text.split()) if text else _docstrings(getattr(module, group))[name]
    return texts


@dataclass(frozen=True)
class Run:
    """A model and where it is computed, text by language, and where results are written."""

    model: str = "demo"
    """demo, a TransformerLens or hub name, a directory, a .gguf."""
    device: str | None = None
    """cpu, cuda, mps; by default CUDA if there is one."""
    device_map: Annotated[Any, DEVICE_MAP] = None
    """auto (all GPUs), or where parts are: '*=0,model.layers.9=1'."""
    max_memory: Annotated[Any, MAX_MEMORY] = None
    """With --device-map auto, at most: 0=20GiB,1=20GiB."""
    dtype: str = "float32"
    """float32, bfloat16, float16 or float64."""
    languages: OptionalNames = None
    """BCP 47 tags with commas, e.g. en,fr."""
    corpus: str = TaskOptions.corpus
    sentences_per_passage: int = TaskOptions.sentences_per_passage
    limit: int | None = None
    """At most this many passages per language."""
    output: Path | None = None
    """A directory that is new or empty."""

    def __post_init__(self) -> None:
        mw.text.choices.require_choice("dtype", self.dtype, ("float32", "bfloat16", "float16", "float64"))

    def load_model(self) -> Any:
        """The hooked model."""
        placing = {"device": self.device, "device_map": self.device_map, "max_memory": self.max_memory}
        return mw.load_model(self.model, dtype=self.dtype, **placing)

    def load_text(self, languages: Sequence[str] | None = None, **streaming: Any) -> Any:
        """The corpus, in ``languages`` if none are set; warns of too few passages to find neurons on."""
        tags, joined = languages if self.languages is None else self.languages, self.sentences_per_passage
        return mw.load_corpus(self.corpus, languages=tags, sentences_per_passage=joined, limit=self.limit, **streaming)

    def load_prompts(self, identified_by: str, pivot: Sequence[str] = ("en",)) -> Any:
        """A few passages to read, cut after loading; an identifier must have their languages and those of ``pivot``."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: it must be at least 1.")
        corpus = replace(self, limit=None).load_text()
        mw.text.identifier(identified_by, list(dict.fromkeys([*pivot, *corpus])))
        return corpus if self.limit is None else corpus.limit(self.limit)

    def new_folder(self, name: str) -> Path:
        """The directory for results, made and tried: as set, else the first free one named after the command.

        A FileExistsError if something is there already, or another process writes there.
        """
        return self._opened(name, mw.store.require_free)

    def folder(self, name: str) -> Path:
        """The same, or one that holds the settings of a run, which is to be resumed."""
        from ..experiments.folder import require_resumable

        return self._opened(name, require_resumable)

    def _opened(self, name: str, require: Callable[[Path], Path]) -> Path:
        return Path(mw.store.processes.from_first(lambda: str(self._opened_here(name, require))))

    def _opened_here(self, name: str, require: Callable[[Path], Path]) -> Path:
        outputs = _outputs.get()
        if self.output is not None:
            return outputs.enter_context(mw.store.output_directory(require(self.output)))
        for number in itertools.count(1):
            path = Path(f"mwork-lens-{name}" + (f"-{number}" if number > 1 else ""))
            if not os.path.lexists(path):
                with contextlib.suppress(FileExistsError):  # another process has just taken it
                    return outputs.enter_context(mw.store.output_directory(path, new=True))
        raise AssertionError


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
    """Save results, tables as CSV (with an index that has names) and last the figures; returns the paths.

    What a run that was stopped has written of them is written again.
    """
    for name, result in results.items():
        result.save(folder / name, overwrite=True)
    for name, table in tables.items():
        mw.store.write_text(folder / f"{name}.csv", table.to_csv(index=table.index.name is not None))
    drawn = mw.report.write_figures({folder / name: figure() for name, figure in figures.items()})
    return [*(folder / name for name in results), *(folder / f"{name}.csv" for name in tables), *drawn]
