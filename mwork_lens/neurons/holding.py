"""Neurons off, scaled or held at values that the user gave."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ..model.hooks import ContentPositions, ForwardHook, Mode, change_of, mask_hooks
from .space import NeuronSpace


def holding_hooks(
    space: NeuronSpace,
    masks: Mapping[str, Bool[Tensor, "layer _"]],
    values: Any,
    *,
    mode: Mode,
    language: str | None,
    own: str | None,
    factor: float | None,
    content: ContentPositions | None,
) -> list[ForwardHook]:
    """One hook for each layer and site of the masks.

    Raises:
        ValueError: for values that are not activations, of another model or of no language.
    """
    if isinstance(values, Mapping):
        _require_fitting(space, masks, values, mode, language)
    elif values is not None:
        if not hasattr(values, "held"):
            raise ValueError(f"mode={mode!r} needs values of collect_means, not {type(values).__name__}.")
        space.require_compatible(values.space, stacklevel=4)
        values = values.held(mode, language, own)
    return mask_hooks(masks, change_of(factor), values, content)


def _require_fitting(
    space: NeuronSpace,
    masks: Mapping[str, Bool[Tensor, "layer _"]],
    values: Mapping[str, Tensor],
    mode: Mode,
    language: str | None,
) -> None:
    if mode != "set" or language is not None:
        raise ValueError(f"mode={mode!r} with {language=} takes its values from collect_means, not from tensors.")
    for site, mask in masks.items():
        shape, expected = tuple(values[site].shape) if site in values else None, tuple(mask.shape)
        if mask.any() and shape != expected:
            raise ValueError(f"values of {site} have shape {shape}, where {space.model} has {expected}.")
