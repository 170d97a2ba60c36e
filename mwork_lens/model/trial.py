"""What one pass over three tokens shows of a bridge's layers, and no configuration says in the same way for all."""

from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from .architecture import HookedModel, device_of, run_wrapped
from .state import settled


@dataclass
class LayerTrial:
    """What happened in one layer, filled while the pass runs."""

    order: list[str] = field(default_factory=list)
    """Its parts, as they were called: ``ln1``, ``attn``, ``ln2`` and, for the feed-forward, ``mlp.out``."""
    rotates: bool = True
    """Whether its queries and keys are rotated."""

    def follows(self, norm: str, part: str) -> bool:
        """Whether a norm was called after a part whose input it norms in most models."""
        return norm in self.order and part in self.order and self.order.index(norm) > self.order.index(part)


_TRIALS: MutableMapping[HookedModel, list[LayerTrial]] = WeakKeyDictionary()


def trial_of(model: HookedModel, layer: int) -> LayerTrial:
    """One layer of a bridge; the pass runs once for each model."""
    if model not in _TRIALS:
        _TRIALS[model] = _trials(model)
    return _TRIALS[model][layer]


@torch.inference_mode()
def _trials(model: HookedModel) -> list[LayerTrial]:
    trials = [LayerTrial() for _ in model.blocks]
    calls: list[tuple[Any, dict[str, Any]]] = []
    hooks = []

    def note(trial: LayerTrial, name: str, _: Module, args: Any, options: dict[str, Any]) -> None:
        trial.order.append(name)
        if name == "attn":
            calls.append((args, dict(options)))

    with settled(model):
        try:
            for block, trial in zip(model.blocks, trials, strict=True):
                for name in ("ln1", "attn", "ln2", "mlp.out"):
                    with suppress(AttributeError):  # no such part
                        part: Module = block.get_submodule(name)
                        hooks.append(part.register_forward_pre_hook(partial(note, trial, name), with_kwargs=True))
            run_wrapped(model, torch.arange(1, 4, device=device_of(model))[None])
        finally:
            for hook in hooks:
                hook.remove()
        for block, trial, call in zip(model.blocks, trials, calls, strict=True):
            trial.rotates = _needs_positions(block.attn, *call)
    return trials


def _needs_positions(attn: Callable[..., Any], args: Any, options: dict[str, Any]) -> bool:
    """Whether the output of a layer's attention is another without sines and cosines."""
    if not isinstance(options.get("position_embeddings"), tuple):
        return "position_embeddings" not in options  # it has tables of its own
    cosine, sine = options["position_embeddings"]
    unturned = {**options, "position_embeddings": (torch.ones_like(cosine), torch.zeros_like(sine))}
    outputs: list[Tensor] = [attn(*args, **each)[0] for each in (options, unturned)]
    return not torch.equal(*outputs)
