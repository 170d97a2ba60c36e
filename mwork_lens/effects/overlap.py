"""Whether the documents that are measured on were read when the neurons were found."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import pandas as pd

from ..settings import Overlap
from ..statistics import counted
from ..text import Corpus, SeenDocuments, Status

DETECTION, TUNING = "detection", "tuning"
SAID = "Of these documents {} has seen"
"""How the warning begins, of detection or of what else has seen them."""
Statuses = Mapping[str, Sequence[Status]]
"""Of each passage, by language."""
REMEDY = (
    "What is measured on them need not hold for other text: measure on other documents (Corpus.split, folded_effects; "
    "mwork-lens detect --held-out)."
)


def statuses_of(corpus: Corpus, seen: Iterable[SeenDocuments | None]) -> dict[str, list[Status]]:
    """Of every passage, the worst of what several detections say; unknown where one does not say what it has read."""
    known = {id(one): one for one in seen}.values()
    unknown: dict[str, list[Status]] = {read: ["unknown"] * len(texts) for read, texts in corpus.items()}
    each = [unknown if one is None else corpus.seen_by(one) for one in known]
    return {read: worst([statuses[read] for statuses in each]) for read in corpus}


def worst(each: Sequence[Sequence[Status]]) -> list[Status]:
    """Of each passage, over several."""
    order = get_args(Status).index
    return [max(statuses, key=order) for statuses in zip(*each, strict=True)]


def check_overlap(corpus: Corpus, statuses: Statuses, overlap: Overlap, stacklevel: int, by: str = DETECTION) -> None:
    """Warn of documents that were seen, or refuse them."""
    if said := overlap_words(documents_read(statuses, corpus.documents), by):
        if overlap == "refuse":
            raise ValueError(f"{said} {REMEDY}")
        warnings.warn(f"{said} {REMEDY}", stacklevel=stacklevel)


def documents_read(statuses: Statuses, documents: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per language: passages, documents, and how many of these have each status; an old record says nothing."""
    rows = {}
    for read, names in documents.items():
        by_name = dict(zip(names, statuses.get(read, ["unknown"] * len(names)), strict=True))
        counts = Counter(by_name.values())
        of_each = {status.replace(" ", "_"): counts[status] for status in reversed(get_args(Status))}
        rows[read] = {"passages": len(names), "documents": len(by_name), **of_each}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("read")


def seen_finding(read: pd.DataFrame, by: str = DETECTION) -> str:
    """What detection (or another reader) has seen of the documents, in a sentence."""
    if words := overlap_words(read, by):
        return words
    unknown, total = (sum(read[name].tolist()) for name in ("unknown", "documents"))
    if unknown:
        return f"Whether {by} has seen the documents is unknown for {unknown} of {total}."
    texts = f"{counted(read['passages'], read['documents'])} per language"
    return f"{by[0].upper()}{by[1:]} has seen none of the documents ({texts})."


def overlap_words(read: pd.DataFrame, by: str = DETECTION) -> str:
    """What share was seen, in a sentence; none if nothing was."""
    by_language, parts = read.to_dict("index"), []
    total = sum(row["documents"] for row in by_language.values())
    for column, where in ("seen", "in this language"), ("seen_in_another_language", "in another language only"):
        rows = [(name, row[column], row["documents"]) for name, row in by_language.items()]
        if number := sum(seen for _, seen, _ in rows):
            listed = ", ".join(f"{name} {seen} of {documents}" for name, seen, documents in rows if seen)
            parts.append(f"{100 * number / total:.0f} % {where} ({listed})")
    return f"{SAID.format(by)} {' and '.join(parts)}." if parts else ""
