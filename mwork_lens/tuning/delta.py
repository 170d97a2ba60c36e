"""What tuning changed: old and new values of each entry, to apply, take back, merge and save."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal, NotRequired, TypedDict

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ..model import GATE, SITES, HookedModel, Slices, changed_by_user, settled, to_the_end
from ..model.offloaded import require_in_memory
from ..neurons import Entries, NeuronSpace, entries_of, seen_by_both
from ..store import Result, require_record
from ..text import SeenDocuments, check_arguments

Collide = Literal["refuse", "add"]


class _Origin(TypedDict):
    """What is read of where a delta comes from."""

    set: NotRequired[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class NeuronDelta(Result, kind="neuron_delta"):
    """Old and new values of neurons' entries, by weight in TransformerLens's words (``blocks.3.attn.W_Q``).

    The same delta fits a HookedTransformer and a raw bridge of the model.
    """

    space: NeuronSpace
    neurons: Mapping[str, Int[Tensor, " _"]]
    """By weight: the neurons, in ascending order (head * d_head + index in attention)."""
    old: Mapping[str, Tensor]
    """By weight: values before, ``[neuron, d_model]``, of a bias ``[neuron]``, in the model's dtype."""
    new: Mapping[str, Tensor]
    """By weight: values after, of the same shapes and dtype."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from."""
    seen: SeenDocuments | None = None
    """Hashes of the texts that it was tuned on; None where they were not recorded."""

    def apply(self, model: HookedModel) -> None:
        """Write the new values, bit for bit.

        Raises:
            ValueError: if the model is of other sizes or does not hold the old values; nothing is changed then.
        """
        check_arguments(NeuronDelta.apply, locals())
        with settled(model):
            self._replace(model, "old", "new")

    def revert(self, model: HookedModel) -> None:
        """Write the old values back, bit for bit.

        Raises:
            ValueError: if the model does not hold the new values; nothing is changed then.
        """
        check_arguments(NeuronDelta.revert, locals())
        with settled(model):
            self._replace(model, "new", "old")

    @contextlib.contextmanager
    def applied(self, model: HookedModel) -> Iterator[None]:
        """Applied inside the ``with`` block, taken back on any way out of it."""
        with changed_by_user(model):
            self.apply(model)
            try:
                yield
            finally:
                try:
                    self.revert(model)
                except KeyboardInterrupt:
                    for part in self.entries(model):
                        part.write(self.old[part.name])
                    raise

    def __len__(self) -> int:
        """How many neurons; one that has several weights counts once."""
        sizes = Counter[tuple[int, str]]()
        for name, neurons in self.neurons.items():
            sizes |= Counter({_place(name)[:2]: len(neurons)})  # the larger of both
        return sizes.total()

    def require_fits(self, model: HookedModel) -> None:
        """Refuse a model that :meth:`apply` would refuse; nothing is changed."""
        check_arguments(NeuronDelta.require_fits, locals())
        with settled(model):
            self._checked(model, "old")

    def _replace(self, model: HookedModel, before: str, after: str) -> None:
        entries = self._checked(model, before)
        try:
            for part in entries:
                part.write(getattr(self, after)[part.name])
        except BaseException:  # an interruption
            to_the_end(lambda: [part.write(getattr(self, before)[part.name]) for part in entries])
            raise

    def _checked(self, model: HookedModel, before: str) -> list[Entries]:
        """Where the weights lie in a model that holds the values before."""
        require_in_memory(model, "changed")
        self.space.require_compatible(NeuronSpace.of(model), stacklevel=4)
        entries = self.entries(model)
        for part in entries:
            expected, values, of_model = getattr(self, before)[part.name], part.read().cpu(), model.cfg.model_name
            if values.shape != expected.shape:
                shapes = f"{tuple(values.shape)}, but the delta was made on {tuple(expected.shape)}"
                raise ValueError(f"The entries of {part.name} of {of_model} have shape {shapes}.")
            if values.dtype != expected.dtype:
                made_on = f"{values.dtype}, but the delta was made on {expected.dtype}"
                raise ValueError(f"{part.name} of {of_model} is {made_on}.")
            if differ := int((values != expected).sum()):
                raise ValueError(
                    f"{part.name} of {of_model} does not hold the delta's {before} values: {differ:,} of "
                    f"{values.numel():,} entries differ. It is another model, or was changed since."
                )
        return entries

    def entries(self, model: HookedModel) -> list[Entries]:
        """Where the delta's weights lie in ``model``."""
        places = [(_place(name), neurons) for name, neurons in self.neurons.items()]
        self._require_whole()
        for (layer, site, piece), neurons in places:
            inside = (neurons >= 0) & (neurons < self.space.widths.get(site, 0))
            if not (0 <= layer < self.space.n_layers and inside.all()):
                sizes = self.space.described_sizes
                raise ValueError(f"The delta has {piece.weight} of neurons that {self.space.model} lacks: {sizes}.")
        return [entries_of(model, layer, piece, neurons) for (layer, _, piece), neurons in places]

    def _require_whole(self) -> None:
        """Refuse what cannot be written into a model, or does not say what it is of."""
        require_record(self.origin, _Origin, "the origin")
        for name in {**self.neurons, **self.old, **self.new}:
            parts = [values.get(name) for values in (self.neurons, self.old, self.new)]
            if not all(isinstance(part, Tensor) and part.ndim for part in parts):
                raise ValueError(f"A delta needs neurons with old and new values of each weight; {name} lacks some.")
            neurons, old, new = (part for part in parts if part is not None)
            if neurons.dtype != torch.int64 or neurons.ndim > 1 or old.shape != new.shape or len(old) != len(neurons):
                shapes = f"{tuple(neurons.shape)} ({neurons.dtype}), {tuple(old.shape)} and {tuple(new.shape)}"
                raise ValueError(f"The neurons, old and new values of {name} have shapes {shapes}.")

    def collisions(self, other: "NeuronDelta") -> pd.DataFrame:
        """Neurons that both change, one row each: weight, neuron, and the cosine between the two changes."""
        rows = []
        for name in (name for name in self.neurons if name in other.neurons):
            ours, theirs = self.neurons[name], other.neurons[name]
            shared = ours[torch.isin(ours, theirs)]
            changes = (_change(self, name)[torch.isin(ours, theirs)], _change(other, name)[torch.isin(theirs, ours)])
            # a bias has one entry per neuron: [neuron] as [neuron, 1]
            one, another = (change[:, None].flatten(1) for change in changes)
            rows += zip(repeat(name), shared.tolist(), torch.cosine_similarity(one, another).tolist())
        return pd.DataFrame(rows, columns=["weight", "neuron", "cosine"])

    def merge(self, other: "NeuronDelta", *, collide: Collide = "refuse") -> "NeuronDelta":
        """Both changes in one, e.g. of two languages; neurons that both change are refused, or their changes add up.

        Raises:
            ValueError: for collisions that are not to be added, deltas of other models, or of other old values.
        """
        check_arguments(NeuronDelta.merge, locals())
        ours, theirs = (replace(delta.space, fingerprint=None) for delta in (self, other))
        ours.require_compatible(theirs)  # one may have been tuned after the other: the old values tell
        shared = self.collisions(other)
        if len(shared) and collide == "refuse":
            first = shared.iloc[0]
            raise ValueError(
                f"{len(shared)} neurons are changed by both, the first {first['neuron']} of {first['weight']}: "
                "collide='add' adds the changes up."
            )
        merged = {name: _merged(self, other, name) for name in {**self.neurons, **other.neurons}}
        origin = {"merged": [dict(self.origin), dict(other.origin)], "collisions": len(shared)}
        neurons, old, new = ({name: parts[i] for name, parts in merged.items()} for i in range(3))
        return NeuronDelta(self.space, neurons, old, new, origin, seen_by_both(self, other))

    def to_frame(self) -> pd.DataFrame:
        """One row per weight: neurons, entries, how many changed, largest, mean absolute and mean relative change."""
        rows = []
        for name in sorted(self.neurons, key=lambda name: (_place(name)[0], name)):
            old, change = self.old[name].double(), _change(self, name).abs()
            sizes = {"neurons": len(self.neurons[name]), "entries": old.numel()}
            changes = {
                "changed": int((self.old[name] != self.new[name]).sum()),
                "largest_change": change.max().item(),
                "mean_change": change.mean().item(),
                "relative_change": (change.sum() / old.abs().sum()).item(),
            }
            rows.append({"weight": name, **sizes, **changes})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        entries = sum(values.numel() for values in self.old.values())
        changed = sum(int((self.old[name] != self.new[name]).sum()) for name in self.neurons)
        return f"NeuronDelta({self.space.shown}: {changed:,} of {entries:,} entries changed in {len(self.old)} weights)"

    def tensors(self) -> dict[str, Tensor]:
        """All arrays by name: ``neurons/blocks.3.attn.W_Q``, ``old/…``, ``new/…``."""
        kinds = {"neurons": self.neurons, "old": self.old, "new": self.new}
        return {f"{kind}/{name}": tensor for kind, by_name in kinds.items() for name, tensor in by_name.items()}


