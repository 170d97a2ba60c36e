"""Whole batches of a plan dealt out to the processes that run it together, with about the same to do for each."""

from collections.abc import Sequence
from dataclasses import replace

from .forward import Plan


def dealt(costs: Sequence[int], of: int, first: int = 0) -> list[list[int]]:
    """The places of pieces of work by process, the most costly dealt first, each to who has the least to do yet.

    Of processes with as much to do ``first`` comes first, so that one row of work after another begins elsewhere.
    """
    shares: list[list[int]] = [[] for _ in range(of)]
    loads = [0] * of
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        process = min(range(of), key=lambda process: (loads[process], (process - first) % of))
        shares[process].append(place)
        loads[process] += costs[place]
    return [sorted(share) for share in shares]


def share_of(plan: Plan, process: int, of: int, first: int = 0) -> Plan:
    """The same plan, of whose batches that are left all but one process's run elsewhere."""
    left = plan.left
    mine = {left[place] for place in dealt([plan.cost(number) for number in left], of, first)[process]}
    return replace(plan, elsewhere=plan.elsewhere | (frozenset(left) - mine))
