"""A changed model as a Hugging Face directory, read back and compared before it counts as written."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..model import (
    HALF_TOLERANCE,
    HookedModel,
    bridge_on,
    device_of,
    load_tokenizer,
    logit_distance,
    read_model,
    settled,
    source_directory,
)
from ..neurons import NeuronSet, NeuronSpace, edit_weights, silencing_entries, warn_of_other_weights
from ..store import Result, atomic_directory, require_free, user_path
from ..text import check_arguments
from .delta import NeuronDelta

TOLERANCE = 2e-5
"""Root mean square difference of logits, in their standard deviations; half precision has a tolerance of its own."""

Source = str | Path | nn.Module
"""What :func:`load_model` was given for the model as it was: a transformers model, or what names one."""

Places = tuple[str, tuple[Int[Tensor, " _"], ...]]
"""A parameter of the transformers model, and where in it some entries are: an index for each axis."""


def export_tuned(
    model: HookedModel, delta: NeuronDelta, path: str | Path, *, source: Source, tokenizer: Any = None
) -> Path:
    """Write the tuned model as a directory that transformers loads; the delta itself goes there too, in ``delta/``.

    The delta is written into transformers' own weights (fused projections too), saved and read back. The entries must
    then hold the new values bit for bit, and the logits be those of ``model``, or nothing is left at ``path``.

    Args:
        model: the tuned model.
        delta: what tuning changed.
        path: a directory that does not exist yet or is empty.
        source: what :func:`load_model` was given for the untuned model: ``"demo"``, a name, a directory, a GGUF file,
            or a transformers model (unchanged afterwards; give its ``tokenizer``).
        tokenizer: to save with it; by default the one next to the weights.

    Raises:
        FileExistsError: if ``path`` is taken.
        ValueError: if ``source`` does not hold the delta's old values, or what was written differs from ``model``.
    """
    check_arguments(export_tuned, locals())
    return _export(model, delta, path, source, tokenizer, {"delta": delta})


def export_edited(
    model: HookedModel, neurons: NeuronSet, path: str | Path, *, source: Source, tokenizer: Any = None
) -> Path:
    """As :func:`export_tuned`, with the set's neurons switched off instead; the set goes there too, in ``neurons/``.

    ``model`` is the hooked model that ``source`` was loaded as; it is unchanged.

    Raises:
        FileExistsError: if ``path`` is taken.
        ValueError: for no neurons, a set of a model with other sizes, or a ``source`` of which ``model`` was not
            loaded. A set of another model of these sizes (its name, or the fingerprint of its weights) warns.
    """
    check_arguments(export_edited, locals())
    require_free(path)
    if not len(neurons):
        raise ValueError(f"{neurons!r} holds no neurons: there is nothing to switch off.")
    entries = silencing_entries(model, neurons)
    warn_of_other_weights(model, [neurons])
    old = {part.name: part.read().cpu() for part in entries}
    new = {name: torch.zeros_like(values) for name, values in old.items()}
    places = {part.name: part.neurons for part in entries if part.neurons is not None}
    off = NeuronDelta(NeuronSpace.of(model, fingerprint=True), places, old, new, {"off": dict(neurons.origin)})
    with edit_weights(model, neurons):
        return _export(model, off, path, source, tokenizer, {"neurons": neurons})


def _export(
    model: HookedModel, delta: NeuronDelta, path: str | Path, source: Any, tokenizer: Any, extra: Mapping[str, Result]
) -> Path:
    """Writes ``extra`` results too, each in a folder of its name."""
    from transformers import PreTrainedModel

    require_free(path)
    dtype = next(iter(delta.new.values())).dtype
    if isinstance(source, PreTrainedModel) and tokenizer is None:
        raise ValueError(f"{type(source).__name__} comes without a tokenizer: give tokenizer=.")
    original: Any = source if isinstance(source, PreTrainedModel) else source_directory(source)
    if isinstance(original, str | Path) and user_path(original).is_dir():
        original = user_path(original)
    tokenizer = tokenizer or load_tokenizer(original)
    places = _places(delta, original)
    theirs = _load(original, dtype)
    _require_values(theirs, places, delta.old, f"{source!s:.60} does not hold the delta's old values")
    parameters = dict(theirs.named_parameters())
    for name, (parameter, index) in places.items():
        parameters[parameter].data[index] = delta.new[name].flatten()
    with atomic_directory(path) as building:
        theirs.save_pretrained(building)
        tokenizer.save_pretrained(building)
        read_back = _load(building, dtype)
        _require_values(read_back, places, delta.new, "what was written does not hold the delta's new values")
        _require_same_logits(model, read_back)
        for name, result in extra.items():
            result.save(building / name)
    return user_path(path)


def _load(source: str | Path | nn.Module, dtype: torch.dtype) -> Any:
    """A transformers model from its directory, or a copy of one."""
    if isinstance(source, nn.Module):
        return copy.deepcopy(source).to(dtype)
    return read_model(source, dtype)


def _places(delta: NeuronDelta, source: Any) -> dict[str, Places]:
    """Where the transformers model keeps the delta's entries, whatever it calls and fuses its weights.

    Every weight is filled with the number of its parameter, then with its rows' and its columns' numbers, and read
    through a bridge, which knows the architecture. (Three passes, because float32 is exact up to 2²⁴ only.)
    """
    names: list[str] = []
    marks: dict[str, list[Tensor]] = {name: [] for name in delta.neurons}
    for axis in (None, 0, 1):
        marked = _load(source, torch.float32)
        names = [name for name, _ in marked.named_parameters()]
        for number, parameter in enumerate(marked.parameters()):
            _mark(parameter.data, number, axis)
        for entries in delta.entries(bridge_on(marked)):
            marks[entries.name].append(entries.read().round().long().flatten().cpu())
    return {
        name: (names[int(number[0])], tuple(index[:1] if ".b_" in name else index))
        for name, (number, *index) in marks.items()
    }


def _mark(values: Tensor, number: int, axis: int | None) -> None:
    if axis is None:
        values.fill_(number)
    elif axis < values.ndim:
        numbers = torch.arange(values.shape[axis], device=values.device)
        values.transpose(axis, -1).copy_(numbers)


def _require_values(theirs: Any, places: Mapping[str, Places], expected: Mapping[str, Tensor], problem: str) -> None:
    parameters = dict(theirs.named_parameters())
    for name, (parameter, index) in places.items():
        values = parameters[parameter].data[index].cpu()
        if not torch.equal(values, expected[name].flatten()):
            raise ValueError(f"{problem}: {name} (there {parameter}) differs. Nothing was written.")


@torch.inference_mode()
def _require_same_logits(model: HookedModel, theirs: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.cfg.d_vocab, (1, min(32, model.cfg.n_ctx)), generator=generator)
    with settled(model):
        ours: Tensor = model(ids.to(device_of(model)))[0]
        difference = logit_distance(theirs(ids.to(theirs.device)).logits[0], ours)
    if not difference <= (HALF_TOLERANCE if ours.dtype.itemsize < 4 else TOLERANCE):
        raise ValueError(
            f"The exported model's logits differ from those of {model.cfg.model_name} by {difference:.2g} of their "
            "standard deviation: the model holds other weights than source and delta say. Nothing was written."
        )
