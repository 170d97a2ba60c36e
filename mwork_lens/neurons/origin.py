"""Where a set of neurons comes from: a record with typed fields that is also a mapping."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

from ..store import storable

Operation = Literal["and", "or", "xor", "minus", "not"]


@storable
@dataclass(frozen=True, eq=False)
class Origin(Mapping[str, Any]):
    """The history of a set. Also a mapping of what is recorded: ``origin["quorum"]``, ``dict(origin)``.

    The result of set algebra records its ``operation`` and the ``operands``' origins (in the mapping
    ``{"minus": [name, name]}``).
    """

    language: str | None = None
    """Whose neurons they are."""
    kind: str | None = None
    """How they were chosen, e.g. ``specific``."""
    against: Sequence[str] | None = None
    """The languages whose neurons were taken out."""
    against_kind: str | None = None
    quorum: float | int | None = None
    """Share of the language's documents on which a neuron is active."""
    against_quorum: float | int | None = None
    seed: int | None = None
    operation: Operation | None = None
    operands: tuple["Origin | str", ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, e.g. ``top``, ``layers``, ``source``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "more", MappingProxyType(dict(self.more)))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Origin":
        """A mapping as an origin; an origin as it is."""
        return record if isinstance(record, Origin) else cls() | record

    def __or__(self, record: Mapping[str, Any]) -> "Origin":
        """This origin with further entries, or other ones."""
        typed = {key: value for key, value in record.items() if key in _TYPED}
        for word in (word for word in get_args(Operation) if word in record):
            operands = record[word] if word != "not" else [record[word]]
            typed |= {"operation": word, "operands": tuple(operands)}
        rest = {key: value for key, value in record.items() if key not in (*_TYPED, *get_args(Operation))}
        return replace(self, **typed, more={**self.more, **rest})

    @cached_property
    def _record(self) -> dict[str, Any]:
        typed = {name: value for name in _TYPED if (value := getattr(self, name)) is not None}
        names = [_name(operand) for operand in self.operands]
        algebra = {self.operation: names[0] if self.operation == "not" else names} if self.operation else {}
        return {**typed, **algebra, **self.more}

    def __getitem__(self, key: str) -> Any:
        return self._record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, part.name) for part in fields(self))
        return Origin, tuple(dict(value) if isinstance(value, MappingProxyType) else value for value in values)

    @property
    def name(self) -> str:
        """A short name for a set of this origin."""
        if self.language is not None:
            name = f"{self.language} {self.kind or ''}".strip()
            return f"{name} (against {', '.join(self.against)})" if self.against else name
        if self.operation is None:
            return self.kind or "neurons"
        names = [_name(operand) for operand in self.operands]
        return f"not {names[0]}" if self.operation == "not" else f"({f' {self.operation} '.join(names)})"


_TYPED = ("language", "kind", "against", "against_kind", "quorum", "against_quorum", "seed")


def _name(operand: Origin | str) -> str:
    return operand.name if isinstance(operand, Origin) else operand
