"""Which model, exactly: a fingerprint of its weights, beside its name."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..store import storable
from .architecture import HookedModel, dtype_of, has_feed_forward, values_of, weight
from .blocks import layers_apart
from .state import settled

UNKNOWN = "unknown"
"""What the weights of results are called that were made before fingerprints were recorded."""


@storable
@dataclass(frozen=True)
class Fingerprint:
    """Tells a model's weights from others', whatever its name: integer sums over W_V, W_O, W_in, W_out of each layer.

    Sums of the raw bits do not depend on device, layout or order, so that a HookedTransformer and a bridge of one
    checkpoint agree; what changes other weights only, or their order, is not seen. Weights that were folded or centred
    on loading are other weights, with another fingerprint.
    """

    dtype: str
    exact: str
    """Of the weights as they are (SHA-256 of the sums, shortened)."""
    rounded: str
    """Of the weights rounded to bfloat16."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedModel) -> "Fingerprint":
        """Computed from the weights: about as costly as reading them once."""
        from .bit_sums import bit_sums  # takes long to import

        with settled(model):
            try:
                sums = [(group[0].dtype, *bit_sums(*group)) for group in _matrices(model)]
            except AttributeError:  # mixtures of experts and the like, which lenses read
                sums = [(group[0].dtype, *bit_sums(*group)) for group in _blocks(model)]
        (dtype, *_), exact, rounded = zip(*sums, strict=True)
        return cls(str(dtype).removeprefix("torch."), _shortened(exact), _shortened(rounded))

    def agrees(self, other: "Fingerprint") -> bool:
        """Whether both can be of the same weights: rounded to bfloat16 if dtypes differ. float16 rounds otherwise."""
        if self.dtype == other.dtype:
            return self.exact == other.exact
        return "float16" in (self.dtype, other.dtype) or self.rounded == other.rounded

    def __str__(self) -> str:
        return f"{self.dtype} {self.exact}"


def _matrices(model: HookedModel) -> Iterator[list[Tensor]]:
    """What is summed up together: each matrix alone."""
    apart, layers = layers_apart(model), range(len(model.blocks))
    names = ("attn.W_V", "attn.W_O", *(("mlp.W_in", "mlp.W_out") if has_feed_forward(model.cfg) else ()))
    yield from ([weight(model, layer, name)] for name in names for layer in layers if layer not in apart)


def _blocks(model: HookedModel) -> Iterator[list[Tensor]]:
    """The same where blocks lack some matrix: all the weights of a block."""
    for block in model.blocks:
        with values_of(model, block):
            yield [part for part in block.parameters() if part.is_floating_point()]


def _shortened(sums: tuple[int, ...]) -> str:
    return hashlib.sha256(repr([*sums]).encode()).hexdigest()[:16]


_NAMES = tuple(part.name for part in fields(Fingerprint))


class ModelRecord(TypedDict):
    """The part of a result's settings without which it cannot say what it is of."""

    model: str


def model_record(model: HookedModel) -> dict[str, Any]:
    """What a result says of its model: name, dtype and the fingerprint of its weights."""
    return {
        "model": str(model.cfg.model_name),
        "dtype": str(dtype_of(model)),
        "fingerprint": asdict(Fingerprint.of(model)),
    }


def of_model(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a result that rests on another one takes over of its record."""
    return {name: record[name] for name in ("model", "dtype", "fingerprint") if name in record}


def shown_model(record: Mapping[str, Any]) -> str:
    """The model of a record in a few words: ``gpt2 (float32 1f0c9a3e)``."""
    known = recorded_fingerprint(record)
    return f"{record.get('model')} ({f'{known.dtype} {known.exact[:8]}' if known else f'weights {UNKNOWN}'})"


def require_same_model(saved: Mapping[str, Any], ours: Mapping[str, Any], what: str | Path, *, stacklevel: int) -> None:
    """Refuse to go on with ``what`` a record is of, where it was made with other weights or in another dtype.

    Raises:
        ValueError: naming both fingerprints. Where the record has none, a warning says so.
    """
    before, now = recorded_fingerprint(saved), recorded_fingerprint(ours)
    if now is None or before == now:
        return
    if before is None:
        warnings.warn(
            f"{what} does not say with which weights of {saved.get('model')} it was made: they are {UNKNOWN}, and it "
            f"goes on with {now}.",
            stacklevel=stacklevel,
        )
        return
    same = before.dtype != now.dtype and before.agrees(now)
    reason = "in another dtype, and numbers of both would be mixed" if same else "with other weights"
    raise ValueError(
        f"{what} was made {reason}: {saved.get('model')} was {before}, and {ours.get('model')} is {now}. Give it the "
        "model that it was made with, or choose another directory."
    )


def of_one_model(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What results that are put together say of their model, by a name of each; unknown weights if one says nothing.

    Raises:
        ValueError: for other weights than the first's, whatever the dtype; for other names where weights are unknown.
    """
    known = [known for record in records.values() if (known := recorded_fingerprint(record))]
    names = {str(record.get("model")) for record in records.values()}
    unknown = len(known) < len(records)
    if any(not each.agrees(known[0]) for each in known) or (unknown and len(names) > 1):
        each = ", ".join(f"{name} is of {shown_model(record)}" for name, record in records.items())
        raise ValueError(f"These are results of different models and cannot be put together: {each}.")
    first = of_model(next(iter(records.values())))
    return {**first, "fingerprint": UNKNOWN} if known and unknown else first


def recorded_fingerprint(record: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint in a record; None where it is unknown."""
    fingerprint = record.get("fingerprint")
    if isinstance(fingerprint, Fingerprint):
        return fingerprint
    if not isinstance(fingerprint, Mapping) or not all(isinstance(fingerprint.get(name), str) for name in _NAMES):
        return None
    return Fingerprint(**{name: fingerprint[name] for name in _NAMES})
