"""Passages dealt out to parts: whole documents, or a few from each."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

Deal = Callable[[Mapping[str, int]], Mapping[str, int] | None]
"""From documents in random order, with how many passages each has, to the part of each; None if they are too few."""


def turns(names: Sequence[str]) -> list[int]:
    """For each passage, how many passages of its document came before it."""
    counters: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return [next(counters[name]) for name in names]


def spread(documents: Sequence[str], number: int | None) -> list[int]:
    """Positions of ``number`` passages (None: all), from as many of their documents as possible, in order."""
    if number is not None and number < 1:
        raise ValueError(f"limit={number}: it must be at least 1.")
    order = sorted((turn, i) for i, turn in enumerate(turns(documents)))
    return sorted(i for _, i in order[:number])


def in_turn(documents: Mapping[str, int], sizes: Sequence[int]) -> dict[str, int] | None:
    """The last documents to the first part until it has its size, and so on."""
    part_of, left = {}, list(documents)
    for part, missing in enumerate(sizes):
        while missing > 0:
            if not left:
                return None
            name = left.pop()
            part_of[name] = part
            missing -= documents[name]
    return part_of


def by_share(documents: Mapping[str, int], held_out: float) -> dict[str, int]:
    """The first documents to part 1, which is held out; at least one to each part."""
    part_of, held, total = dict.fromkeys(documents, 0), 0, sum(documents.values())
    for name in list(documents)[:-1]:
        if held and held + documents[name] / 2 > held_out * total:
            break
        part_of[name] = 1
        held += documents[name]
    return part_of


def evenly(documents: Mapping[str, int], number: int) -> dict[str, int]:
    """Each document to the part with the fewest passages."""
    sizes, part_of = [0] * number, {}
    for name, size in documents.items():
        part_of[name] = sizes.index(min(sizes))
        sizes[part_of[name]] += size
    return part_of
