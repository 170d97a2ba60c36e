"""Effect matrices into one: other documents with sets of another detection, or other rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .matrix import EffectMatrix


def pool(folds: Sequence[EffectMatrix]) -> EffectMatrix:
    """One matrix of several, each measured on its own documents with sets from a detection of its own.

    Raises:
        ValueError: for none, or matrices whose rows, draws, languages or units differ.
    """
    if not folds:
        raise ValueError("There is no effect matrix to pool.")
    first = folds[0]
    for other in folds[1:]:
        for what, ours, theirs in zip(("rows", "languages", "unit"), _shape(first), _shape(other), strict=True):
            if ours != theirs:
                raise ValueError(f"These effect matrices cannot be pooled: {what} {ours} and {theirs}.")
    corpora = [fold.settings["corpus"] for fold in folds]
    passages = {read: sum(corpus["passages"][read] for corpus in corpora) for read in first.tokens}
    corpus = {**corpora[0], "hash": [c["hash"] for c in corpora], "passages": passages}
    sets = {off: [one for fold in folds for one in fold.settings["sets"][off]] for off in first.rows}
    return replace(
        first,
        nats={o: {r: torch.cat([f.nats[o][r] for f in folds], 1) for r in first.tokens} for o in first.nats},
        tokens={read: torch.cat([fold.tokens[read] for fold in folds]) for read in first.tokens},
        utf8_bytes={read: torch.cat([fold.utf8_bytes[read] for fold in folds]) for read in first.tokens},
        documents={read: [name for fold in folds for name in fold.documents[read]] for read in first.tokens},
        folds={read: [i for i, f in enumerate(folds) for _ in f.documents[read]] for read in first.tokens},
        settings={**first.settings, "corpus": corpus, "sets": sets},
    )


def pool_common(folds: Sequence[EffectMatrix]) -> EffectMatrix:
    """As :func:`pool`, of the rows that every fold has: a set may have neurons in one detection and none in another.

    Raises:
        ValueError: for no row in common, or as :func:`pool`.
    """
    common = [row for row in folds[0].rows if all(row in fold.rows for fold in folds)] if folds else []
    return pool([fold.select(common) for fold in folds])


def beside(parts: Sequence[EffectMatrix]) -> EffectMatrix:
    """One matrix of several with other rows, measured on the same documents.

    Raises:
        ValueError: for none, other documents, or a row that is in two.
    """
    if not parts:
        raise ValueError("There is no effect matrix to join.")
    first, rows = parts[0], [row for part in parts for row in part.rows]
    if len(set(rows)) < len(rows) or any(_documents(part) != _documents(first) for part in parts):
        raise ValueError(f"These effect matrices cannot be joined: rows {rows}, or other documents.")
    sets = {row: found for part in parts for row, found in part.settings["sets"].items()}
    return replace(
        first,
        nats={off: by_read for part in parts for off, by_read in part.nats.items()},
        languages={row: language for part in parts for row, language in part.languages.items()},
        settings={**first.settings, "sets": sets},
    )


def _shape(matrix: EffectMatrix) -> tuple[dict[str, int], list[str], str]:
    """What matrices must have in common: rows with their draws, languages, unit."""
    draws = {off: len(next(iter(by_read.values()))) for off, by_read in matrix.nats.items()}
    return draws, list(matrix.tokens), matrix.unit


def _documents(matrix: EffectMatrix) -> dict[str, list[str]]:
    return {read: list(names) for read, names in matrix.documents.items()}
