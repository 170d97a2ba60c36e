"""The weight form of switching neurons off: the same outputs as zeroing hooks, without hooks; and its export."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .models import source_directory
from .neurons import NeuronSet, NeuronSpace, ablate
from .sites import SITES, HookedModel, weight
from .store import atomic_directory, require_free

Slice = tuple[Tensor, Tensor]
"""A weight, and a mask of its own shape of the entries to set to zero."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Of logits, in their standard deviations; 0.2 in half precision."""


@contextlib.contextmanager
def edit_weights(model: HookedModel, neurons: NeuronSet) -> Iterator[HookedModel]:
    """``model`` with the set's neurons switched off in its weights; every weight is bit-identical again on any exit.

    Zero are the columns (and biases) of W_Q, W_K and W_V that belong to the set, and its rows of W_down. Outputs are
    those of ``ablate(model, neurons)``; hooks of your own see zeros in q, k and v, but ``mlp.hook_post`` unchanged.
    Within the context ``model.state_dict()`` holds the edited weights.

    Raises:
        ValueError: if the set is of a model with other sizes, or a weight is a copy that edits would not reach.
    """
    neurons.space.require_compatible(NeuronSpace.of(model))
    with _zeroed(list(_slices(model, neurons))):
        yield model


def export_edited(
    model: HookedModel,
    neurons: NeuronSet,
    path: str | Path,
    *,
    source: str | Path | PreTrainedModel,
    tokenizer: Any = None,
) -> Path:
    """Write a Hugging Face directory with the set's neurons switched off; the set itself goes beside, in ``neurons/``.

    Before anything is written, the logits of the edited transformers model are compared with those of ``model`` under
    hooks, so that a layout of weights which is not understood cannot end in a wrong file.

    Args:
        model: the hooked model that ``source`` was loaded as; unchanged.
        neurons: the set to switch off.
        path: a directory that does not exist yet or is empty.
        source: what :func:`load_model` was given: ``"demo"``, a name, a directory, a GGUF file, or a transformers model
            (unchanged afterwards).
        tokenizer: for a transformers model, to save beside it.

    Raises:
        FileExistsError: if ``path`` is taken.
        ValueError: for a set of another model, or a source whose weights are not laid out in a known way.
    """
    require_free(path)
    neurons.space.require_compatible(NeuronSpace.of(model))
    theirs = source
    if not isinstance(source, PreTrainedModel):
        directory = source_directory(source)
        theirs = AutoModelForCausalLM.from_pretrained(
            directory, dtype=_dtype(model), attn_implementation="eager"
        ).eval()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(directory)
    with _zeroed(_transformers_slices(theirs, neurons)):
        _require_same_logits(model, neurons, theirs)
        with atomic_directory(path) as building:
            theirs.save_pretrained(building)  # pyright: ignore[reportAttributeAccessIssue]
            neurons.save(building / "neurons")
            if tokenizer is not None:
                tokenizer.save_pretrained(building)
    return Path(path)


@contextlib.contextmanager
def _zeroed(slices: list[Slice]) -> Iterator[None]:
    kept = [tensor[mask].clone() for tensor, mask in slices]
    try:
        for tensor, mask in slices:
            tensor[mask] = 0
        yield
    finally:
        for (tensor, mask), own in zip(slices, kept, strict=True):
            tensor[mask] = own


def _slices(model: HookedModel, neurons: NeuronSet) -> Iterator[Slice]:
    stored = {p.untyped_storage().data_ptr() for p in model.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
    for site, by_layer in neurons.masks.items():
        for layer, row in enumerate(by_layer):
            for part in SITES[site].silencing if row.any() else ():
                tensor = weight(model, layer, part.weight)
                if tensor is None:
                    continue
                if tensor.untyped_storage().data_ptr() not in stored:
                    raise ValueError(
                        f"{part.weight} of {model.cfg.model_name} is a copy that edits do not reach: "
                        "use hooks, ablate(model, neurons)."
                    )
                yield tensor.detach(), part.of(row, neurons.space.d_head).to(tensor.device).expand(tensor.shape)


# --- transformers' own layouts ---

_LAYER = re.compile(r"\.(\d+)\.(?:.*\.)?(\w+)$")
_READERS = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
_FUSED = ("qkv_proj", "c_attn")
_FUSED_BY_HEAD = ("query_key_value",)
_WRITERS = ("down_proj", "dense_4h_to_h", "fc2", "fc_out")


def _transformers_slices(model: Any, neurons: NeuronSet) -> list[Slice]:
    slices = []
    for name, module in model.named_modules():
        match = _LAYER.search(name)
        if not match or getattr(module, "weight", None) is None:
            continue
        masks = {site: by_layer[int(match[1])] for site, by_layer in neurons.masks.items()}
        outputs, inputs = _module_masks(match[2], ".mlp." in name, masks, neurons.space.d_head)
        transposed = isinstance(module, Conv1D)
        for mask, on_outputs in ((outputs, True), (inputs, False)):
            if mask is not None:
                entries = mask[:, None] if on_outputs != transposed else mask[None]
                slices.append((module.weight.detach(), entries.to(module.weight.device).expand(module.weight.shape)))
        if outputs is not None and module.bias is not None:
            slices.append((module.bias.detach(), outputs.to(module.bias.device)))
    return slices


def _module_masks(
    leaf: str, feed_forward: bool, masks: Mapping[str, Bool[Tensor, " _"]], d_head: int
) -> tuple[Tensor | None, Tensor | None]:
    """Which outputs and which inputs of a linear module belong to the set; None where it has no neurons."""
    if leaf in _READERS:
        return masks[_READERS[leaf]], None
    if leaf in _FUSED:
        return torch.cat([masks[site] for site in "qkv"]), None
    if leaf in _FUSED_BY_HEAD:
        stacked = torch.stack([masks[site] for site in "qkv"])
        return rearrange(stacked, "site (head index) -> (head site index)", index=d_head), None
    if leaf in _WRITERS or (leaf == "c_proj" and feed_forward):
        return None, masks["mlp"]
    return None, None


@torch.inference_mode()
def _require_same_logits(model: HookedModel, neurons: NeuronSet, theirs: Any) -> None:
    ids = torch.arange(3, 11)[None] % model.cfg.d_vocab
    with ablate(model, neurons):
        ours = model(ids.to(next(model.parameters()).device))[0].float().cpu()  # pyright: ignore
    found = theirs(ids.to(theirs.device)).logits[0].float().cpu()
    difference = ((ours - found).abs().max() / ours.std()).item()
    if not difference <= _TOLERANCE.get(_dtype(model), 0.2):
        raise ValueError(
            f"{type(theirs).__name__} with these neurons off differs from {model.cfg.model_name} under hooks by "
            f"{difference:.2g} standard deviations of its logits: its weights are not laid out in a way known here. "
            "Save model.state_dict() within edit_weights(model, neurons) instead."
        )


def _dtype(model: HookedModel) -> torch.dtype:
    return next(model.parameters()).dtype  # pyright: ignore[reportAttributeAccessIssue]
