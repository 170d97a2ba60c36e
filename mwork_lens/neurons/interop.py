"""Neuron sets out of other people's files, and into them: of the paper's released code, of LAPE, as plain JSON.

Nothing in them is executed.
"""

import ast
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model import HookedModel
from ..store import atomic_file, user_path, write_text
from ..text import check_arguments, read_lines
from .sets import NeuronSet
from .space import NeuronSpace

LAPE_LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")
"""Of the released files of LLaMA-2-7B and 13B; those of LLaMA-2-70B, BLOOM, OPT, Mistral and Phi-2 lack Japanese."""
_FIRST_16 = ("en", "ar", "bo", "da", "de", "es", "fr", "hi", "it", "ja", "ko", "mt", "nl", "no", "pl", "pt")
_LAST_16 = ("ru", "sv", "tr", "zh", "sk", "el", "kk", "sw", "ka", "uk", "fa", "th", "id", "vi", "cs", "ro")
CLAS_BENCH_LANGUAGES = _FIRST_16 + _LAST_16
"""Of the masks of CLaS-Bench, which are in LAPE's form."""
_KNOWN = {len(order): order for order in (LAPE_LANGUAGES, LAPE_LANGUAGES[:-1], CLAS_BENCH_LANGUAGES)}
_NUMPY_NUMBER = re.compile(r"\b(?:np|numpy)\.u?int\d+\((\d+)\)")
"""How NumPy 2 prints a whole number."""

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

    What NumPy 2 prints, ``np.int64(3)``, is read too. The set's feed-forward neurons are those of W_up's or W_down's
    list. ``model`` has the sizes that the file is of, or is the space of such a model's set or detection; ``language``
    is whose neurons they are, which the file does not say: controls and effects use it.

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


def load_lape(
    path: str | Path, model: HookedModel | NeuronSpace, languages: Sequence[str] | None = None
) -> dict[str, NeuronSet]:
    """The sets of a ``.pth`` file of LAPE's code (Tang et al. 2024): by language and layer, indices of ``mlp`` neurons.

    ``languages`` are in the file's order, which it does not record. None takes a file of seven for the released ones
    (en, zh, fr, es, vi, id, ja; LLaMA-2-7B and 13B), one of six for those without ja (LLaMA-2-70B, BLOOM, OPT, Mistral,
    Phi-2), and one of 32 for masks of CLaS-Bench. ``model`` is as in :func:`load_released`.

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
    if languages is None and (languages := _KNOWN.get(len(lists))) is None:
        raise ValueError(f"{path} holds {len(lists)} languages, of no order that is known: give languages=.")
    if len(lists) != len(languages):
        raise ValueError(f"{path} holds {len(lists)} languages; {len(languages)} are named: {', '.join(languages)}.")
    sets = {}
    for language, layers in zip(languages, lists, strict=True):
        if len(layers) != space.n_layers:
            raise ValueError(f"{path} is of a model with {len(layers)} layers; {space.model} has {space.n_layers}.")
        neurons = [(layer, "mlp", index) for layer, indices in enumerate(layers) for index in indices]
        sets[language] = NeuronSet.from_list(space, neurons, kind="LAPE", source=Path(path).name, language=language)
    return sets


def save_neurons(sets: Mapping[str, NeuronSet], path: str | Path, *, overwrite: bool = False) -> None:
    """Write feed-forward neurons of several languages in a form that other code reads.

    ``.json``: ``{"fr": [[layer, neuron], ...], ...}``. ``.pth``: what LAPE's and CLaS-Bench's code reads, lists by
    language (in the order of ``sets``, which the file does not record) of lists by layer of index tensors.

    Raises:
        ValueError: for another ending, no sets, sets of models with other sizes, or neurons of other sites.
        FileExistsError: for a file that is there, unless ``overwrite``.
    """
    check_arguments(save_neurons, locals())
    path = user_path(path)
    if path.suffix not in (".json", ".pth"):
        raise ValueError(f"{path} must end in .json or .pth.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another path, or overwrite=True.")
    masks = _feed_forward_masks(sets)
    if path.suffix == ".json":
        lists = {language: mask.nonzero().tolist() for language, mask in masks.items()}
        write_text(path, json.dumps(lists, ensure_ascii=False) + "\n")
        return
    with atomic_file(path) as building:
        torch.save([[row.nonzero().flatten() for row in mask] for mask in masks.values()], building)


def _feed_forward_masks(sets: Mapping[str, NeuronSet]) -> dict[str, torch.Tensor]:
    if not sets:
        raise ValueError("There is no set to write.")
    first = next(iter(sets.values())).space
    for language, neurons in sets.items():
        first.require_compatible(neurons.space)
        if others := [site for site, mask in neurons.masks.items() if site != "mlp" and mask.any()]:
            raise ValueError(
                f"{language!r} has neurons of {', '.join(others)}, which these files have no place for: give "
                "restrict(sites='mlp'), or save the set with NeuronSet.save."
            )
    return {language: neurons.masks["mlp"] for language, neurons in sets.items()}


def load_neurons(path: str | Path, model: HookedModel | NeuronSpace) -> dict[str, NeuronSet]:
    """The sets of a JSON file ``{"fr": [[layer, neuron], ...], ...}`` of feed-forward neurons, by language.

    ``model`` is as in :func:`load_released`.

    Raises:
        ValueError: for a file of another form, or neurons that the model lacks.
    """
    check_arguments(load_neurons, locals())
    space = model if isinstance(model, NeuronSpace) else NeuronSpace.of(model)
    try:
        content = json.loads(user_path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error!s:.80}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not neurons by language.")
    sets = {}
    for language, pairs in content.items():
        if wrong := [each for each in (pairs if isinstance(pairs, list) else [pairs]) if not _is_pair(each)]:
            raise ValueError(f"{path}, {language!r}: {wrong[0]!r:.60} is not a pair [layer, neuron].")
        neurons = [(layer, "mlp", neuron) for layer, neuron in pairs]
        sets[language] = NeuronSet.from_list(space, neurons, kind="given", source=Path(path).name, language=language)
    return sets


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _printed(line: str, where: str) -> list[tuple[int, int]]:
    """(layer, index) pairs out of a printed dict."""
    by_layer: Any = None
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        by_layer = ast.literal_eval(_NUMPY_NUMBER.sub(r"\1", line.strip()))
    if not isinstance(by_layer, dict) or not all(
        isinstance(indices, set | list | tuple) and all(isinstance(n, int) and n >= 0 for n in (layer, *indices))
        for layer, indices in by_layer.items()
    ):
        raise ValueError(f"{where} is not a printed dict from layer to indices: {line[:60]!r}")
    return [(layer, index) for layer, indices in by_layer.items() for index in indices]
