"""What a user relies on: of a few decoders, or of all of them where ``MWORK_LENS_PROPERTIES`` is set."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from ..decoders import DECODERS, Decoder, document
from ..decoders.row import GENERATION

ALL = bool(os.environ.get("MWORK_LENS_PROPERTIES"))
EXACT = {str(row): row for row in DECODERS if row.can_be_built and not row.refused and GENERATION in row.generations}
FEW = ("LlamaForCausalLM", "SmolLM3ForCausalLM-windows, biases", "FalconForCausalLM-ALiBi")
"""A HookedTransformer and bridges: windows, layers without rotation, tables that are cached."""
QUIET: Any = {"progress": False}


def rows(names: Iterable[str] = FEW, *, only: bool = False) -> pytest.MarkDecorator:
    """These decoders, or all; with ``only`` never others, where what is tested does not depend on the decoder."""
    every = ALL and not only
    return pytest.mark.parametrize("row", [row for name, row in EXACT.items() if every or name in names], ids=str)


def documents(row: Decoder) -> list[torch.Tensor]:
    """Shorter and longer than everything in the model that depends on length."""
    return [document(row, length, seed=length) for length in (row.length, 3, row.length // 2, 7, row.length - 3)]


def with_dropout(row: Decoder) -> Decoder:
    """The decoder with dropout wherever its configuration has one, which TransformerLens' own have not."""
    if row.is_own:
        return row
    kind: Any = getattr(transformers, row.architecture).config_class

    def dropped(values: Any) -> dict[str, Any]:
        return {name: 0.5 for name, value in values.items() if "drop" in name and isinstance(value, float)}

    config = kind(**row.options)
    options = {**row.options, **dropped(config.to_dict())}
    if "attn_config" in config.to_dict():
        options["attn_config"] = {**dict(row.options.get("attn_config", {})), **dropped(config.attn_config.to_dict())}
    return replace(row, options=options)
