"""Several detections as one: parts of one corpus in its order, or of different documents."""

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..model.reducers import ExactSum
from ..model.shards import in_order, in_place, without_part
from ..store import Hashes, digest

BySite = Mapping[str, Any]


def merged_fields(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the detection that these are parts of, by names for messages; see :meth:`Detection.merge`."""
    named = ordered(parts)
    for name, part in named.items():
        if part.sums.keys() != part.documents.keys():
            raise ValueError(f"{name} was made by a version that did not record sums of scores: detect again.")
    parts_in_order = list(named.values())
    first, languages = parts_in_order[0], languages_of(parts_in_order)

    def added(name: str) -> dict[str, BySite]:
        return {
            tag: sum_by_site([getattr(part, name)[tag] for part in parts_in_order if tag in part.documents])
            for tag in languages
        }

    documents, tokens = (
        {tag: sum(getattr(part, name).get(tag, 0) for part in parts_in_order) for tag in languages}
        for name in ("documents", "tokens")
    )
    sums = added("sums")
    dtype = next(iter(next(iter(first.mean_scores.values())).values())).dtype
    return {
        "counts": added("counts"),
        "screened": added("screened"),
        "sums": sums,
        "documents": documents,
        "mean_scores": {tag: mean_scores(sums[tag], documents[tag], first.layers, dtype) for tag in languages},
        "tokens": tokens if all(part.tokens for part in parts_in_order) else {},
        **merged_record(parts_in_order),
    }


def ordered(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Results that make one whole, by name, in an order that does not depend on how they were given.

    Raises:
        ValueError: where :func:`in_order` refuses them, or for those of other models.
    """
    names = in_order(
        {name: part.settings for name, part in parts.items()},
        {name: part.documents_of for name, part in parts.items()},
    )
    named = {name: parts[name] for name in names}
    require_one_space(named)
    return named


def require_one_space(parts: Mapping[str, Any]) -> None:
    """A ValueError for results, by name, of models of other sizes or weights."""
    first, space = next((name, part.space) for name, part in parts.items())
    for name, part in parts.items():
        if part.space != space or part.space.fingerprint != space.fingerprint:
            raise ValueError(f"{first} is of {space.shown}, {name} of {part.space.shown}.")


def merged_record(parts: Sequence[Any]) -> dict[str, Any]:
    """What the whole says of model, settings and documents, of parts in order."""
    first, seen = parts[0], [part.seen for part in parts]
    return {
        "space": first.space,
        "settings": {
            **without_part(first.settings),
            **({} if "part" in first.settings else {"corpus": _corpus(parts)}),
        },
        "documents_of": {tag: in_corpus_order(parts, tag, "documents_of") for tag in languages_of(parts)},
        "seen": None if None in seen else reduce(operator.or_, seen),
    }


def mean_scores(
    sums: Mapping[str, ExactSum], documents: int, layers: Sequence[int], dtype: torch.dtype
) -> dict[str, Float[Tensor, "layer _"]]:
    """Mean scores by site; NaN in other layers than these, which were not scored."""
    means = {site: (total.value() / documents).to(dtype) for site, total in sums.items()}
    for values in means.values():
        values[[layer for layer in range(len(values)) if layer not in layers]] = torch.nan
    return means


def sum_by_site(values: Sequence[BySite]) -> dict[str, Any]:
    """By site, the sums of tensors or of exact sums, as new ones."""
    if isinstance(next(iter(values[0].values())), Tensor):
        return {site: reduce(operator.add, (each[site] for each in values)) for site in values[0]}
    totals = {site: ExactSum.zeros(*total.high.shape) for site, total in values[0].items()}
    for each in values:
        for site, total in totals.items():
            total.add(each[site])
    return totals


def languages_of(parts: Sequence[Any]) -> list[str]:
    """In the order of the corpus, or that of all parts if they have the same, or else of the alphabet."""
    orders = {tuple(part.documents_of) for part in parts}
    if "part" in parts[0].settings:
        return list(parts[0].settings["corpus"]["passages"])
    return list(orders.pop()) if len(orders) == 1 else sorted(set().union(*orders))


def in_corpus_order(parts: Sequence[Any], language: str, name: str) -> Sequence[Any]:
    """What parts hold of each document of a language; of parts of one corpus, each in its place there."""
    values = [getattr(part, name)[language] for part in parts if language in part.documents_of]
    whole = chain(*values)
    if "part" in parts[0].settings:
        whole = in_place([part.settings for part in parts], language, values)
    return Hashes.of(whole) if all(isinstance(each, Hashes) for each in values) else tuple(whole)


def _corpus(parts: Sequence[Any]) -> dict[str, Any]:
    """What the detection of several corpora says of them all."""
    records = [part.settings["corpus"] for part in parts]
    if len(records) == 1:
        return records[0]
    counts = {
        name: {tag: sum(record[name].get(tag, 0) for record in records) for tag in languages_of(parts)}
        for name in ("passages", "documents")
        if all(name in record for record in records)
    }
    return {"source": "several", "hash": digest([record["hash"] for record in records]), **counts, "merged": records}
