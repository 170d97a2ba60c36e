"""Parts of a plan for processes that know nothing of each other, and the order in which their results are put together.

A part takes whole batches of the plan of the whole corpus, so that all parts together have the bits of one run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ..store import digest
from .forward import Plan


class Part(TypedDict):
    """What a result of a part says of it in its settings, as ``part``."""

    shard: Sequence[int]
    """Which it is, from 0, and of how many."""
    plan: str
    """The hash of the plan of the whole."""
    rows: Mapping[str, Sequence[int]]
    """By language, the places of its passages in the corpus."""
    made_of: NotRequired[str]
    """The identity of what was measured, where the settings do not have all of it."""


def part_of(plan: Plan, shard: tuple[int, int]) -> tuple[Plan, Part]:
    """The batches of one part, every ``of``-th of the plan, and what its result says of it.

    Raises:
        ValueError: for a part that does not exist, or in which there is no batch.
    """
    number, of = shard
    if not 0 <= number < of:
        raise ValueError(f"shard={number}/{of}: parts are (0, {of}) to ({of - 1}, {of}), of at least one.")
    if number >= len(plan):
        raise ValueError(
            f"shard={number}/{of}: the corpus has {len(plan)} batches only: ask for at most so many parts."
        )
    part = replace(plan, elsewhere=frozenset(range(len(plan))) - frozenset(range(number, len(plan), of)))
    rows = {language: [] for language, _ in plan.groups}
    for language, documents in plan.groups[number::of]:
        rows[language].extend(documents)
    kept = {language: sorted(places) for language, places in rows.items() if places}
    return part, {"shard": [number, of], "plan": plan.hash, "rows": kept}


def by_name(parts: Iterable[Any] | Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Results that are to be merged, by what messages call them."""
    if isinstance(parts, Mapping):
        return dict(parts)
    return {f"{kind} {number}": part for number, part in enumerate(parts)}


def shown_part(settings: Mapping[str, Any]) -> str:
    """Which part a result is, before what else is shown of it; empty for a whole."""
    return "part {}/{}; ".format(*settings["part"]["shard"]) if "part" in settings else ""


def without_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the whole, of which these are a part's."""
    return {name: value for name, value in settings.items() if name != "part"}


def in_place(parts: Sequence[Mapping[str, Any]], language: str, values: Sequence[Any], axis: int = 0) -> Any:
    """What parts have of each passage of a language, in the order of the corpus.

    Args:
        parts: the settings of all parts.
        language: whose passages.
        values: a tensor or a sequence of each of those parts that have any.
        axis: of passages, in tensors.
    """
    rows = [row for settings in parts for row in settings["part"]["rows"].get(language, ())]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    if isinstance(values[0], Tensor):
        return torch.cat([*values], axis).index_select(axis, torch.tensor(order))
    every = [*chain(*values)]
    return [every[place] for place in order]


def in_order(
    settings: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Mapping[str, Sequence[str]]] | None = None
) -> list[str]:
    """The names of results that make one whole, in an order that does not depend on how they were given.

    Args:
        settings: of each result, by its name; all but ``corpus`` and ``part`` must be the same.
        documents: of each, the hashes of its documents by language; None where only parts of one plan make a whole.

    Raises:
        ValueError: naming the results, where settings differ, parts of one plan are missing, there twice or of another
            plan, or (where they are not such parts) a document is in two.
    """
    if not settings:
        raise ValueError("There is nothing to merge: give at least one result.")
    require_same_settings(settings)
    parts = {name: each["part"] for name, each in settings.items() if "part" in each}
    if not parts and documents is None:
        raise ValueError(f"{next(iter(settings))} is not a part of a corpus: only what was made with shard= is merged.")
    if not parts and documents is not None:
        _require_disjoint(documents)
        return sorted(documents, key=lambda name: digest({tag: list(each) for tag, each in documents[name].items()}))
    if foreign := [name for name in settings if name not in parts]:
        raise ValueError(f"{foreign[0]} is not a part of --shard, as {next(iter(parts))} is.")
    first, whole = next((name, (part["plan"], part["shard"][1])) for name, part in parts.items())
    for name, part in parts.items():
        if (part["plan"], part["shard"][1]) != whole:
            raise ValueError(f"{name} is part {_shown(part)}, and {first} is part {_shown(parts[first])}.")
        if part.get("made_of") != parts[first].get("made_of"):
            raise ValueError(f"{name} is of other sets or options than {first}.")
    numbers = {name: part["shard"][0] for name, part in parts.items()}
    if twice := [number for number, times in Counter(numbers.values()).items() if times > 1]:
        both = " and ".join(name for name, number in numbers.items() if number == twice[0])
        raise ValueError(f"Part {twice[0]}/{whole[1]} is there twice: {both}.")
    if missing := [f"{number}/{whole[1]}" for number in range(whole[1]) if number not in numbers.values()]:
        raise ValueError(f"Of {whole[1]} parts {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing.")
    return sorted(numbers, key=numbers.__getitem__)


def _shown(part: Part) -> str:
    number, of = part["shard"]
    return f"{number}/{of} of the plan {part['plan']}"


def require_same_settings(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """A ValueError for the first entry, but for ``corpus`` and ``part``, in which two of these records differ."""
    (first, ours), *others = settings.items()
    for name, theirs in others:
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in ("corpus", "part") and ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{first} was made with {key}={ours.get(key)!r:.80}, {name} with {theirs.get(key)!r:.80}."
                )


def _require_disjoint(documents: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    for (one, ours), (other, theirs) in combinations(documents.items(), 2):
        for language, hashes in ours.items():
            if common := {*hashes} & {*theirs.get(language, ())}:
                raise ValueError(f"Document {min(common)} of {language!r} is both in {one} and in {other}.")
