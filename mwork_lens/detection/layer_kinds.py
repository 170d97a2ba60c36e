"""Which layers of a model are alike: those whose modules, shapes and settings are the same."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch.nn import Module

from ..model import HookedModel, wrapped_model

Traits = Mapping[Hashable, Hashable]
SCALARS = (bool, int, float, str, type(None))


def layer_kinds(model: HookedModel) -> list[list[int]]:
    """The layers of every kind, in order: e.g. those with a window, and those without."""
    traits = [_traits(model, layer) for layer in range(model.cfg.n_layers)]
    ignored = _numbers_of_layers(traits)
    kinds: dict[frozenset[Any], list[int]] = {}
    for layer, each in enumerate(traits):
        kinds.setdefault(frozenset(item for item in each.items() if item[0] not in ignored), []).append(layer)
    return list(kinds.values())


def _traits(model: HookedModel, layer: int) -> dict[Hashable, Hashable]:
    """Of a block: its modules' classes, shapes and scalar attributes, and its entries of the configuration."""
    traits: dict[Hashable, Hashable] = {}
    own_number = re.compile(rf"(?<=\.){layer}(?=\.|$)")  # in the names of hook points
    for path, module in model.blocks[layer].named_modules():
        traits[path, "class"] = type(module).__name__
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        traits.update({(path, name): tuple(tensor.shape) for name, tensor in tensors})
        for name, value in _settings(module):
            traits[path, name] = own_number.sub("*", value) if isinstance(value, str) else value
    for config in (model.cfg, getattr(wrapped_model(model), "config", None)):
        for name, value in vars(config).items() if config is not None else ():
            if isinstance(value, list | tuple) and len(value) == model.cfg.n_layers:
                traits["configuration", name] = repr(value[layer])
    return traits


def _settings(module: Module) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, SCALARS) and name != "training" and not name.startswith("_")
    ]


def _numbers_of_layers(traits: Sequence[Traits]) -> set[Hashable]:
    """What has another number in every layer: the layer's own, or a scale that follows it."""
    names = [name for name, value in traits[0].items() if isinstance(value, int | float)]
    return {name for name in names if len({each.get(name) for each in traits}) == len(traits) > 1}
