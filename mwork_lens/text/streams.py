"""Text that does not fit into memory: passages read one after another, and dealt out in windows of some thousand."""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, groupby, islice
from typing import Any, NamedTuple, NoReturn

from .arguments import check_arguments
from .choices import listed, named
from .corpora import Corpus
from .documents import Document, fault_of
from .languages import Labels
from .readers import joined_text
from .seen import Identity, identity_of

WINDOW = 4096
"""Passages of a window by default, of all languages together."""
Rows = Callable[[], Iterable[tuple[str | None, Document]]]
"""Reads the rows of a language from the beginning, in the same order each time: (document id or None, text)."""


class Passage(NamedTuple):
    """One text of a stream."""

    document: str | None
    text: Document
    identity: Identity
    """By what it is recognised wherever it is read."""


@dataclass(frozen=True, eq=False)
class Stream(Iterable[Document]):
    """The passages of one language; each ``for`` reads them anew from the beginning."""

    passages: Callable[[], Iterator[Passage]]

    @classmethod
    def of(cls, rows: Rows, language: str, labels: Labels = "bcp47", sentences: int = 1) -> "Stream":
        """So many neighbouring rows of one document joined into each passage."""

        def passages() -> Iterator[Passage]:
            for name, neighbours in groupby(_checked(rows(), language), key=lambda row: row[0]):
                while part := [text for _, text in islice(neighbours, sentences)]:
                    text = joined_text(part, language, labels)
                    yield Passage(name, text, identity_of(text, part if len(part) > 1 else ()))

        return cls(passages)

    def __iter__(self) -> Iterator[Document]:
        return (passage.text for passage in self.passages())

    def __repr__(self) -> str:
        return "Stream(passages of one language, read anew each time)"


def _checked(rows: Iterable[tuple[str | None, Document]], language: str) -> Iterator[tuple[str | None, Document]]:
    for number, (name, text) in enumerate(rows):
        if fault := fault_of(text):
            raise ValueError(f"Document {number} of {language!r} is {fault}.")
        yield name, text


