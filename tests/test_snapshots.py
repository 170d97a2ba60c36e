"""Public names, the command line and integer results are as they were written by ``python -m tests.snapshots``."""

from collections.abc import Iterator
from typing import Any

import pytest

import mwork_lens as mw

from . import snapshots


def changes(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """What is gone or differs; what was added changes nothing for those who use the rest."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from changes(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        yield from (f"{path}: {item!r} is gone" for item in before if item not in after)
    elif before != after:
        yield f"{path}: {before!r} became {after!r}"


def test_public_names_and_signatures():
    assert not list(changes(snapshots.read("public"), snapshots.public()))


def test_a_star_import_gives_the_public_names_and_no_modules():
    names: dict[str, Any] = {}
    exec("from mwork_lens import *", names)
    assert {name for name in names if not name.startswith("__")} == set(mw.public.__all__)


def test_commands_have_the_same_options():
    assert not list(changes(snapshots.read("options"), snapshots.options()))


@pytest.mark.parametrize("family", snapshots.FAMILIES)
@pytest.mark.parametrize("name", snapshots.DETECTIONS)
def test_counts_sets_and_controls(family, name):
    assert snapshots.counted(family, name) == snapshots.read("counts")[f"{family}, {name}"]
