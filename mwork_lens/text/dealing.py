"""Passages dealt out to parts: whole documents, or a few from each."""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

Deal = Callable[[Mapping[str, int]], Mapping[str, int] | None]
"""From documents in random order, with how many passages each has, to the part of each; None if they are too few."""


def turns(names: Sequence[str]) -> list[int]:
    """For each passage, how many passages of its document came before it."""
    counters: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return [next(counters[name]) for name in names]


def spread(documents: Sequence[str], number: int | None, seed: int | None = None) -> list[int]:
    """Positions of ``number`` passages (None: all), from as many of their documents as possible, in order.

    Of a document the first ones, or with a seed some at random: the same ones wherever documents are cut alike.
    """
    if number is not None and number < 1:
        raise ValueError(f"limit={number}: it must be at least 1.")
    ranks = turns(documents) if seed is None else _drawn_turns(documents, seed)
    order = sorted((rank, i) for i, rank in enumerate(ranks))
    return sorted(i for _, i in order[:number])


def _drawn_turns(documents: Sequence[str], seed: int) -> list[int]:
    """For each passage, its place in a random order of its document's passages."""
    generator, sizes = random.Random(int(seed)), Counter(documents)
    drawn = {name: generator.sample(range(size), size) for name, size in sizes.items()}
    return [drawn[name][turn] for name, turn in zip(documents, turns(documents), strict=True)]


def spread_over(documents: Mapping[str, int], sizes: Sequence[int]) -> dict[str, int] | None:
    """Parts with so many passages at least, of up to as many documents as passages; smaller parts come first.

    So that the others keep as many as possible, the largest part takes the longest documents.
    """
    part_of = _as_few_as_do(documents, sizes)
    if part_of is None:
        return None
    taken = Counter(part_of.values())
    for name in (name for name in documents if name not in part_of):
        lacking = [part for part, size in enumerate(sizes) if taken[part] < size]
        if lacking:
            part_of[name] = min(lacking, key=lambda part: (sizes[part], taken[part]))
            taken[part_of[name]] += 1
    return part_of


def _as_few_as_do(documents: Mapping[str, int], sizes: Sequence[int]) -> dict[str, int] | None:
    """To each part, the largest first, the longest documents that do not exceed what it lacks, or the next longer."""
    part_of: dict[str, int] = {}
    left = sorted(documents, key=lambda name: documents[name])
    for part in sorted(range(len(sizes)), key=lambda part: -sizes[part]):
        missing = sizes[part]
        while missing > 0:
            if not left:
                return None
            enough = next((i for i, name in enumerate(left) if documents[name] >= missing), len(left) - 1)
            name = left.pop(enough)
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
