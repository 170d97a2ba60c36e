import subprocess
import sys

import pytest


def test_killed_runs_end_in_the_same_bits_and_leave_nothing():
    """A few of the kills of ``tests/benchmarks/kills.py``."""
    pytest.importorskip("transformer_lens.HookedTransformer", reason="TransformerLens 4 has no HookedTransformer")
    command = [sys.executable, "-m", "tests.benchmarks.kills", "detect", "1", "effects", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all of the same bits; nothing was left") == 2
