"""What a long run will take, from a model's shape and rates of a machine: counted before anything is loaded."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..detection.detection import result_bytes
from ..model.budget import SHARE, Budget
from ..settings import PLANNED_DTYPES, PlanConfig, Rates
from ..store import user_path

SHAPES = Path(__file__).parents[1] / "data" / "shapes"
HEADROOM = 1 - SHARE
"""Share of a device's memory that weights may take; the rest holds what a layer's scores need."""
LANES = 20
"""Operations beside each exponential, counted from the kernels (``tests/gpu/cost.py`` says which)."""
COUNTED = 28
"""Bytes per neuron and language in memory: counts, estimated scores, sums in two words, means."""
TEXT_BYTES = 12
"""Of a token in memory: its id, and about four letters of the text that it came from."""
NOT_MEASURED = (
    "Not measured on a GPU: counted is the arithmetic and the memory that it moves; launches, hooks, padding, reading "
    "and tokenising come on top. mwork-lens bench measures what detection costs beside the forward pass, and the "
    "progress bar of a run says from its first batches on how long it takes."
)


SOURCES: Mapping[str, str] = {
    "flops": "assumed: 60 % of an H100's peak (989e12 in bfloat16, 67e12 in float32)",
    "bandwidth": "assumed: 90 % of an H100's 3.35e12",
    "exponentials": "computed: 132 multiprocessors x 16 per cycle x 1.7 GHz of an H100",
    "lanes": "computed: 132 multiprocessors x 128 lanes x 1.7 GHz of an H100",
    "memory": "an H100's",
    "batch_tokens": "the default of this package on a GPU",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide what it costs."""

    name: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    block_parameters: int
    """Of all layers, without embedding and unembedding."""
    parameters: int

    @classmethod
    def read(cls, source: str) -> "Shape":
        """A stored shape, or that of a ``config.json``; a FileNotFoundError or ValueError where there is none."""
        import torch
        from transformers import AutoModelForCausalLM

        config = _config(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        tables = {id(weight): weight.numel() for weight in ends}  # once where they are tied
        total, heads = sum(each.numel() for each in model.parameters()), config.num_attention_heads
        return cls(
            name=Path(source).parent.name if Path(source).name == "config.json" else Path(source).name,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            mlp_width=_mlp_width(config),
            vocabulary=config.vocab_size,
            block_parameters=total - sum(tables.values()),
            parameters=total,
        )

    @property
    def neurons(self) -> int:
        """Of all sites and layers."""
        return self.layers * (self.head_width * (self.heads + 2 * self.key_value_heads) + self.mlp_width)

    def forward_operations(self, length: int) -> int:
        """Of one token in a document of so many, through the blocks, attention to every position included."""
        return 2 * self.block_parameters + 4 * length * self.heads * self.head_width * self.layers

    def exponentials(self, length: int) -> int:
        """Of one token: one for each query and each key neuron of every head, for each of half the positions."""
        return self.layers * self.heads * self.head_width * length

    def budget(self, memory: float) -> Budget:
        """What a batch holds on a device of so many bytes."""
        return Budget.of_gpu(
            memory,
            n_layers=self.layers,
            d_model=self.width,
            heads=(self.heads, self.key_value_heads),
            d_head=self.head_width,
            d_mlp=self.mlp_width,
        )


def _config(source: str) -> Any:
    """The text model's configuration, by transformers; refused where there is none, or where experts take turns."""
    from transformers import AutoConfig

    path = SHAPES / f"{source}.json"
    if not path.is_file():
        path = user_path(source)
        path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        stored = ", ".join(sorted(each.stem for each in SHAPES.glob("*.json")))
        raise FileNotFoundError(f"There is no config.json at {source!r}, nor such a stored shape ({stored}).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.for_model(content.pop("model_type"), **content).get_text_config()
        sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size
    except Exception as error:
        raise ValueError(
            f"{path} is not the configuration of a language model that transformers knows: {error}"
        ) from error
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{path} has sizes {sizes}, which no model has.")
    experts = (getattr(config, name, None) or 1 for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    if max(experts) > 1:
        raise ValueError(f"{path} is a mixture of experts, whose feed-forward neurons have no closed form here.")
    return config


def _mlp_width(config: Any) -> int:
    """Neurons of a feed-forward layer; where a configuration does not say, transformers takes four times the width."""
    sizes = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"))
    return next((size for size in sizes if isinstance(size, int)), 4 * config.hidden_size)


@dataclass(frozen=True)
class RunPlan:
    """How long, how much memory and how large the result, of a detection and of an effect matrix."""

    shape: Shape
    config: PlanConfig
    rates: Rates

    def __post_init__(self) -> None:
        if self.devices_per_process > self.config.devices:
            raise ValueError(
                f"{self.shape.name} has {self.weight_bytes / 1e9:.0f} GB of weights in {self.config.dtype}, which take "
                f"{self.devices_per_process} devices of {self.rates.memory / 1e9:.0f} GB (weights may fill "
                f"{HEADROOM:.0%}), not {self.config.devices}: give --devices or --memory."
            )

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return self.shape.parameters * PLANNED_DTYPES[self.config.dtype]

    @property
    def devices_per_process(self) -> int:
        """Over which a model is spread; they work one after the other."""
        return math.ceil(self.weight_bytes / (HEADROOM * self.rates.memory))

    @property
    def processes(self) -> int:
        """That share the work, each with a model of its own."""
        return self.config.devices // self.devices_per_process

    @cached_property
    def budget(self) -> Budget:
        """Of a batch, beside the weights."""
        return replace(self.shape.budget(self.rates.memory), tokens=self.rates.batch_tokens)

    @property
    def batch_documents(self) -> int:
        """As many as the budget holds, at least one."""
        length = self.config.tokens_per_document
        most = max(self.rates.batch_tokens // length, 1)
        return next((number for number in range(most, 0, -1) if self.budget.holds(number, length)), 1)

    @property
    def batch_tokens(self) -> int:
        """Of these documents."""
        return self.batch_documents * self.config.tokens_per_document

    @property
    def flops(self) -> float:
        """Per second and device."""
        return self.rates.flops or (40e12 if self.config.dtype == "float32" else 600e12)

    @cached_property
    def forward_seconds(self) -> float:
        """Of one token on one device: arithmetic, or reading the weights once per batch if that takes longer."""
        read = (
            self.shape.block_parameters * PLANNED_DTYPES[self.config.dtype] / self.rates.bandwidth / self.batch_tokens
        )
        return max(self.shape.forward_operations(self.config.tokens_per_document) / self.flops, read)

    @cached_property
    def score_seconds(self) -> float:
        """Of one token on one device: exponentials or the arithmetic around them, if that takes longer, and memory."""
        number = self.shape.exponentials(self.config.tokens_per_document)
        moved = self.shape.layers * self.budget.by_token / self.rates.bandwidth
        return max(number / self.rates.exponentials, LANES * number / self.rates.lanes) + moved

    def to_frame(self) -> pd.DataFrame:
        """One row per step: tokens; hours of the forward pass, of scores, in all; GB on a device, of a process, saved.

        A process keeps all of the text, and what it has counted in every language.
        """
        config, shape = self.config, self.shape
        unembedding = 2 * shape.width * shape.vocabulary / self.flops
        passage = config.n_languages * config.effect_passages
        measured = (config.n_languages + 1) * passage * config.tokens_per_document
        cells, read = config.n_languages * shape.neurons, config.n_languages * config.tokens
        detect = self._row(read, self.forward_seconds, self.score_seconds)
        detect |= {"process_gb": (read * TEXT_BYTES + cells * COUNTED) / 1e9}
        detect |= {"result_gb": result_bytes(shape.neurons, config.n_languages) / 1e9}
        effects = self._row(measured, self.forward_seconds + unembedding, 0.0)
        effects |= {"process_gb": passage * config.tokens_per_document * TEXT_BYTES / 1e9}
        effects |= {"result_gb": (config.n_languages + 1) * passage * 8 / 1e9}
        return pd.DataFrame({"detect": detect, "effects": effects}).T.rename_axis("step")

    def _row(self, tokens: int, forward: float, scores: float) -> dict[str, Any]:
        hours = {"forward_hours": tokens * forward, "score_hours": tokens * scores}
        hours = {name: seconds / self.processes / 3600 for name, seconds in hours.items()}
        working = self.budget.needed(self.batch_documents, self.config.tokens_per_document)
        device = (self.weight_bytes / self.devices_per_process + working) / 1e9
        return {"tokens": tokens, **hours, "hours": sum(hours.values()), "device_gb": device}

    def rates_used(self) -> pd.DataFrame:
        """One row per rate: its value and where it comes from."""
        values = {**asdict(self.rates), "flops": self.flops}
        defaults = {field.name: field.default for field in fields(Rates)}
        rows = {
            name: (value, SOURCES[name] if getattr(self.rates, name) == defaults[name] else "given")
            for name, value in values.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "source"]).rename_axis("rate")

    def __str__(self) -> str:
        shape, config = self.shape, self.config
        idle = config.devices - self.processes * self.devices_per_process
        parts = f"{self.processes} process{'es' if self.processes > 1 else ''} of {self.devices_per_process}"
        parts += " (which take turns)" if self.devices_per_process > 1 else ""
        return (
            f"{shape.name}: {shape.layers} layers, {shape.width} wide, {shape.parameters / 1e9:.1f} billion parameters "
            f"({self.weight_bytes / 1e9:.0f} GB in {config.dtype}), {shape.neurons:,} neurons\n"
            f"{config.n_languages} languages of {config.tokens:,} tokens, in documents of "
            f"{config.tokens_per_document}; effects on {config.effect_passages} of them each\n"
            f"{config.devices} device{'s' if config.devices > 1 else ''}: {parts}{f', {idle} idle' if idle else ''}; "
            f"batches of {self.batch_tokens:,} tokens"
        )


def plan(config: PlanConfig, rates: Rates | None = None) -> RunPlan:
    """The plan of a run; a ValueError or FileNotFoundError for a shape that is not there or does not fit.

    Example:
        >>> from mwork_lens.experiments.planning import PlanConfig, plan
        >>> round(plan(PlanConfig(tokens=1000)).shape.parameters / 1e9, 2)
        8.03
    """
    return RunPlan(Shape.read(config.shape), config, rates or Rates())
