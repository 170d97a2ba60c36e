"""What detection and tuning cost, compared in one run with the bare forward pass and with tuning all parameters."""

import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median_high
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from .detection import cut_to_size
from .measures import LayerMeasure, Receive, Selection, SiteScores, exact, parallel, score_hooks
from .model import HookedModel, Running, batches, device_of, dtype_of, encode, run_blocks, stream
from .neurons import NeuronSet, NeuronSpace, ablate
from .text import Document, as_corpus
from .tuning import kept_weights, tune

LENGTHS = (64, 128, 256, 512, 1024)
SEQUENTIAL_SAMPLE = 3
METHODS_BY_KEY = {
    "forward": "bare forward",
    "stream": "ours (change in the stream)",
    "structure": "ours (measure='structure')",
    "dense": "every score exact",
    "parallel": "paper's parallel form",
    "sequential": "one neuron at a time (extrapolated)",
}
METHODS = tuple(METHODS_BY_KEY.values())
TUNING_METHODS = ("neurons", "all parameters, same loop", "all parameters, plain AdamW")


@dataclass(frozen=True)
class Benchmark:
    """Times and peak memory by method and length."""

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per length and method: seconds per document, its ratio to the bare forward pass, MB above that pass.

        ``as_dense``: the share of active neurons that exact scores make active too, where it was compared.
        """
        return pd.DataFrame(list(self.rows))

    def table(self, value: str = "ratio") -> pd.DataFrame:
        """One column of :meth:`to_frame`, methods by length; NaN where a method was left out."""
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

    Methods are interleaved so that load on the machine affects all of them equally; the paper's form (up to
    ``parallel_up_to`` tokens) and exact scores of every neuron run once. On each of these documents the active neurons
    are compared with those of exact scores. What depends on weights only is done before the clock starts.

    Raises:
        ValueError: for a length above the model's context, or too little text.
    """
    corpus = as_corpus(corpus)
    if max(lengths) > model.cfg.n_ctx:
        raise ValueError(f"length {max(lengths)} is above {model.cfg.model_name}'s context of {model.cfg.n_ctx}.")
    joined = {language: joined_text(model, corpus[language], language, max(lengths)) for language in corpus}
    detectors = {"stream": exact("stream"), "structure": exact("structure"), "parallel": parallel}
    measures = {name: [measure(model, i) for i in range(model.cfg.n_layers)] for name, measure in detectors.items()}
    rows: list[dict[str, Any]] = []
    for length in tqdm(lengths, unit="length", disable=not progress):
        trial = _Trial(model, measures, [ids[:length] for ids in joined.values()], Selection(top=top))
        rows += trial.rows(repeats, with_parallel=length <= parallel_up_to)
    return Benchmark(rows, {**_machine(model), "top": top, "repeats": repeats, "corpus": corpus.describe()})


def joined_text(model: HookedModel, texts: Sequence[Document], language: str, needed: int) -> Int[Tensor, " pos"]:
    """Texts end to end as token ids, at least ``needed`` of them."""
    first, *others = encode(model, texts, [language] * len(texts), model.cfg.n_ctx)
    ids = torch.cat([first, *(ids[1:] for ids in others)])  # one start token only, where there is one
    if len(ids) < needed:
        raise ValueError(f"The {language!r} text has {len(ids)} tokens, too few for a document of {needed}.")
    return ids


