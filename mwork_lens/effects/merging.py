"""Effect matrices of several parts of a corpus as one: every passage was measured in one part."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..model.shards import in_order


def merged_fields(parts: Mapping[str, Any], by_passage: Sequence[str]) -> dict[str, Any]:
    """The fields of the matrix that these are parts of, by names for messages; see :meth:`EffectMatrix.merge`."""
    names = in_order(
        {name: part.settings for name, part in parts.items()},
        {name: part.documents_of for name, part in parts.items()},
    )
    if whole := [name for name in names if "part" not in parts[name].settings]:
        raise ValueError(f"{whole[0]} is not a part of a corpus (effect_matrix(..., shard=...)): use its own folds.")
    ordered = [parts[name] for name in names]
    if len(units := {part.unit for part in ordered}) > 1:
        raise ValueError(f"These effect matrices cannot be merged: they are in different units, {', '.join(units)}.")
    first = ordered[0]
    reads = list(first.settings["corpus"]["passages"])

    def placed(read: str, values: Sequence[Any]) -> Any:
        """What parts have of each passage of a language, in the order of the corpus."""
        rows = [row for part in ordered for row in part.settings["part"]["rows"].get(read, ())]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        if isinstance(values[0], Tensor):
            return torch.cat([*values], -1)[..., order]
        every = [*chain(*values)]
        return [every[place] for place in order]

    of = {read: [part for part in ordered if read in part.tokens] for read in reads}
    fields = {
        name: {read: placed(read, [getattr(part, name)[read] for part in of[read]]) for read in reads}
        for name in by_passage
    }
    for name in ("documents", "documents_of"):
        fields[name] = {read: tuple(values) for read, values in fields[name].items()}
    nats = {
        off: {read: placed(read, [part.nats[off][read] for part in of[read]]) for read in reads} for off in first.nats
    }
    settings = {name: value for name, value in first.settings.items() if name != "part"}
    return {**fields, "nats": nats, "languages": first.languages, "settings": settings, "unit": first.unit}
