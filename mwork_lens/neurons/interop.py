"""Neuron sets out of other people's files: of the paper's released code, and of LAPE. Nothing in them is executed."""

import ast
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model import HookedModel
from .sets import NeuronSet
from .space import NeuronSpace

RELEASED_LINES = ("mlp", "mlp", "q", "k", "v")
"""A line each: W_up, W_down (the same neurons), W_Q, W_K, W_V."""


def load_released(path: str | Path, model: HookedModel | NeuronSpace, *, language: str | None = None) -> NeuronSet:
    """A set that the paper's released code wrote: five lines, each a printed dict from layer to a set of indices.

    W_up and W_down name the same neuron; the set has those of either list. With grouped heads that code lists keys and
    values by the query heads' coordinates and switches off ``index // group`` of them: so does the set, which thus
    repeats what was switched off, and not what was meant.

    Args:
        path: of the text file.
        model: a hooked model, or the space of a set or detection, of the sizes that the file is of.
        language: whose neurons they are, which the file does not say; controls and effects use it.

    Raises:
        ValueError: for a file of another form (with the line), or neurons that the model does not have.
    """
    space = _space(model)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if len(lines) != len(RELEASED_LINES):
        raise ValueError(f"{path} has {len(lines)} lines, not {len(RELEASED_LINES)} (up, down, q, k and v).")
    found: list[tuple[int, str, int]] = []
    for number, (site, line) in enumerate(zip(RELEASED_LINES, lines, strict=True), start=1):
        group = space.n_heads // space.n_key_value_heads if site in ("k", "v") else 1
        found += [(layer, site, index // group) for layer, index in _printed(line, f"{path}, line {number}")]
    return NeuronSet.from_list(space, found, kind="released", source=Path(path).name, **_named(language))


def load_lape(path: str | Path, model: HookedModel | NeuronSpace, languages: Sequence[str]) -> dict[str, NeuronSet]:
    """The sets of a file of LAPE's code (Tang et al. 2024): for each language and layer, indices of ``mlp`` neurons.

    Args:
        path: of the ``.pth`` file, read with ``weights_only=True``.
        model: a hooked model, or the space of a set or detection, of the sizes that the file is of.
        languages: in the file's order, which it does not record (their released ones: en, zh, fr, es, vi, id, ja).

    Raises:
        ValueError: for a file of another form or another number of languages, or neurons that the model lacks.
    """
    space, languages = _space(model), list(languages)
    try:
        lists: Any = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and lists, which is not read.") from error
    if not isinstance(lists, list) or len(lists) != len(languages):
        number = len(lists) if isinstance(lists, list) else type(lists).__name__
        raise ValueError(f"{path} holds {number} languages; {len(languages)} are named: {', '.join(languages)}.")
    sets = {}
    for language, layers in zip(languages, lists, strict=True):
        if len(layers) != space.n_layers:
            raise ValueError(f"{path} is of a model with {len(layers)} layers; {space.model} has {space.n_layers}.")
        found = [(layer, "mlp", int(i)) for layer, indices in enumerate(layers) for i in indices]
        sets[language] = NeuronSet.from_list(space, found, kind="LAPE", source=Path(path).name, language=language)
    return sets


def _space(model: HookedModel | NeuronSpace) -> NeuronSpace:
    return model if isinstance(model, NeuronSpace) else NeuronSpace.of(model)


def _named(language: str | None) -> dict[str, str]:
    return {} if language is None else {"language": language}


def _printed(line: str, where: str) -> Iterator[tuple[int, int]]:
    """(layer, index) pairs out of a printed dict."""
    try:
        by_layer = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where} is no printed dict from layer to indices: {line[:60]!r}") from error
    if not isinstance(by_layer, Mapping) or not all(map(_indices, by_layer.items())):
        raise ValueError(f"{where} is no printed dict from layer to indices: {line[:60]!r}")
    return ((layer, index) for layer, found in by_layer.items() for index in found)


def _indices(item: tuple[Any, Any]) -> bool:
    layer, found = item
    listed = isinstance(found, set | list | tuple)
    return listed and all(isinstance(number, int) and number >= 0 for number in (layer, *found))
