"""Peak memory of detection on N and on 100 N streamed passages: ``python -m tests.benchmarks.streaming 200``.

Each is a process of its own that streams a file of short passages through a tiny model. The ratio of their peaks shows
whether memory grows with the text: all that is kept of a passage are two hashes, of its tokens and of its text.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import mwork_lens as mw

from ..tiny import spelled

WINDOW = 100
"""Passages; at least two windows are read of either text, so that both hold as many in memory."""


def write(path: Path, passages: int) -> None:
    """A file of passages of four to nine letters."""
    draw = random.Random(0)
    with path.open("w") as file:
        file.writelines(" ".join(draw.choices("abcdefgh", k=draw.randint(4, 9))) + "\n" for _ in range(passages))


def measure(path: Path) -> None:
    """Print passages, mebibytes at the peak and seconds of this process."""
    start = time.perf_counter()
    stream = mw.load_corpus(path, streaming=True, window=WINDOW)
    model = spelled("llama", dtype=torch.float32)
    detection = mw.detect(model, stream, layers=[0], verify=False, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(detection.documents["fr"], f"{peak:.1f}", f"{time.perf_counter() - start:.1f}")


def main(passages: int) -> None:
    """Measure both, and show their ratio."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 100):
            write(path := Path(folder) / "fr.txt", passages * times)
            call = [sys.executable, "-m", "tests.benchmarks.streaming", str(path)]
            read, peak, seconds = subprocess.check_output(call, text=True).split()
            print(f"{read} passages, {path.stat().st_size / 2**20:.2f} MiB of text: {peak} MiB, {seconds} s")
            peaks.append(float(peak))
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    given = sys.argv[1]
    main(int(given)) if given.isdigit() else measure(Path(given))
