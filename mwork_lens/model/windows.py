"""A pass over a stream of text, window by window: each is planned and read as a corpus is, and what all add up to kept.

Sums are exact, so that it does not matter which windows were read before a process was killed, or by which part.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..store import as_json, output_directory, processes, user_path
from ..store.tree import decode, encode
from ..text import Corpus, StreamedCorpus, say_unknown, unknown_counts
from .architecture import HookedModel, rope_boundaries, special_ids
from .budget import Budget
from .encoding import encode_and_cut, warn_of_cut
from .forward import Encoded, Plan
from .reducers import Reducer
from .shards import Part
from .tally import Tally, require_same_pass, tallied
from .window_totals import TextRead, WindowRows, WindowTotals, plus

_STATE = re.compile(r"(read|window)-(\d{6,})")
"""What windows add up to that were read, and the checkpoint of the one that is running."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Window:
    """Passages of a stream that are planned together."""

    text: TextRead
    """Of the stream up to its end."""
    encoded: Encoded | None
    """None where another part reads it."""


class _Reader:
    """The windows of a stream as token ids, and what there is to say of all of them in the end."""

    def __init__(self, model: HookedModel, corpus: StreamedCorpus, max_tokens: int) -> None:
        self.model, self.corpus, self.max_tokens = model, corpus, max_tokens
        self.documents: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.longest: dict[str, tuple[int, str]] = {}
        self.unknown: dict[str, int] = {}
        self.content: dict[str, int] = {}

    def windows(self, before: TextRead, shard: tuple[int, int] | None) -> Iterator[Window]:
        """Those that were not read before, which must begin the stream as they did then."""
        most, ended, text = self.corpus.max_tokens_per_language, set[str](), TextRead()
        for window in self.corpus.windows(ended):
            if text.windows < before.windows:
                text = text.then(_as_before(window, text, before), {})
                if text.windows == before.windows:
                    _require_same_text(text, before, self.corpus)
                    text = before
                    ended |= {language for language, n in before.tokens.items() if most is not None and n >= most}
                continue
            encoded, own = None, shard is None or text.windows % shard[1] == shard[0]
            if own or most is not None:
                encoded = self._encoded(window)
                if most is not None:
                    encoded = _ending(encoded, text.tokens, most, ended)
            text = text.then(encoded.corpus if encoded else window, encoded.tokens if encoded else {})
            yield Window(text, encoded if own else None)
        _require_same_text(text, before, self.corpus, shorter=text.windows < before.windows)

    def _encoded(self, window: Corpus) -> Encoded:
        model, ids = self.model, {}
        for language, documents in window.items():
            ids[language], cut = encode_and_cut(model, documents, window.ids[language], self.max_tokens)
            if cut:
                self.cut[language] = self.cut.get(language, 0) + len(cut)
                self.longest[language] = max([*cut, self.longest.get(language, (0, ""))])
        self.documents = plus(self.documents, {language: len(each) for language, each in ids.items()})
        counts = unknown_counts(model.tokenizer, ids)
        self.unknown = plus(self.unknown, {language: unknown for language, (unknown, _) in counts.items()})
        self.content = plus(self.content, {language: content for language, (_, content) in counts.items()})
        return Encoded(window, ids, special_ids(model), Budget.of(model), rope_boundaries(model))

    def warn(self) -> None:
        """Say of each language what was cut and what is unknown, of all that was read here."""
        for language, number in self.cut.items():
            of_all = number, self.longest[language], self.documents[language]
            warn_of_cut(self.model, *of_all, self.max_tokens, stacklevel=5)
        shares = {language: n / self.content[language] for language, n in self.unknown.items() if n}
        say_unknown(self.model.tokenizer, shares, stacklevel=5)


def _as_before(window: Corpus, text: TextRead, before: TextRead) -> Corpus:
    """What was read of a window: of languages that ended, the passages up to there."""
    left = {language: before.passages.get(language, 0) - text.passages.get(language, 0) for language in window}
    return window.select({read: range(min(left[read], len(window.texts[read]))) for read in window if left[read] > 0})


def _require_same_text(text: TextRead, before: TextRead, corpus: StreamedCorpus, shorter: bool = True) -> None:
    if shorter and text.hash != before.hash:
        raise ValueError(
            f"{corpus.source} does not begin with the {sum(before.passages.values())} passages that were read before "
            "the run was stopped: give the same text to resume it, or another directory."
        )


