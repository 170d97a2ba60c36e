"""Effect matrices of several parts of a corpus as one: every passage was measured in one part."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..model.shards import in_order, in_place, without_part


def merged_fields(parts: Mapping[str, Any], by_passage: Sequence[str]) -> dict[str, Any]:
    """The fields of the matrix that these are parts of, by names for messages; see :meth:`EffectMatrix.merge`."""
    ordered = [parts[name] for name in in_order({name: part.settings for name, part in parts.items()})]
    if len(units := {part.unit for part in ordered}) > 1:
        raise ValueError(f"These effect matrices cannot be merged: they are in different units, {', '.join(units)}.")
    first, placed = ordered[0], partial(in_place, [part.settings for part in ordered])
    of = {read: [part for part in ordered if read in part.tokens] for read in first.settings["corpus"]["passages"]}
    fields = {
        name: {read: placed(read, [getattr(part, name)[read] for part in has]) for read, has in of.items()}
        for name in by_passage
    }
    for name in ("documents", "documents_of"):
        fields[name] = {read: tuple(values) for read, values in fields[name].items()}
    nats = {
        off: {read: placed(read, [part.nats[off][read] for part in has], -1) for read, has in of.items()}
        for off in first.nats
    }
    settings = without_part(first.settings)
    return {**fields, "nats": nats, "languages": first.languages, "settings": settings, "unit": first.unit}
