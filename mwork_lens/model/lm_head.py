"""A model's head: what lies between its last block and the unembedding, and what it does to the unembedding's products.

Everything that reads logits goes through it, so that they are the model's own; :func:`require_same_readout` compares.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import Module

from .architecture import HookedModel, text_config, wrapped_model

MODULES = ("ln_final", "project_out", "prediction_head")
"""What may stand before the unembedding, in this order, as TransformerLens names it. Some models lack the final norm;
OPT 350M goes on to the width of its embeddings, ModernBERT's decoder through a dense layer."""
_UNNAMED_NORM = "model.decoder.final_layer_norm"
"""A final norm that TransformerLens leaves out: OPT's before a projection."""

_SCALES: Mapping[str, Callable[[float, float], float]] = {
    "logit_scale": operator.mul,  # Cohere; of the model, as MPT's configuration has a value that nothing reads
    "config.lm_head_multiplier": operator.mul,  # Falcon-H1
    "config.output_multiplier": operator.mul,
    "config.logits_scaling": operator.truediv,  # Granite
}
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Where transformers' models say what they do to their logits; :func:`require_same_readout` finds what is not here."""


def before_unembedding(model: HookedModel) -> Iterator[tuple[str, Module]]:
    """The modules from the last block to the unembedding that the model has, by name."""
    for name in MODULES:
        module = getattr(model, name, None)
        if module is None and name == "ln_final":
            module = reduce(
                lambda part, name: getattr(part, name, None), _UNNAMED_NORM.split("."), wrapped_model(model)
            )
        # a bridge may name a module that the wrapped model has not
        if module is not None and getattr(module, "original_component", module) is not None:
            yield name, module


def require_direct_path(model: HookedModel) -> None:
    """Refuse a model in which what a neuron adds to the stream promotes no tokens of its own."""
    if "prediction_head" in dict(before_unembedding(model)):
        raise ValueError(
            f"{model.cfg.model_name} has a dense layer with a nonlinearity before its unembedding: what a neuron "
            "promotes depends on all others. Its q and k neurons, which write nothing, can be inspected."
        )


@dataclass(frozen=True)
class Finish:
    """What a model does to the products with its unembedding, which keeps their order."""

    scale: float
    """Above 0."""
    cap: float | None
    """A soft cap, after the scale."""

    @classmethod
    def of(cls, model: HookedModel) -> "Finish":
        """As its modules and configuration say; a ValueError for a scale that would turn the order of logits round."""
        wrapped = wrapped_model(model)
        if wrapped is None:
            cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
            return cls(1.0, cap if cap > 0 else None)
        config, scale = text_config(model), 1.0
        for name, combine in _SCALES.items():
            source = config if name.startswith("config.") else wrapped
            value = getattr(source, name.removeprefix("config."), None)
            scale = scale if value is None else combine(scale, float(value))
        if not scale > 0:
            raise ValueError(f"{model.cfg.model_name} multiplies its logits by {scale:g}, which has to be above 0.")
        caps = (getattr(config, name, None) for name in _CAPS)
        return cls(scale, next((float(cap) for cap in caps if cap), None))

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits, from products."""
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
