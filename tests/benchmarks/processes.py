"""Two processes of torchrun against one: ``python -m tests.benchmarks.processes bits 20 speed 5``.

``bits N``: in each of N runs one of two processes is killed with SIGKILL, once or twice, at moments drawn from the time
that a whole run takes; torchrun starts both again. Results are those of one process, to the last bit, and nothing else
is left. ``speed N``: documents per second of two processes of one thread over those of one of one thread, N times each
by turns, as medians.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

import mwork_lens as mw
from mwork_lens.experiments.folder import load_or_run
from mwork_lens.model.tally import SECONDS
from mwork_lens.store import digest, processes

from ..made_up import LABELS
from ..tiny import some_neurons, tiny, tokens

OPTIONS = {"batch_size": 2, "progress": False}
CORPUS = {
    tag: [tokens(2 + (7 * i + j) % 40, i * 99 + j) for j in range(60)] for i, tag in enumerate(("en", "fr", "th"))
}
KINDS: dict[str, Any] = {"detect": mw.Detection, "effects": mw.EffectMatrix, "ratio": mw.LanguageRatio}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "99"]
WORK = ["-m", "tests.benchmarks.processes"]


def work(place: Path) -> None:
    """What each process does: three results at a place."""
    model = tiny("gemma3", torch.float32)
    sets = {"fr": some_neurons(model), "control": [some_neurons(model, 0.2, seed) for seed in (1, 2)]}
    reading = {"languages": ["en", "fr"], "token_languages": LABELS, "directions": 4, **OPTIONS}
    load_or_run(place / "detect", mw.Detection, mw.detect, model, CORPUS, **OPTIONS)
    load_or_run(place / "effects", mw.EffectMatrix, mw.effect_matrix, model, sets, CORPUS, **OPTIONS)
    load_or_run(place / "ratio", mw.LanguageRatio, mw.language_ratio, model, CORPUS, **reading)


def timed(place: Path) -> None:
    """Detect; the first process writes how many documents per second that were."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 6, "d_model": 256, "n_heads": 4, "d_head": 64, "d_mlp": 1024, "d_vocab": 50, "n_ctx": 256}
    cfg = HookedTransformerConfig(**shape, act_fn="silu", normalization_type="RMS", seed=0, device="cpu")
    model, corpus = HookedTransformer(cfg), {tag: [tokens(100 + i, i) for i in range(128)] for tag in ("en", "fr")}
    mw.check_scores(model)
    processes.wait_for_all()
    start = time.perf_counter()
    detection = mw.detect(model, corpus, verify=False, batch_size=8, progress=False)
    if processes.is_first():
        place.write_text(str(sum(detection.documents.values()) / (time.perf_counter() - start)))


@contextmanager
def launched(command: str, place: Path, two: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Processes that do something, of one thread each."""
    start = LAUNCH if two else [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", SECONDS: "0"}
    with subprocess.Popen([*start, *WORK, command, str(place)], env=environment, stderr=subprocess.PIPE) as process:
        yield process
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())


def kill_one(process: subprocess.Popen[bytes], seconds: float, draw: random.Random) -> bool:
    """Kill one of the two within so many seconds, if they have not ended by then."""
    while process.poll() is None and len(workers := psutil.Process(process.pid).children()) < 2:
        time.sleep(0.05)
    time.sleep(draw.uniform(0, seconds))
    if process.poll() is not None or not (workers := psutil.Process(process.pid).children()):
        return False
    draw.choice(workers).kill()
    psutil.wait_procs(workers, timeout=60)  # torchrun ends the other one before it starts both again
    return True


def digests(place: Path) -> dict[str, str]:
    """Of the results at a place, which has nothing else."""
    assert sorted(entry.name for entry in place.iterdir()) == sorted(KINDS), sorted(place.rglob("*"))
    return {name: digest(kind.load(place / name)) for name, kind in KINDS.items()}


def bits(runs: int) -> None:
    """Compare so many killed runs with one of one process that nothing stopped."""
    draw, kills = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        with launched("work", Path(folder, "one"), two=False):
            pass
        start, expected = time.perf_counter(), digests(Path(folder, "one"))
        with launched("work", Path(folder, "two"), two=True):
            pass
        seconds = time.perf_counter() - start
        assert digests(Path(folder, "two")) == expected
        for run in range(runs):
            place, killed = Path(folder, f"run-{run}"), 0
            while not killed:  # one that was over before counts for nothing
                with launched("work", place, two=True) as process:
                    for _ in range(draw.choice((1, 1, 2))):
                        killed += kill_one(process, seconds, draw)
                assert digests(place) == expected, place
                place, kills = place.with_name(f"{place.name}-again"), kills + killed
    print(f"bits: {runs} runs of {seconds:.1f} s, {kills} kills, all as one process; nothing was left.")


def speed(times: int) -> None:
    """Compare the documents per second."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for two in [False, True] * times:
            with launched("timed", Path(folder, "rate"), two=two):
                pass
            rates[two].append(float(Path(folder, "rate").read_text()))
    one, two = (statistics.median(rates[each]) for each in (False, True))
    print(f"speed: {one:.2f} documents per second by one process, {two:.2f} by two: {two / one:.2f} times.")


def main(arguments: Sequence[str]) -> None:
    """Measurements, each with its number; or the work of one process and its place."""
    warnings.simplefilter("ignore")
    for name, argument in zip(arguments[::2], arguments[1::2], strict=True):
        if name in ("work", "timed"):
            {"work": work, "timed": timed}[name](Path(argument))
        else:
            {"bits": bits, "speed": speed}[name](int(argument))


if __name__ == "__main__":
    main(sys.argv[1:])
