"""Which documents were read: 8 bytes for each text, however it is cut, and for its place in a parallel corpus."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..store import storable
from .documents import Document

Status = Literal["unseen", "unknown", "seen in another language", "seen"]
"""Whether a passage's document was read, the worst last; in another language: as its translation."""


class Identity(NamedTuple):
    """By what the document of a passage is recognised."""

    texts: frozenset[int]
    """Hashes of the whole document and of the passage; without document ids, of each line in the passage."""
    place: int | None
    """The same for its translations: hash of its name among those of all documents; None without document ids."""


ANY_LANGUAGE = ""
"""Of texts whose language is not known."""
Identities = Mapping[str, Sequence[Identity]]
"""Of each passage, by language."""


def identities_of(rows: Sequence[tuple[str | None, Document]]) -> list[Identity]:
    """Of each row (document id, text) of one language; one without an id is a document of its own."""
    parts: dict[str, list[Document]] = defaultdict(list)
    for name, text in rows:
        if name is not None:
            parts[name].append(text)
    whole = {name: _hash_of_text(texts) for name, texts in parts.items()}
    all_named = len(rows) == sum(map(len, parts.values()))
    corpus = _hash([f"{name}\0".encode() for name, _ in rows]) if all_named else 0
    places = {name: _hash([f"{corpus} {name}".encode()]) if all_named else None for name in whole}
    return [
        Identity(frozenset({_hash_of_text([text]), *([] if name is None else [whole[name]])}), places.get(name or ""))
        for name, text in rows
    ]


def identity_of(text: Document, parts: Sequence[Document] = ()) -> Identity:
    """Of a passage of which nothing else is known than its text, and the lines that it was joined of."""
    return Identity(frozenset(_hash_of_text([each]) for each in (text, *parts)), None)


def joined(parts: Sequence[Identity], text: Document) -> Identity:
    """Of a passage that was made of others."""
    return Identity(frozenset({_hash_of_text([text])}.union(*(part.texts for part in parts))), parts[0].place)


def _hash_of_text(texts: Iterable[Document]) -> int:
    """Of a text or its parts in order; spaces, case, the composition of characters and the cutting do not matter."""
    return _hash(
        b"\0" + text.detach().cpu().long().numpy().tobytes()
        if isinstance(text, Tensor)
        else unicodedata.normalize("NFC", "".join(text.split()).casefold()).encode()
        for text in texts
    )


def _hash(parts: Iterable[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


@storable
@dataclass(frozen=True, eq=False)
class SeenDocuments:
    """The documents that a detection has read; ``a | b`` has those of both."""

    texts: Mapping[str, Int[Tensor, " _"]]
    """By language: hashes of documents and passages."""
    places: Mapping[str, Int[Tensor, " _"]]
    """By language: hashes that documents have in common with their translations."""

    @classmethod
    def of(cls, identities: Identities) -> "SeenDocuments":
        """Those of a corpus, see :attr:`Corpus.identities`."""
        texts = {read: _unique(chain.from_iterable(one.texts for one in each)) for read, each in identities.items()}
        places = {
            read: _unique(one.place for one in each if one.place is not None) for read, each in identities.items()
        }
        return cls(texts, places)

    @classmethod
    def of_texts(cls, texts: Sequence[Document]) -> "SeenDocuments":
        """Those of a list of texts, which count as seen in whatever language they are read."""
        return cls.of({ANY_LANGUAGE: identities_of([(None, text) for text in texts])})

    @classmethod
    def of_hashes(cls, texts: Mapping[str, Int[Tensor, " _"]]) -> "SeenDocuments":
        """Those of a stream, by language the hashes of its passages."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls({read: each.unique() for read, each in texts.items()}, dict.fromkeys(texts, none))

    def __or__(self, other: "SeenDocuments") -> "SeenDocuments":
        return (
            self if self is other else SeenDocuments(_union(self.texts, other.texts), _union(self.places, other.places))
        )

    def statuses(
        self, identities: Identities, documents: Mapping[str, Sequence[str]], parallel: bool
    ) -> dict[str, list[Status]]:
        """Of each passage of a corpus, by language; one whose document was read in part counts as seen."""
        texts, places = ({read: set(x.tolist()) for read, x in each.items()} for each in (self.texts, self.places))
        anywhere = texts.get(ANY_LANGUAGE, set())
        here = {read: texts.get(read, set()) | anywhere for read in identities}
        own = {
            read: {name for name, one in zip(documents[read], each, strict=True) if one.texts & here[read]}
            for read, each in identities.items()
        }
        # where a name stands for another text than the one read under it, it is the name of another corpus
        misleading = {
            one.place
            for read, each in identities.items()
            for name, one in zip(documents[read], each, strict=True)
            if one.place in places.get(read, ()) and name not in own[read]
        }

        def status(read: str, name: str, one: Identity) -> Status:
            if name in own[read]:
                return "seen"
            others = [other for other in texts if other != read]
            translated = parallel and any(name in own[other] for other in own if other != read)
            placed = one.place not in misleading and any(one.place in places[other] for other in others)
            copied = any(one.texts & texts[other] for other in others)
            return "seen in another language" if translated or placed or copied else "unseen"

        return {
            read: [status(read, *passage) for passage in zip(documents[read], each, strict=True)]
            for read, each in identities.items()
        }


def _unique(hashes: Iterable[int]) -> Int[Tensor, " _"]:
    return torch.tensor(sorted(set(hashes)), dtype=torch.int64)


def _union(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return {read: torch.cat([one.get(read, none), other.get(read, none)]).unique() for read in {**one, **other}}
