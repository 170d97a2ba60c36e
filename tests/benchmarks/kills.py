"""Runs killed with SIGKILL at random moments end in the same bits: ``python -m tests.benchmarks.kills detect 50``.

Each run is a process that is killed again and again, at moments drawn from the time that a whole run takes (so also
while it writes), until one of its kind reaches the end; its folder then holds the result and nothing else. The kills of
``N`` runs are counted and shown.
"""

import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import mwork_lens as mw
from mwork_lens.experiments.folder import load_or_run
from mwork_lens.model.tally import SECONDS
from mwork_lens.store import digest

from ..tiny import some_neurons, tiny, tokens

OPTIONS = {"batch_size": 2, "progress": False}
CORPUS = {
    tag: [tokens(2 + (7 * i + j) % 40, i * 99 + j) for j in range(60)] for i, tag in enumerate(("en", "fr", "th"))
}


def detect(path: Path, model: Any) -> None:
    """A detection at ``path``."""
    load_or_run(path, mw.Detection, mw.detect, model, CORPUS, verify=False, **OPTIONS)


def effects(path: Path, model: Any) -> None:
    """An effect matrix of a set and two draws of a control at ``path``."""
    sets = {"fr": some_neurons(model), "control": [some_neurons(model, 0.2, seed) for seed in (1, 2)]}
    load_or_run(path, mw.EffectMatrix, mw.effect_matrix, model, sets, CORPUS, **OPTIONS)


KINDS: dict[str, tuple[Any, Callable[[Path, Any], None]]] = {
    "detect": (mw.Detection, detect),
    "effects": (mw.EffectMatrix, effects),
}


def in_a_process(act: Callable[[], None]) -> int:
    """The number of a forked process that does something and ends."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return number


def ended(number: int) -> bool:
    """Whether a process ended by itself, and not by a signal; an error of its own is one here."""
    _, status = os.waitpid(number, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed")
    return os.WIFEXITED(status)


def killed_run(act: Callable[[Path], None], folder: Path, seconds: float, draw: random.Random) -> int:
    """Run until the end is reached; how many processes were killed on the way, at least one."""
    for kills in range(10_000):
        number = in_a_process(lambda: act(folder / "result"))
        # the first is killed in any case, later ones are let go more and more often
        wait = draw.uniform(0, seconds) * (1 if kills == 0 else 1.2)
        time.sleep(wait)
        os.kill(number, signal.SIGKILL)
        if ended(number) and kills:
            return kills
        if [*folder.rglob(".*")]:
            time.sleep(2.1)  # as no process that has to import first begins sooner
    raise RuntimeError("no run reached the end")


def compare(kind: str, runs: int, model: Any, draw: random.Random) -> None:
    """Compare so many runs with one that nothing stopped."""
    result, make = KINDS[kind]
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        assert ended(in_a_process(lambda: make(Path(place, "whole", "result"), model)))
        seconds, expected = time.perf_counter() - start, digest(result.load(Path(place, "whole", "result")))
        kills = []
        for run in range(runs):
            folder = Path(place, f"run-{run}")
            kills.append(killed_run(lambda path: make(path, model), folder, seconds, draw))
            assert [entry.name for entry in folder.iterdir()] == ["result"], sorted(folder.rglob("*"))
            assert digest(result.load(folder / "result")) == expected, folder
    print(f"{kind}: {runs} runs of {seconds:.1f} s, killed {sum(kills)} times, all of the same bits; nothing was left.")


def main(arguments: Sequence[str]) -> None:
    """Kinds, each with its number of runs."""
    warnings.simplefilter("ignore")
    os.environ[SECONDS] = "0"
    torch.set_num_threads(1)
    model, draw = tiny("gemma3", torch.float32), random.Random(0)
    for kind, runs in zip(arguments[::2], arguments[1::2], strict=True):
        compare(kind, int(runs), model, draw)


if __name__ == "__main__":
    main(sys.argv[1:])