@dataclass(frozen=True, eq=False)
class StreamedCorpus(Mapping[str, Stream]):
    """Text of any length by language, of which a window is in memory at a time.

    ``detect`` and ``collect_means`` read it; for all else :meth:`take` gives an ordinary corpus of its beginning.
    """

    streams: Mapping[str, Stream]
    source: str = "given"
    labels: Labels = "bcp47"
    window: int = WINDOW
    """Passages that are planned together, of all languages; the same for the same bits."""
    max_tokens_per_language: int | None = None
    """A language ends with the passage that reaches so many ordinary tokens."""
    history: Mapping[str, Any] = field(default_factory=dict)
    """What was taken of a longer stream."""

    def __getitem__(self, language: str) -> Stream:
        if language not in self.streams:
            raise KeyError(f"The stream has no {language!r}; it has {listed(self.streams, language)}.")
        return self.streams[language]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    def __getattr__(self, name: str) -> NoReturn:
        if name in vars(Corpus):
            raise AttributeError(f"A streamed corpus has no {name}, which {NEEDS_ALL}")
        raise AttributeError(f"A streamed corpus has no {name}.")

    @property
    def by_language(self) -> int:
        """Passages of each language in a window."""
        return max(1, self.window // len(self))

    def describe(self) -> dict[str, Any]:
        """The record of what is known before anything is read."""
        tokens = self.max_tokens_per_language
        most = {} if tokens is None else {"max_tokens_per_language": tokens}
        return {"source": self.source, "parallel": False, "window": self.window, **most, **self.history}

    def windows(self, ended: Container[str] = ()) -> Iterator[Corpus]:
        """Windows in order, without languages that have no passage left or are in ``ended`` by then.

        Raises:
            ValueError: for a language without any passage, or what cannot be read.
        """
        passages = {language: stream.passages() for language, stream in self.items()}
        for number in count():
            rows = {read: list(islice(each, self.by_language)) for read, each in passages.items() if read not in ended}
            if not number and (empty := [language for language, some in rows.items() if not some]):
                raise ValueError(f"The corpus {self.source!r} has no documents in {empty[0]!r}.")
            if not any(rows.values()):
                return
            yield self._corpus({read: some for read, some in rows.items() if some}, number * self.by_language)

    def _corpus(self, rows: Mapping[str, Sequence[Passage]], start: int = 0) -> Corpus:
        """Passages without a document are named after their place."""
        texts = {read: tuple(passage.text for passage in some) for read, some in rows.items()}
        names = {
            read: tuple(str(start + i) if one.document is None else one.document for i, one in enumerate(some))
            for read, some in rows.items()
        }
        identities = {read: tuple(passage.identity for passage in some) for read, some in rows.items()}
        return Corpus(texts, names, False, self.source, self.labels, identities, self.history)

    def take(self, passages: int) -> Corpus:
        """The first passages of each language, in memory.

        Raises:
            ValueError: for fewer than one, or a language without any.
        """
        check_arguments(StreamedCorpus.take, locals())
        _require_positive("passages", passages)
        rows = {read: list(islice(stream.passages(), passages)) for read, stream in self.items()}
        if empty := [language for language, some in rows.items() if not some]:
            raise ValueError(f"The corpus {self.source!r} has no documents in {empty[0]!r}.")
        return replace(self._corpus(rows), history={**self.history, "taken": passages})

    def skip(self, passages: int) -> "StreamedCorpus":
        """Without the first passages of each language, which :meth:`take` gives."""
        check_arguments(StreamedCorpus.skip, locals())
        _require_positive("passages", passages)
        return self._changed(lambda rows: islice(rows, passages, None), skipped=passages)

    def filter(self, keep: Callable[[Document], bool]) -> "StreamedCorpus":
        """The passages whose text a function wants.

        Example:
            >>> stream = mw.load_corpus({"fr": ["un", "deux mots"]}, streaming=True)
            >>> list(stream.filter(lambda text: " " in text)["fr"])
            ['deux mots']
        """
        check_arguments(StreamedCorpus.filter, locals())
        names = [*self.history.get("filters", ()), getattr(keep, "__qualname__", type(keep).__name__)]
        return self._changed(partial(filter, lambda passage: keep(passage.text)), filters=names)

    def split(self, held_out: float = 0.25, *, seed: int = 0) -> tuple["StreamedCorpus", "StreamedCorpus"]:
        """A part to work with, and about this share of the documents, as a hash of each one's id decides.

        A document with an id is in the same part in every language; one without is decided by its text.
        """
        check_arguments(StreamedCorpus.split, locals())
        if not 0 < held_out < 1:
            raise ValueError(f"held_out={held_out} is not a share between 0 and 1.")

        def is_held_out(passage: Passage) -> bool:
            name = min(passage.identity.texts) if passage.document is None else passage.document
            digest = hashlib.blake2b(f"{int(seed)} {name}".encode(errors="surrogatepass"), digest_size=7).digest()
            return int.from_bytes(digest, "little") < held_out * 2**56

        record = {"share": held_out, "seed": seed}
        rest = self._changed(partial(filter, lambda passage: not is_held_out(passage)), held_out=record)
        return rest, self._changed(partial(filter, is_held_out), held_out_part=record)

    def _changed(self, change: Callable[[Iterator[Passage]], Iterator[Passage]], **history: Any) -> "StreamedCorpus":
        def changed(stream: Stream) -> Stream:
            return Stream(lambda: change(stream.passages()))

        streams = {language: changed(stream) for language, stream in self.items()}
        return replace(self, streams=streams, history={**self.history, **history})

    def __repr__(self) -> str:
        record = {name: value for name, value in self.describe().items() if name not in ("source", "parallel")}
        shown = ", ".join(f"{name}={value!r}" for name, value in record.items())
        return f"StreamedCorpus({self.source}: {named(self, 'languages')}; {shown})"


NEEDS_ALL = "needs all documents at once: take(n) puts the first n passages of each language into memory."


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value}: it must be at least 1.")
