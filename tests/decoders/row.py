"""One row of the table, and the tiny random model that it describes."""

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers

import mwork_lens as mw

from ..words import words

GENERATION = ".".join(importlib.metadata.version("transformer-lens").split(".")[:2])
"""Of TransformerLens, as installed: 3.9 or 4.3."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """An architecture with one setting of the options that change what it computes."""

    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of transformers' configuration class, which make the model tiny."""
    variant: str = ""
    """What this row has that the architecture's others lack, in a few words."""
    sites: tuple[str, ...] = ("q", "k", "v", "mlp")
    """Those whose scores equal ablation."""
    refused: str = ""
    """Words of the error that loading or detecting raises; empty for one that is exact."""
    note: str = ""
    """For entries without a class in transformers: custom code, same as another, or TransformerLens' own."""
    length: int = 24
    """Tokens of a document that is longer than everything in the model that depends on length."""
    dtype: torch.dtype = torch.float64
    """In which it is compared: some families of transformers cannot run in double precision."""
    generations: tuple[str, ...] = ("3.9", "4.3")
    """Of TransformerLens that this row holds for."""

    def __str__(self) -> str:
        return f"{self.architecture}-{self.variant}" if self.variant else self.architecture

    @property
    def can_be_built(self) -> bool:
        """Whether transformers has a class for it."""
        return not self.note


@cache
def transformers_model(row: Decoder, dtype: torch.dtype | None = None) -> Any:
    """The tiny random model; every parameter is jittered, so that gains, biases and multipliers matter."""
    kind = getattr(transformers, row.architecture)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(kind.config_class(**row.options, attn_implementation="eager")).to(dtype or row.dtype).eval()
    model.config.architectures = [row.architecture]
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def decoder_model(row: Decoder, dtype: torch.dtype | None = None) -> Any:
    """What ``mw.load_model`` makes of the row's model, which no other call gets."""
    model = transformers_model.__wrapped__(row, dtype)
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    return mw.load_model(model, tokenizer=tokenizer, device="cpu", dtype=model.dtype)


def document(row: Decoder, length: int | None = None, seed: int = 0) -> torch.Tensor:
    """Token ids of ordinary tokens."""
    length = row.length if length is None else length
    return torch.randint(3, 50, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def reference_logits(row: Decoder, ids: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Of transformers, for one document."""
    return transformers_model(row, dtype)(ids[None], use_cache=False).logits[0]
