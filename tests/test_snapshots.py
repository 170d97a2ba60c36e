"""Public names, the command line and integer results are as they were written by ``python -m tests.snapshots``."""

import pytest

from . import snapshots


def test_public_names_and_signatures():
    assert snapshots.public() == snapshots.read("public")


def test_commands_have_the_same_options():
    assert snapshots.options() == snapshots.read("options")


@pytest.mark.parametrize("family", snapshots.FAMILIES)
@pytest.mark.parametrize("name", snapshots.DETECTIONS)
def test_counts_sets_and_controls(family, name):
    assert snapshots.counted(family, name) == snapshots.read("counts")[f"{family}, {name}"]
