"""All parameters of a model, to compare with: dense AdamW, embeddings tied where the checkpoint's are."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import Parameter

from ..model import HookedModel
from ..neurons import Entries
from .entries import Trained


@dataclass(frozen=True)
class Tie:
    """TransformerLens stores one tied matrix twice, W_E = ``scale`` · W_Uᵀ: train it once."""

    embedding: Parameter
    unembedding: Trained
    scale: float

    def collect(self, embedding: Parameter) -> None:
        """The embedding's gradient goes where the unembedding's is."""
        assert embedding.grad is not None
        self.unembedding.add(embedding.grad.t() * self.scale)
        embedding.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """The embedding follows the unembedding."""
        torch.mul(self.unembedding.entries.parameter.t(), self.scale, out=self.embedding.data)


def whole_model(model: HookedModel) -> tuple[list[Trained], list[Tie]]:
    """Every parameter that a checkpoint has: not the zero biases that TransformerLens adds, tied matrices once.

    Raises:
        ValueError: for quantised weights.
    """
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if not parameter.is_floating_point():
            raise ValueError(
                f"{name} of {model.cfg.model_name} is {parameter.dtype}: quantised weights cannot be tuned."
            )
    real = {_kind(name) for name, p in named.items() if not _maybe_added(name) or bool(p.any())}
    ties: list[Tie] = []
    scale = _tied_scale(named)
    if scale is not None:
        named = {name: parameter for name, parameter in named.items() if name != "embed.W_E"}
    parts = {name: Trained(Entries(name, p)) for name, p in named.items() if _kind(name) in real}
    if scale is not None:
        embedding: Parameter = model.embed.W_E
        ties.append(Tie(embedding, parts["unembed.W_U"], scale))
    return list(parts.values()), ties


@contextlib.contextmanager
def kept_weights(model: HookedModel) -> Iterator[None]:
    """Every parameter is bit-identical again on any exit; a copy of all of them waits in the CPU's memory."""
    parameters: list[Parameter] = list(model.parameters())
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def _kind(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", name)


def _maybe_added(name: str) -> bool:
    return name.rsplit(".", 1)[-1].lstrip("_").startswith("b_")


def _tied_scale(named: dict[str, Parameter]) -> float | None:
    """W_E over W_Uᵀ if that is one number for all entries; HookedTransformer only, a bridge keeps the tie itself."""
    if not {"embed.W_E", "unembed.W_U"} <= named.keys():
        return None
    w_e, w_u = named["embed.W_E"].detach(), named["unembed.W_U"].detach().t()
    if w_e.shape != w_u.shape:
        return None
    for scale in (1.0, w_e.shape[1] ** 0.5):
        # Gemma's embedding is multiplied by √d_model, in the model's dtype
        rounded = torch.tensor(scale, dtype=w_e.dtype).item()
        if all(torch.equal(a, b * rounded) for a, b in zip(w_e.split(4096), w_u.split(4096), strict=True)):
            return rounded
    return None