@dataclass(frozen=True)
class _Trial:
    model: HookedModel
    measures: Mapping[str, Sequence[Sequence[LayerMeasure]]]
    documents: Sequence[Int[Tensor, " pos"]]
    selection: Selection

    def rows(self, repeats: int, *, with_parallel: bool) -> list[dict[str, Any]]:
        runs = {"forward": self.run(), "stream": self.run("stream"), "structure": self.run("structure")}
        once = {"dense": self.run("stream", screen=False)}
        if with_parallel:
            once["parallel"] = self.run("parallel", screen=False)
        device, number = device_of(self.model), len(self.documents)
        costs = measured(runs, device, repeats * number) | measured(once, device, number)
        costs["sequential"], forward = self.one_by_one(), costs["forward"]
        exactly, as_dense = {name: self.active(name, screen=False) for name in ("stream", "structure")}, {}
        for name in self.measures.keys() & costs:
            mask, dense = self.active(name), exactly.get(name, exactly["structure"])
            as_dense[name] = ((mask & dense).sum() / mask.sum()).item()
        rows = []
        for name, cost in costs.items():
            times = {"seconds": cost.seconds, "ratio": cost.seconds / forward.seconds}
            above = max(cost.megabytes - forward.megabytes, 0.0)  # NaN stays NaN
            row = {"tokens": len(self.documents[0]), "method": METHODS_BY_KEY[name], **times}
            rows.append({**row, "megabytes_above_forward": above, "as_dense": as_dense.get(name, math.nan)})
        return rows

    def run(self, measure: str | None = None, *, screen: bool = True, receive: Receive = lambda *_: None) -> "Run":
        """Score one document after another; without a measure the forward pass alone."""
        layers, running = self.measures[measure] if measure else [], Running()
        hooks = score_hooks(layers, running, receive, self.selection if screen else None)

        def run(number: int, clock: Clock) -> None:
            clock.tick()
            documents = [self.documents[number % len(self.documents)]]
            for _ in stream(self.model, batches(self.model, documents), hooks, running):
                pass
            clock.tick()

        return run

    def active(self, measure: str, *, screen: bool = True) -> Tensor:
        """Active neurons of every document, end to end."""
        masks: dict[tuple[int, str], list[Tensor]] = {}

        def receive(layer: int, scores: SiteScores, _: object) -> None:
            for site, values in scores.items():
                masks.setdefault((layer, site), []).append(self.selection.active(values).cpu())

        run = self.run(measure, screen=screen, receive=receive)
        for number in range(len(self.documents)):
            run(number, Clock(device_of(self.model)))
        return torch.cat([mask.flatten() for key in sorted(masks) for mask in masks[key]])

    @torch.inference_mode()
    def one_by_one(self) -> "Cost":
        """All neurons one by one, extrapolated from a few."""
        (batch,), space = batches(self.model, self.documents[:1]), NeuronSpace.of(self.model)
        clock = Clock(device_of(self.model))
        clock.tick()
        for neuron in range(SEQUENTIAL_SAMPLE):
            with ablate(self.model, NeuronSet.from_list(space, [(0, "q", neuron)])):
                run_blocks(self.model, batch.tokens)
        clock.tick()
        return Cost(clock.seconds[0] / SEQUENTIAL_SAMPLE * space.total)


@dataclass(frozen=True)
class TuningCost:
    """Times, memory and optimiser state by method."""

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per method: seconds per step, peak MB above the loaded model, MB of optimiser state, entries."""
        return pd.DataFrame(list(self.rows)).set_index("method")

    def ratios(self) -> pd.DataFrame:
        """Tuning neurons over each way to tune all parameters: seconds, peak, optimiser, trained."""
        frame = self.to_frame().rename(columns=lambda name: name.split("_")[0])
        return (1 / frame.iloc[1:]).mul(frame.iloc[0]).rename_axis("over")


def tuning_cost(
    model: HookedModel, document: Int[Tensor, " pos"], *, fraction: float = 0.005, steps: int = 4, seed: int = 0
) -> TuningCost:
    """Take a few steps on one document with a random ``fraction`` of the neurons, and with all parameters.

    All parameters are tuned twice: by the same loop, and by the model's own loss and a fused ``torch.optim.AdamW``. The
    median of the steps after the first counts. The weights are put back, from a copy that counts as loaded.

    Raises:
        ValueError: for a fraction that holds no neuron, or fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2: the first is not counted.")
    everything = ~NeuronSet.empty(NeuronSpace.of(model))
    neurons = cut_to_size(everything, round(fraction * len(everything)), seed=seed)
    options: dict[str, Any] = {"batch_size": 1, "steps": steps, "max_tokens": len(document), "progress": False}

    def by_loop(trained: Any, _: int, clock: Clock) -> Mapping[str, Any]:
        return tune(model, trained, [document], **options, callbacks=[lambda step: clock.tick()]).settings

    plainly = partial(_tune_plainly, model, document, steps)
    runs: Sequence[Run] = [partial(by_loop, neurons), partial(by_loop, "all"), plainly]
    with kept_weights(model):
        costs = measured(dict(zip(TUNING_METHODS, runs, strict=True)), device_of(model))
    rows = [
        {
            "method": method,
            "seconds_a_step": cost.seconds,
            "peak_megabytes": cost.megabytes - cost.megabytes_before,
            "optimiser_megabytes": cost.result["optimiser_bytes"] / 2**20,
            "trained_entries": cost.result["trained_entries"],
        }
        for method, cost in costs.items()
    ]
    sizes = {"neurons": len(neurons), "fraction": neurons.fraction, "tokens": len(document), "steps": steps}
    return TuningCost(rows, {**_machine(model), **sizes})


