"""Neuron sets out of other people's files: of the paper's released code, and of LAPE. Nothing in them is executed."""

import ast
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..model import HookedModel
from ..store import user_path
from ..text import check_arguments, read_lines
from .sets import NeuronSet
from .space import NeuronSpace

RELEASED_LINES = ("mlp", "mlp", "q", "k", "v")  # of W_up, W_down (the same neurons), W_Q, W_K, W_V


def load_released(path: str | Path, model: HookedModel | NeuronSpace, *, language: str | None = None) -> NeuronSet:
    """A set that the paper's released code wrote: five lines, each a printed dict from layer to a set of indices.

    How that code differs from this package (``formulation="released"`` gives its scores):

    * Feed-forward scores: there sums of absolute x·W_up, without gate and W_down; here the norm of what switching the
      neuron off changes. V: there sums of absolute attention output by query heads; here that norm, by key-value heads.
    * Q and K: there one list for both, after rotation and not scaled; here each its own, before norm and rotation.
    * K and V of grouped heads: there a query-head index ``// group``, mostly another neuron (the set has what that code
      switched off, not what was meant); here the head's own.
    * There a document that runs out of memory is left out silently; here an error names it.
    * English's neurons: there those that five languages share; here as ``against`` says.
    * Switching off: there weights are zeroed in place and stay so; here hooks, after which every logit is as before.
    * Results: there printed dicts, read with ``eval``; here safetensors and JSON with model, corpus and settings.

    The set's feed-forward neurons are those of W_up's or W_down's list. ``model`` has the sizes that the file is of, or
    is the space of such a model's set or detection; ``language`` is whose neurons they are, which the file does not
    say: controls and effects use it.

    Raises:
        ValueError: for a file of another form (with the line), or neurons that the model does not have.
    """
    check_arguments(load_released, locals())
    space = model if isinstance(model, NeuronSpace) else NeuronSpace.of(model)
    lines = read_lines(user_path(path))
    if len(lines) != len(RELEASED_LINES):
        raise ValueError(f"{path} has {len(lines)} lines, not {len(RELEASED_LINES)} (up, down, q, k and v).")
    neurons: list[tuple[int, str, int]] = []
    for number, (site, line) in enumerate(zip(RELEASED_LINES, lines, strict=True), start=1):
        group = space.n_heads // space.n_key_value_heads if site in ("k", "v") else 1
        neurons += [(layer, site, index // group) for layer, index in _printed(line, f"{path}, line {number}")]
    return NeuronSet.from_list(space, neurons, kind="released", source=Path(path).name, language=language)


def load_lape(path: str | Path, model: HookedModel | NeuronSpace, languages: Sequence[str]) -> dict[str, NeuronSet]:
    """The sets of a ``.pth`` file of LAPE's code (Tang et al. 2024): by language and layer, indices of ``mlp`` neurons.

    ``languages`` are in the file's order, which it does not record (their released ones: en, zh, fr, es, vi, id, ja).
    ``model`` is as in :func:`load_released`.

    Raises:
        ValueError: for a file of another form or another number of languages, or neurons that the model lacks.
    """
    check_arguments(load_lape, locals())
    space = model if isinstance(model, NeuronSpace) else NeuronSpace.of(model)
    try:
        # what is not a tensor, a number or a plain container raises UnpicklingError and is not executed
        content: Any = torch.load(user_path(path), weights_only=True, map_location="cpu")
        if not isinstance(content, list):
            raise TypeError(f"a {type(content).__name__}, not a list")
        lists = [[[int(i) for i in indices] for indices in layers] for layers in content]
    except OSError:
        raise
    except Exception as error:  # whatever unpickling bytes can raise
        raise ValueError(f"{path} is damaged, or holds more than tensors and lists of numbers.") from error
    if len(lists) != len(languages):
        raise ValueError(f"{path} holds {len(lists)} languages; {len(languages)} are named: {', '.join(languages)}.")
    sets = {}
    for language, layers in zip(languages, lists, strict=True):
        if len(layers) != space.n_layers:
            raise ValueError(f"{path} is of a model with {len(layers)} layers; {space.model} has {space.n_layers}.")
        neurons = [(layer, "mlp", index) for layer, indices in enumerate(layers) for index in indices]
        sets[language] = NeuronSet.from_list(space, neurons, kind="LAPE", source=Path(path).name, language=language)
    return sets


def _printed(line: str, where: str) -> list[tuple[int, int]]:
    """(layer, index) pairs out of a printed dict."""
    by_layer: Any = None
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        by_layer = ast.literal_eval(line.strip())
    if not isinstance(by_layer, dict) or not all(
        isinstance(indices, set | list | tuple) and all(isinstance(n, int) and n >= 0 for n in (layer, *indices))
        for layer, indices in by_layer.items()
    ):
        raise ValueError(f"{where} is not a printed dict from layer to indices: {line[:60]!r}")
    return [(layer, index) for layer, indices in by_layer.items() for index in indices]
