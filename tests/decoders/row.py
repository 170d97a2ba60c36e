"""One row of the table, and the tiny random model that it describes."""

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from transformer_lens.config import TransformerBridgeConfig

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
        """Whether there is a class for it, of transformers or of TransformerLens."""
        return not self.note

    @property
    def is_own(self) -> bool:
        """Whether it is TransformerLens' own, built from its configuration."""
        return self.architecture == "TransformerLensNative"


def _model(row: Decoder) -> Any:
    kind = getattr(transformers, row.architecture)
    model = kind(kind.config_class(**row.options, attn_implementation="eager"))
    model.config.architectures = [row.architecture]
    return model


def _own_model(row: Decoder) -> Any:
    from transformer_lens.model_bridge.sources.native import NativeModel

    return NativeModel(TransformerBridgeConfig(**row.options))


def _own_bridge(theirs: Any, row: Decoder) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    cfg = theirs.cfg
    return build_bridge_from_module(
        theirs, architecture=row.architecture, tl_config=cfg, dtype=theirs.head.weight.dtype
    )


@cache
def transformers_model(row: Decoder, dtype: torch.dtype | None = None) -> Any:
    """The tiny random model; every parameter is jittered, so that gains, biases and multipliers matter."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = (_own_model if row.is_own else _model)(row).to(dtype or row.dtype).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for layer, (_, scalar) in enumerate(named for named in model.named_buffers() if named[0].endswith("layer_scalar")):
        scalar.fill_(0.5 + 0.2 * layer)  # which Gemma 4 multiplies its stream with
    return model


def decoder_model(row: Decoder, dtype: torch.dtype | None = None) -> Any:
    """What ``mw.load_model`` makes of the row's model, which no other call gets."""
    model = transformers_model.__wrapped__(row, dtype)
    if row.is_own:
        return mw.load_model(_own_bridge(model, row))
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
    out = transformers_model(row, dtype)(ids[None], use_cache=False)
    return getattr(out, "logits", out)[0]