def _place(name: str) -> tuple[int, str, Slices]:
    """Layer, site and slices of a weight; sites that were added to the table have theirs too."""
    layer, weight = name.removeprefix("blocks.").split(".", 1) if name.count(".") > 1 else ("", name)
    if not layer.isdecimal():
        raise ValueError(f"{name!r} is not a weight of a layer.")
    pieces = [(site.name, piece) for site in SITES.values() for piece in site.tuning] + [("mlp", GATE)]
    places = [(site, piece) for site, piece in pieces if piece.weight == weight]
    if not places:
        raise ValueError(f"No site has the weight {weight!r}: add the one that the delta was made with (add_site).")
    return int(layer), *places[0]


def _change(delta: NeuronDelta, name: str) -> Tensor:
    return delta.new[name].double() - delta.old[name].double()


def _merged(a: NeuronDelta, b: NeuronDelta, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Neurons, old and new values of one weight of the merged delta."""
    parts = [delta for delta in (a, b) if name in delta.neurons]
    neurons, place = torch.cat([delta.neurons[name] for delta in parts]).unique(return_inverse=True)
    olds, news = (torch.cat([getattr(delta, which)[name] for delta in parts]) for which in ("old", "new"))
    old, new = (values.new_empty(len(neurons), *values.shape[1:]) for values in (olds, news))
    old[place], new[place] = olds, news
    if len({delta.old[name].dtype for delta in parts}) > 1 or not torch.equal(old[place], olds):
        raise ValueError(f"The two deltas were made from other values of {name}: they are of different models.")
    if (both := place.bincount() == 2).any():
        sums = old.double().index_add(0, place, news.double() - olds.double())
        new[both] = sums[both].to(new.dtype)
    return neurons, old, new
