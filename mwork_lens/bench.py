"""What detection costs, side by side in one run: bare forward pass, ours, the paper's form, one neuron at a time."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from .measures import Measure, Receive, Selection, SiteScores, exact, parallel, score_hooks
from .model import HookedModel, Running, batches, device_of, dtype_of, encode, run_blocks, stream
from .neurons import NeuronSet, NeuronSpace, ablate
from .text import Document, as_corpus

LENGTHS = (64, 128, 256, 512, 1024)
SEQUENTIAL_SAMPLE = 3


@dataclass(frozen=True)
class Benchmark:
    """Times and peak memory by method and length."""

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a length and method: seconds a document, its ratio to the bare forward pass, MB above that pass.

        ``as_dense``: the share of active neurons that exact scores make active too, where it was compared.
        """
        return pd.DataFrame(list(self.rows))

    def table(self, value: str = "ratio") -> pd.DataFrame:
        """One column of :meth:`to_frame`, methods by length; missing where a method was left out."""
        return self.to_frame().pivot(index="method", columns="tokens", values=value).reindex(list(METHODS))


def benchmark(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    lengths: Sequence[int] = LENGTHS,
    parallel_up_to: int = 128,
    top: float = 0.2,
    repeats: int = 3,
    progress: bool = True,
) -> Benchmark:
    """Time one document of each language at each length; the median over repeats and languages is reported.

    Methods take turns, so that a machine's moods reach all of them. On each of these documents the active neurons are
    compared with those of exact scores of every neuron.

    What depends on weights only (a measure's set-up, once a run) is done before the clock starts.

    Args:
        model: a hooked model.
        corpus: texts by language; each language's are joined until they are long enough.
        lengths: tokens of a document.
        parallel_up_to: longest document on which the paper's form is run; it and exact scores of every neuron run once.
        top: the fraction that decides which neurons are refined.
        repeats: runs of each.
        progress: whether to show a bar.

    Raises:
        ValueError: for a length above the model's context, or too little text.
    """
    given = as_corpus(corpus)
    too_long = [length for length in lengths if length > model.cfg.n_ctx]
    if too_long:
        raise ValueError(f"length {too_long[0]} is above {model.cfg.model_name}'s context of {model.cfg.n_ctx}.")
    joined = {language: joined_text(model, given[language], language, max(lengths)) for language in given}
    measures = {"forward": None, "stream": exact("stream"), "structure": exact("structure"), "parallel": parallel}
    bound = {name: _bound(model, measure) for name, measure in measures.items()}
    selection = Selection(top=top)
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(lengths), unit="length", disable=not progress)
    for length in lengths:
        documents = [ids[:length] for ids in joined.values()]
        runs = {
            name: _runner(model, bound[name], selection, screen=True) for name in ("forward", "stream", "structure")
        }
        once = {"dense": _runner(model, bound["stream"], selection, screen=False)}
        if length <= parallel_up_to:
            once["parallel"] = _runner(model, bound["parallel"], selection, screen=False)
        timed = {**_measured(runs, documents, repeats), **_measured(once, documents, 1)}
        same = _as_dense(model, bound, [name for name in timed if name in bound], documents, selection)
        timed["sequential"] = (_sequential_seconds(model, documents[0]), math.nan)
        forward_seconds, forward_memory = timed["forward"]
        for name, (seconds, memory) in timed.items():
            rows.append(
                {
                    "tokens": length,
                    "method": METHODS_BY_KEY[name],
                    "seconds": seconds,
                    "ratio": seconds / forward_seconds,
                    "megabytes_above_forward": max(0.0, memory - forward_memory) if memory == memory else math.nan,
                    "as_dense": same.get(name, math.nan),
                }
            )
        bar.update()
    bar.close()
    settings = {
        "model": str(model.cfg.model_name),
        "device": str(device_of(model)),
        "dtype": str(dtype_of(model)),
        "threads": torch.get_num_threads(),
        "top": top,
        "repeats": repeats,
        "corpus": given.describe(),
    }
    return Benchmark(rows, settings)


METHODS_BY_KEY = {
    "forward": "bare forward",
    "stream": "ours (change in the stream)",
    "structure": "ours (measure='structure')",
    "dense": "every score exact",
    "parallel": "paper's parallel form",
    "sequential": "one neuron at a time (extrapolated)",
}
METHODS = tuple(METHODS_BY_KEY.values())


