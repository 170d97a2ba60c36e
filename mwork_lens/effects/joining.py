"""Effect matrices of several folds, or of other rows, as one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from ..model import of_model, of_one_model, shown_model
from .matrix import BY_PASSAGE, EffectMatrix
from .overlap import worst


def concat_passages(matrices: Sequence[EffectMatrix], *, common_rows: bool = False) -> EffectMatrix:
    """One matrix of several folds, each measured on its own documents with sets from a detection of its own.

    With ``common_rows``, of the rows that every fold has: a set may have neurons in one detection and none in another.

    Raises:
        ValueError: for none, matrices whose rows, draws, languages or units differ, or no row in common.
    """
    if not matrices:
        raise ValueError("There is no effect matrix to pool.")
    if common_rows:
        common = [row for row in matrices[0].rows if all(row in matrix.rows for matrix in matrices)]
        matrices = [matrix.select(common) for matrix in matrices]
    _require_one_model(matrices)
    first = matrices[0]
    for other, (what, ours) in product(matrices, _shape(first).items()):
        if (theirs := _shape(other)[what]) != ours:
            raise ValueError(f"These effect matrices cannot be pooled: {what} {ours} and {theirs}.")
    by_read: dict[str, dict[str, Any]] = {name: {} for name in BY_PASSAGE}
    for name, read in product(BY_PASSAGE, first.tokens):
        parts = [getattr(matrix, name).get(read) for matrix in matrices]
        if not any(part is None for part in parts):
            by_read[name][read] = torch.cat(parts) if isinstance(parts[0], Tensor) else list(chain(*parts))
    by_read["folds"] = {read: [i for i, m in enumerate(matrices) for _ in m.documents[read]] for read in first.tokens}
    corpora = [matrix.settings["corpus"] for matrix in matrices]
    passages = {read: sum(corpus["passages"][read] for corpus in corpora) for read in first.tokens}
    corpus = {**corpora[0], "hash": [corpus["hash"] for corpus in corpora], "passages": passages}
    sets = {off: [one for matrix in matrices for one in matrix.settings["sets"][off]] for off in first.rows}
    return replace(
        first,
        **by_read,
        nats={off: {r: torch.cat([m.nats[off][r] for m in matrices], 1) for r in first.tokens} for off in first.nats},
        settings={**first.settings, "corpus": corpus, "sets": sets},
    )


def concat_rows(matrices: Sequence[EffectMatrix]) -> EffectMatrix:
    """One matrix of several with other rows, measured on the same documents.

    Raises:
        ValueError: for none, other documents, or a row that is in two.
    """
    if not matrices:
        raise ValueError("There is no effect matrix to join.")
    _require_one_model(matrices)
    first, rows = matrices[0], [row for matrix in matrices for row in matrix.rows]
    documents = [{read: list(names) for read, names in matrix.documents.items()} for matrix in matrices]
    if len(set(rows)) < len(rows) or any(other != documents[0] for other in documents):
        raise ValueError(f"These effect matrices cannot be joined: rows {rows}, or other documents.")
    recorded = all(matrix.seen for matrix in matrices)
    sets = {row: made_of for matrix in matrices for row, made_of in matrix.settings["sets"].items()}
    return replace(
        first,
        nats={off: by_read for matrix in matrices for off, by_read in matrix.nats.items()},
        seen={read: worst([matrix.seen[read] for matrix in matrices]) for read in first.tokens if recorded},
        languages={row: language for matrix in matrices for row, language in matrix.languages.items()},
        settings={**first.settings, "sets": sets},
    )


def _require_one_model(matrices: Sequence[EffectMatrix]) -> None:
    """Refuse those of different models, or of one in different dtypes."""
    of_one_model({f"matrix {number}": matrix.settings for number, matrix in enumerate(matrices, start=1)})
    models = {
        str(record["fingerprint"]): shown_model(record)
        for m in matrices
        if (record := of_model(m.settings)).get("fingerprint")
    }
    if len(models) > 1:
        raise ValueError(
            f"These effect matrices cannot be put together: they are of {' and of '.join(models.values())}."
        )


def _shape(matrix: EffectMatrix) -> dict[str, Any]:
    """What matrices of several folds have in common: rows with their number of draws, languages, unit."""
    rows = {off: len(next(iter(by_read.values()))) for off, by_read in matrix.nats.items()}
    return {"rows": rows, "languages": list(matrix.tokens), "unit": matrix.unit}
