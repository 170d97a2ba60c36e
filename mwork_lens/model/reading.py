"""A pass over a corpus or a stream, over all of it or one part, with what results say of the text that was read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..store.processes import hidden
from ..text import SeenDocuments, StreamedCorpus
from .architecture import HookedModel
from .forward import Encoded, Plan, Progress
from .shards import part_of
from .tally import Tally, pass_record, tallied
from .windows import part_of_windows, read_windows


class Reading(NamedTuple):
    """What was read, by language in the order of the corpus."""

    parts: Mapping[str, Any]
    """Reducers, of more languages perhaps."""
    documents_of: Mapping[str, Sequence[str]]
    """The identity of each document, in the order of the corpus."""
    tokens: Mapping[str, int]
    """Ordinary ones."""
    seen: SeenDocuments
    settings: Mapping[str, Any]
    """What results add to their settings: which part it is, and what a stream held."""


Empty = Callable[[Plan], Mapping[str, Any]]
"""Reducers without batches for a plan, by language."""
Add = Callable[[Tally, Plan, Progress], None]
"""Adds the batches of a plan to them, and moves a bar on."""


def read_text(
    name: str,
    model: HookedModel,
    text: Encoded | StreamedCorpus,
    empty: Empty,
    add: Add,
    asked: Mapping[str, Any],
    *,
    batch_size: int | None,
    max_tokens: int,
    shard: tuple[int, int] | None,
    checkpoint: str | Path | None,
    bar: str | None,
) -> Reading:
    """Read a corpus by one plan, or a stream by one for each window.

    Args:
        name: of the pass, in its checkpoint.
        model: a hooked model.
        text: what to read.
        empty: makes reducers.
        add: fills them.
        asked: everything that decides the numbers, with ``settings`` among it.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: where documents of a stream are cut.
        shard: which part of how many; None reads all.
        checkpoint: a folder in which a stopped pass goes on.
        bar: what a bar says; None shows none.
    """
    if isinstance(text, StreamedCorpus):
        options = {"batch_size": batch_size, "max_tokens": max_tokens, "checkpoint": checkpoint}
        record = pass_record(f"{name} of a stream", model, None, {**asked, "shard": shard})
        return _read_stream(model, text, empty, add, bar, record=record, shard=shard, **options)
    whole = text.plan(batch_size)
    plan, part = whole, {}
    rows: Mapping[str, Sequence[int]] = {language: range(number) for language, number in text.documents.items()}
    if shard is not None:
        plan, of_part = part_of(whole, shard)
        rows, part = of_part["rows"], {"part": of_part}
    parts, asked = empty(whole), {**asked, "settings": {**asked["settings"], **part}}
    with tallied(parts, checkpoint, lambda: pass_record(name, model, whole, asked)) as tally:
        add(tally, tally.left(plan), bar)
    hashes, names = text.hashes, text.corpus.identities
    return Reading(
        parts,
        {tag: tuple(hashes[tag][i] for i in places) for tag, places in rows.items()},
        {tag: int(text.ordinary[tag][list(places)].sum()) for tag, places in rows.items()},
        SeenDocuments.of({tag: [names[tag][i] for i in places] for tag, places in rows.items()}),
        part,
    )


def _read_stream(
    model: HookedModel,
    corpus: StreamedCorpus,
    empty: Empty,
    add: Add,
    bar: str | None,
    *,
    shard: tuple[int, int] | None,
    **options: Any,
) -> Reading:
    with tqdm(unit="doc", desc=bar, disable=hidden(bar)) as progress:

        def run(tally: Tally, left: Plan) -> None:
            progress.update(left.documents_done)
            add(tally, left, progress)

        totals = read_windows(model, corpus, empty, run, shard=shard, **options)
    languages, hashes = [tag for tag in corpus if tag in totals.parts], totals.document_hashes()
    part = {} if shard is None else {"part": part_of_windows(totals, shard, corpus.by_language)}
    return Reading(
        totals.parts,
        {tag: hashes[tag] for tag in languages},
        {tag: totals.tokens[tag] for tag in languages},
        totals.seen_documents(),
        {"corpus": totals.text.describe(corpus), **part},
    )