def _ending(encoded: Encoded, tokens: Mapping[str, int], most: int, ended: set[str]) -> Encoded:
    """Without what follows the passage with which a language reaches ``most`` tokens; that ends it."""
    kept = encoded.documents
    for language, numbers in encoded.ordinary.items():
        enough = (numbers.cumsum(0) + tokens.get(language, 0) >= most).nonzero()
        if len(enough):
            kept[language] = int(enough[0]) + 1
            ended.add(language)
    return encoded if kept == encoded.documents else encoded.first(kept)


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, the next of which is made in a thread while one is used."""
    context = copy_context()
    with ThreadPoolExecutor(1, "mwork_lens text") as pool:
        following = pool.submit(context.run, next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(context.run, next, items, None)
            yield item


def read_windows(
    model: HookedModel,
    corpus: StreamedCorpus,
    empty: Callable[[Plan], Mapping[str, Reducer]],
    run: Callable[[Tally, Plan], None],
    *,
    record: Mapping[str, Any],
    max_tokens: int,
    batch_size: int | None,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
) -> WindowTotals:
    """What the windows of a stream, or every so many of them, add up to; the next is encoded while one is read.

    Args:
        model: a hooked model.
        corpus: the stream.
        empty: reducers without batches for the plan of a window, by language.
        run: adds the batches of a plan to them.
        record: everything that decides the numbers, as :func:`pass_record` has it without a plan.
        max_tokens: longer documents are cut there; a warning says so in the end.
        batch_size: documents at a time; None fills a token budget.
        shard: which part reads, of how many.
        checkpoint: a folder that is new, empty or of the same pass. It holds what windows add up to that were read, and
            the checkpoint of the window that is running.

    Raises:
        ValueError: for a part in which there is no window, text that cannot be read, or a checkpoint of another pass
            or text.
    """
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard[0]}/{shard[1]}: parts are (0, {shard[1]}) to ({shard[1] - 1}, {shard[1]}).")
    reader, record = _Reader(model, corpus, max_tokens), as_json(record)
    with _folder(checkpoint) as folder:
        totals = _saved_before(folder, record)
        with contextlib.closing(ahead(reader.windows(totals.text, shard))) as windows:
            for window in windows:
                if window.encoded is not None:
                    plan = window.encoded.plan(batch_size)
                    parts, asked = empty(plan), {**record, "plan": plan.hash}
                    place = folder and folder / f"window-{window.text.windows - 1:06d}"
                    with tallied(parts, place, partial(dict, asked)) as tally:
                        run(tally, tally.left(plan))
                    totals.add(window.encoded, parts)
                totals = replace(totals, text=window.text)
                if folder is not None and window.encoded is not None:
                    totals = _saved(totals, folder)
    if not totals.parts and shard is not None:
        raise ValueError(
            f"shard={shard[0]}/{shard[1]}: the stream has {totals.text.windows} windows of {corpus.window} passages "
            "only: ask for at most so many parts, or smaller windows."
        )
    reader.warn()
    return totals.compact()


def part_of_windows(totals: WindowTotals, shard: tuple[int, int], size: int) -> Part:
    """What the result of one part says of it; ``size`` passages of a language are in a window."""
    number, of = shard
    rows = {read: WindowRows(number, of, size, sum(map(len, each))) for read, each in totals.hashes.items()}
    return {"shard": [number, of], "plan": totals.text.hash, "rows": rows}


@contextlib.contextmanager
def _folder(checkpoint: str | Path | None) -> Iterator[Path | None]:
    if checkpoint is None:
        yield None
        return
    with output_directory(user_path(checkpoint)) as folder:
        yield folder


def _saved_before(folder: Path | None, record: Mapping[str, Any]) -> WindowTotals:
    """The last totals of a pass that was stopped, or new ones; those that the first of several processes has."""
    totals, arrays = WindowTotals(TextRead(), {}, {}, {}, {}, record), dict[str, Tensor]()
    if folder is not None and processes.is_first():
        totals = _last(folder, record) or totals
    tree = encode(totals, arrays)
    shapes = {name: [str(array.dtype).removeprefix("torch."), list(array.shape)] for name, array in arrays.items()}
    tree, shapes = processes.from_first(lambda: [tree, shapes])
    if not processes.is_first():
        arrays = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
    processes.share(list(arrays.values()), source=0)
    return totals if processes.is_first() else decode(tree, arrays)


def _last(folder: Path, record: Mapping[str, Any]) -> WindowTotals | None:
    """What is in a folder; other things, and other runs, are refused."""
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if other := [name for name in names if not _STATE.fullmatch(name)]:
        raise FileExistsError(f"{folder} holds no checkpoint but other things ({min(other)}): choose another.")
    states = sorted(folder.glob("read-*"), key=lambda path: int(path.name.split("-")[1]))
    if not states:
        return None
    totals = WindowTotals.load(states[-1])
    require_same_pass(totals.record, record, folder)
    _remove_others(folder, states[-1], totals.text.windows)
    return totals


def _saved(totals: WindowTotals, folder: Path) -> WindowTotals:
    """The same totals, written in place of those before and of the windows that are in them."""
    totals, place = totals.compact(), folder / f"read-{totals.text.windows:06d}"
    try:
        totals.save(place)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror or error}): the run stops. What was written before is whole; "
            "once there is room, the same call goes on from there."
        ) from error
    _remove_others(folder, place, totals.text.windows)
    return totals


def _remove_others(folder: Path, last: Path, windows: int) -> None:
    """What the last totals stand for."""
    for entry in folder.iterdir() if processes.is_first() else ():
        state = _STATE.fullmatch(entry.name)
        if state and (entry != last if state[1] == "read" else int(state[2]) < windows):
            shutil.rmtree(entry)
