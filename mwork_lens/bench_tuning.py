"""What tuning costs beside full fine-tuning, in one run: time a step, peak memory, optimiser state."""

import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from .bench import PeakMemory
from .model import HookedModel, device_of, dtype_of
from .neurons import NeuronSet, NeuronSpace
from .tuning import kept_weights, tune

METHODS = ("neurons", "all parameters, same loop", "all parameters, plain AdamW")


@dataclass(frozen=True)
class TuningCost:
    """Times, memory and optimiser state by method."""

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a method: seconds a step, peak MB above the loaded model, MB of optimiser state, trained entries."""
        return pd.DataFrame(list(self.rows)).set_index("method")

    def ratios(self) -> pd.DataFrame:
        """Tuning neurons over each way to tune all parameters: seconds, peak, optimiser, trained."""
        frame = self.to_frame().rename(columns=lambda name: name.split("_")[0])
        return (1 / frame.iloc[1:]).mul(frame.iloc[0]).rename_axis("over")


def tuning_cost(
    model: HookedModel, document: Int[Tensor, " pos"], *, fraction: float = 0.005, steps: int = 4, seed: int = 0
) -> TuningCost:
    """Take a few steps on one document with a random ``fraction`` of the neurons, and with all parameters.

    All parameters are tuned twice: by the same loop (tied embeddings once, logits a few positions at a time), and as
    one would write it down: the model's own loss and a fused ``torch.optim.AdamW``. The median of the steps after the
    first counts. The model's weights are put back, from a copy that counts as loaded.

    Args:
        model: a hooked model.
        document: token ids.
        fraction: of all neurons.
        steps: of each method.
        seed: of the neurons.

    Raises:
        ValueError: for a fraction that holds no neuron, or fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2: the first is not counted.")
    neurons = _some(NeuronSpace.of(model), fraction, seed)
    options: dict[str, Any] = {"batch_size": 1, "steps": steps, "max_tokens": len(document), "progress": False}
    runs: Mapping[str, Callable[[Callable[[], None]], Mapping[str, Any]]] = {
        METHODS[0]: lambda tick: _by_loop(model, neurons, document, options, tick),
        METHODS[1]: lambda tick: _by_loop(model, "all", document, options, tick),
        METHODS[2]: lambda tick: _plain(model, document, steps, tick),
    }
    with kept_weights(model):
        rows = [_measured(method, run) for method, run in runs.items()]
    settings = {
        "model": str(model.cfg.model_name),
        "neurons": len(neurons),
        "fraction": neurons.fraction,
        "tokens": len(document),
        "steps": steps,
        "device": str(device_of(model)),
        "dtype": str(dtype_of(model)),
        "threads": torch.get_num_threads(),
    }
    return TuningCost(rows, settings)


def _some(space: NeuronSpace, fraction: float, seed: int) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(space.total, dtype=torch.bool)
    chosen[torch.randperm(space.total, generator=generator)[: round(fraction * space.total)]] = True
    parts = chosen.split([space.n_layers * width for width in space.widths.values()])
    masks = {site: part.view(space.n_layers, -1) for site, part in zip(space.widths, parts, strict=True)}
    return NeuronSet(space, masks, {"kind": "random", "fraction": fraction, "seed": seed})


def _measured(method: str, run: Callable[[Callable[[], None]], Mapping[str, Any]]) -> dict[str, Any]:
    gc.collect()
    before = _megabytes_in_use()
    ticks: list[float] = []
    with PeakMemory() as peak:
        sizes = run(lambda: ticks.append(time.perf_counter()))
    seconds = sorted(b - a for a, b in itertools.pairwise(ticks))
    return {
        "method": method,
        "seconds_a_step": seconds[len(seconds) // 2],
        "peak_megabytes": peak.megabytes - before,
        "optimiser_megabytes": sizes["optimiser_bytes"] / 2**20,
        "trained_entries": sizes["trained_entries"],
    }


def _by_loop(
    model: HookedModel, neurons: Any, document: Tensor, options: Mapping[str, Any], tick: Callable[[], None]
) -> Mapping[str, Any]:
    return tune(model, neurons, [document], **options, callbacks=[lambda step: tick()]).settings


def _plain(model: Any, document: Tensor, steps: int, tick: Callable[[], None]) -> Mapping[str, Any]:
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=2e-6, weight_decay=0.0, fused=True)
    ids = document[None].to(parameters[0].device)
    for _ in range(steps):
        model(ids, return_type="loss").backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tick()
    state = [value for values in optimiser.state.values() for value in values.values()]
    return {
        "optimiser_bytes": sum(value.numel() * value.element_size() for value in state),
        "trained_entries": sum(parameter.numel() for parameter in parameters),
    }


def _megabytes_in_use() -> float:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
