"""Commands from dataclasses: each field of a command's settings becomes an option, its docstring the help."""

import functools
import inspect
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args

import typer

from ..settings import NO_OPTION, Reader

_FIELD = re.compile(r'^    (\w+): (?:[^\n]*? = (\w+)\.\w+|[^\n]*)\n(?:    """(.*?)""")?', re.MULTILINE | re.DOTALL)


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: one option per field of the dataclasses that it takes.

    The default of such a parameter, an instance, has the defaults of its options; strings in its annotation name fields
    that are no options of this command.
    """
    groups = {each.name: _Group.of(each) for each in inspect.signature(command).parameters.values()}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**{name: group.read(values) for name, group in groups.items()})

    options = [setting.parameter() for group in groups.values() for setting in group.settings]
    run.__signature__ = inspect.Signature(options)  # pyright: ignore[reportAttributeAccessIssue]
    return run


@dataclass(frozen=True)
class _Setting:
    """A field, and the option that it becomes."""

    name: str
    option: str
    reader: Reader
    default: Any
    help: str

    @property
    def key(self) -> str:
        """The option as a name of Python's."""
        return self.option.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """As typer reads it."""
        default = inspect.Parameter.empty if self.default is MISSING else self.reader.show(self.default)
        kind = self.reader.kind | None if default is None else self.reader.kind
        flag = {bool: self.option, bool | None: f"{self.option}/--no-{self.option.removeprefix('--')}"}
        option = typer.Option(flag.get(kind, self.option), help=self.help)
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )

    def read(self, value: Any) -> Any:
        """The setting, from the option's value."""
        if value is None or (self.default is not MISSING and value == self.reader.show(self.default)):
            return self.default
        return self.reader.read(self.option, value)


@dataclass(frozen=True)
class _Group:
    """A parameter of a command that is a dataclass of settings."""

    kind: Any
    base: Any
    """The instance that has the defaults; None without one."""
    settings: Sequence[_Setting]

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> "_Group":
        kind, *omitted = get_args(parameter.annotation) or [parameter.annotation]
        base = None if parameter.default is inspect.Parameter.empty else parameter.default
        return cls(kind, base, [setting for setting in _settings(kind, base) if setting.name not in omitted])

    def read(self, values: Mapping[str, Any]) -> Any:
        """The dataclass, from the values of all options of the command."""
        read = {setting.name: setting.read(values[setting.key]) for setting in self.settings}
        return self.kind(**read) if self.base is None else replace(self.base, **read)


def _settings(kind: Any, base: Any) -> Iterator[_Setting]:
    helps = _docstrings(kind)
    for field in fields(kind):
        annotation, *marks = get_args(field.type) if hasattr(field.type, "__metadata__") else [field.type]
        option = next((mark for mark in marks if isinstance(mark, str)), f"--{field.name.replace('_', '-')}")
        reader = next((mark for mark in marks if isinstance(mark, Reader)), Reader(annotation, lambda _, value: value))
        default = field.default if base is None else getattr(base, field.name)
        if option != NO_OPTION:
            yield _Setting(field.name, option, reader, default, helps[field.name])


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under every field, in one line; that of a field with another group's default is the other's."""
    module = sys.modules[kind.__module__]
    bases = [_docstrings(base) for base in reversed(kind.__bases__) if base is not object]
    texts = dict(ChainMap(*bases))
    for name, group, text in _FIELD.findall(_sources(module.__file__ or "")[kind.__name__]):
        if not (text or group):
            raise TypeError(f"{kind.__name__}.{name} needs a docstring, and its default on the line of its name.")
        texts[name] = " ".join(text.split()) if text else _docstrings(getattr(module, group))[name]
    return texts


@functools.cache
def _sources(path: str) -> dict[str, str]:
    """By class: its text in a file."""
    parts = re.split(r"^(?=\S)", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.split()[1].split("(")[0].rstrip(":"): part for part in parts if part.startswith("class ")}


# --- what commands leave ---


def write(
    folder: Path,
    *,
    results: Mapping[str, Any] = MappingProxyType({}),
    tables: Mapping[str, Any] = MappingProxyType({}),
    figures: Mapping[str, Any] = MappingProxyType({}),
) -> list[Path]:
    """Save results, tables as CSV (with an index that has names) and figures under their names; returns the paths."""
    from ..report import write_figure

    for name, result in results.items():
        result.save(folder / name)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    drawn = [path for name, figure in figures.items() for path in write_figure(folder / name, figure)]
    return [*(folder / name for name in results), *(folder / f"{name}.csv" for name in tables), *drawn]


def print_written(paths: Sequence[Path]) -> None:
    """The last line of every command."""
    print("Written: " + ", ".join(map(str, paths)))