def _tune_plainly(model: HookedModel, document: Tensor, steps: int, _: int, clock: "Clock") -> dict[str, int]:
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=2e-6, weight_decay=0.0, fused=True)
    ids = document[None].to(parameters[0].device)
    for _ in range(steps):
        model(ids, return_type="loss").backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.tick()
    state = sum(value.nbytes for values in optimiser.state.values() for value in values.values())
    return {"optimiser_bytes": state, "trained_entries": sum(parameter.numel() for parameter in parameters)}


def _machine(model: HookedModel) -> dict[str, Any]:
    device, dtype = str(device_of(model)), str(dtype_of(model))
    return {"model": str(model.cfg.model_name), "device": device, "dtype": dtype, "threads": torch.get_num_threads()}


@dataclass(frozen=True)
class Cost:
    """Median seconds, peak memory in MB (NaN where it is not known) and that before, and what the run returned."""

    seconds: float
    megabytes: float = math.nan
    megabytes_before: float = math.nan
    result: Any = None


class Clock:
    """Takes the time at each tick, on CUDA by events: when the device has reached it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ticks = device, []

    def tick(self) -> None:
        """Take the time."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            self.ticks.append(torch.cuda.current_stream(self.device).record_event(event))
        else:
            self.ticks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """From each tick to the next."""
        if self.device.type != "cuda":
            return [end - start for start, end in pairwise(self.ticks)]
        self.ticks[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.ticks)]


Run = Callable[[int, Clock], Any]
"""Something to measure, from how often it ran before."""


def measured(runs: Mapping[str, Run], device: torch.device, rounds: int = 0) -> dict[str, Cost]:
    """Each run's peak memory, and its time in rounds of all of them; without rounds, in the run for its memory.

    With rounds, a first run that compiles what has to be compiled is not counted.
    """
    memory, seconds = {}, {}
    for name, run in runs.items():
        if rounds:
            run(0, Clock(device))
        memory[name] = _with_peak_memory(run, clock := Clock(device))
        seconds[name] = [] if rounds else clock.seconds
    for number in range(rounds):
        for name, run in runs.items():
            run(number, clock := Clock(device))
            seconds[name] += clock.seconds
    return {name: Cost(median_high(seconds[name]), *memory[name]) for name in runs}


def _with_peak_memory(run: Run, clock: Clock) -> tuple[float, float, Any]:
    """Highest memory of this process (NaN unless ``PEAK_RESET`` can be written) or on CUDA, before, and the result."""
    gc.collect()
    if clock.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(clock.device)
        before, result = torch.cuda.memory_allocated(clock.device) / 2**20, run(0, clock)
        return torch.cuda.max_memory_allocated(clock.device) / 2**20, before, result
    if not os.access(PEAK_RESET, os.W_OK):
        return math.nan, math.nan, run(0, clock)
    PEAK_RESET.write_text("5")
    before, result = _resident_megabytes("VmRSS"), run(0, clock)
    return _resident_megabytes("VmHWM"), before, result


PEAK_RESET = Path("/proc/self/clear_refs")
"""A 5 written here makes Linux count the peak of this process's memory from then on."""


def _resident_megabytes(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 2**10
