"""Identities of documents in 8 bytes each, for results of more text than there is memory for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .tree import storable


@storable
@dataclass(frozen=True, eq=False)
class Hashes(Sequence[str]):
    """Hashes of 64 bits, which read as hexadecimal text.

    Example:
        >>> from mwork_lens.store import Hashes
        >>> list(Hashes.of(["00000000000000ff", "f000000000000000"]))
        ['00000000000000ff', 'f000000000000000']
    """

    numbers: Int[Tensor, " document"]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Hashes":
        """Those that are written so, each with 16 digits."""
        data = bytearray(b"".join(bytes.fromhex(text)[::-1] for text in texts))
        return cls(torch.frombuffer(data, dtype=torch.int64) if data else torch.zeros(0, dtype=torch.int64))

    @classmethod
    def joined(cls, parts: Sequence["Hashes"]) -> "Hashes":
        """All of them, in order."""
        return cls(torch.cat([part.numbers for part in parts]))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int | slice) -> "str | Hashes":  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(place, slice):
            return Hashes(self.numbers[place])
        return f"{int(self.numbers[place]) % 2**64:016x}"

    def __iter__(self) -> Iterator[str]:
        return (f"{number % 2**64:016x}" for part in self.numbers.split(4096) for number in part.tolist())