def joined_text(model: HookedModel, texts: Sequence[Document], language: str, needed: int) -> Int[Tensor, " pos"]:
    """Texts end to end as token ids, at least ``needed`` of them."""
    parts = encode(model, texts, [language] * len(texts), model.cfg.n_ctx)
    # one start token only, where there is one
    ids = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
    if len(ids) < needed:
        raise ValueError(f"The {language!r} text has {len(ids)} tokens, too few for a document of {needed}.")
    return ids


def _bound(model: HookedModel, measure: Measure | None) -> list:
    return [] if measure is None else [measure(model, layer) for layer in range(model.cfg.n_layers)]


def _runner(
    model: HookedModel, layers: list, selection: Selection, screen: bool, receive: Receive = lambda *_: None
) -> Callable[[Tensor], None]:
    def run(ids: Tensor) -> None:
        running = Running()
        hooks = score_hooks(layers, running, receive, selection if screen else None)
        for _ in stream(model, batches(model, [ids]), hooks, running):
            pass

    return run


def _as_dense(
    model: HookedModel,
    bound: Mapping[str, list],
    names: Sequence[str],
    documents: Sequence[Tensor],
    selection: Selection,
) -> dict[str, float]:
    """By method: the share of its active neurons that are active by exact scores (the paper's: of structures)."""

    def active(name: str, screen: bool) -> Tensor:
        found: dict[tuple[int, int, str], Tensor] = {}
        for number, ids in enumerate(documents):

            def receive(layer: int, scores: SiteScores, _: object, number: int = number) -> None:
                for site, values in scores.items():
                    found[number, layer, site] = selection.active(values[0][None]).cpu()

            _runner(model, bound[name], selection, screen=screen, receive=receive)(ids)
        return torch.cat([found[key].flatten() for key in sorted(found)])

    exact_sets = {name: active(name, screen=False) for name in ("stream", "structure")}
    shares = {}
    for name in names:
        if name != "forward":
            mask, truth = active(name, screen=True), exact_sets["stream" if name == "stream" else "structure"]
            shares[name] = ((mask & truth).sum() / mask.sum()).item()
    return shares


def _measured(
    runs: Mapping[str, Callable[[Tensor], None]], documents: Sequence[Tensor], repeats: int
) -> dict[str, tuple[float, float]]:
    """By method: median seconds a document, and peak memory in MB."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory = {}
    for name, run in runs.items():
        run(documents[0])  # compiles
        with PeakMemory() as peak:
            run(documents[0])
        memory[name] = peak.megabytes
    for _ in range(repeats):
        for ids in documents:
            for name, run in runs.items():
                with Seconds() as taken:
                    run(ids)
                seconds[name].append(taken.seconds)
    return {name: (sorted(taken)[len(taken) // 2], memory[name]) for name, taken in seconds.items()}


@torch.inference_mode()
def _sequential_seconds(model: HookedModel, ids: Tensor) -> float:
    """All neurons one by one, extrapolated from a few."""
    space = NeuronSpace.of(model)
    (batch,) = batches(model, [ids])
    with Seconds() as taken:
        for neuron in range(SEQUENTIAL_SAMPLE):
            with ablate(model, NeuronSet.from_list(space, [(0, "q", neuron)])):
                run_blocks(model, batch.tokens)
    return taken.seconds / SEQUENTIAL_SAMPLE * space.total


class Seconds:
    """How long the block takes, on CUDA until the device has done it (by events)."""

    seconds = math.nan

    def __enter__(self) -> "Seconds":
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if torch.cuda.is_initialized() else []
        if self._events:
            self._events[0].record()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._events:
            start, end = self._events
            end.record()
            end.synchronize()
            self.seconds = start.elapsed_time(end) / 1000


class PeakMemory:
    """The highest memory of this process (CPU, sampled, Linux only) or of CUDA's allocator within the block."""

    megabytes = math.nan

    def __enter__(self) -> "PeakMemory":
        self._stop, self._highest = threading.Event(), 0
        self._cuda, self._statm = torch.cuda.is_initialized(), Path("/proc/self/statm")
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._cuda and self._statm.exists() and not self._stop.wait(0.002):
            self._highest = max(self._highest, int(self._statm.read_text().split()[1]) * 4096)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        highest = torch.cuda.max_memory_allocated() if self._cuda else self._highest
        self.megabytes = highest / 2**20 if highest else math.nan
