"""Time of the language ratio over that of the bare products ``h @ W_U`` for the same states, in one run.

Not a test (timings do not belong into a test run). Alone on the machine: ``python tests/benchmarks/language_ratio.py``.
"""

import argparse
import statistics
import time

import torch

import mwork_lens as mw
from mwork_lens.lens.decoding import Lens
from mwork_lens.model import stream_states
from mwork_lens.model.forward import encode


def seconds(run, device: str) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Median over repeats, each method in turn within every repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = mw.load_model(options.model, device=options.device, dtype=options.dtype)
    labels = mw.label_vocabulary(model, ["en", "fr"])
    texts = mw.load_corpus("demo", languages=["fr"])["fr"]
    (ids,) = encode(model, [" ".join(texts)], ["text"], options.states)
    states = stream_states(model, ids)[model.cfg.n_layers // 2]
    bare = model.unembed.W_U
    runs = {
        "h @ W_U": lambda: states @ bare,
        "h @ W_U and torch.topk, k = 10": lambda: (states @ bare).topk(10),
        **{f"top {k} by language": lambda k=k: Lens(model, labels, (), k, "count", True)(states) for k in (1, 10, 100)},
        "mass by language": lambda: Lens(model, labels, (), 1, "mass", True)(states),
    }
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(options.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, options.device))
    floor = statistics.median(times["h @ W_U"])
    print(
        f"{model.cfg.model_name}, {options.device}, {options.dtype}, {len(states)} states, "
        f"{torch.get_num_threads()} threads"
    )
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:32} {median / len(states) * 1e3:7.2f} ms a state {median / floor:6.2f} times the bare products")


if __name__ == "__main__":
    main()
