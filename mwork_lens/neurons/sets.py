"""Sets of a model's neurons with their history, and switching them off."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partialmethod
from html import escape
from operator import and_, or_, xor
from types import MappingProxyType
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ..model.architecture import HookedModel
from ..model.hooks import ContentPositions, ForwardHook, Mode, Positions, hooked, require_options
from ..model.sites import SITES, require_sites
from ..model.state import changed_by_user
from ..store import Result, storable
from ..text import SeenDocuments, check_arguments
from ..text.choices import named
from .gates import gate_hooks, is_of_gate
from .holding import holding_hooks
from .space import NeuronSpace

Operation = Literal["and", "or", "xor", "minus", "not"]


@storable
@dataclass(frozen=True, eq=False)
class Origin(Mapping[str, Any]):
    """The history of a set. Also a mapping of what is recorded: ``origin["quorum"]``, ``dict(origin)``.

    The result of set algebra records its ``operation`` and the ``operands``' origins (in the mapping
    ``{"minus": [name, name]}``).
    """

    language: str | None = None
    """Whose neurons they are."""
    kind: str | None = None
    """How they were selected, e.g. ``specific``."""
    against: Sequence[str] | None = None
    """The languages whose neurons were taken out."""
    against_kind: str | None = None
    quorum: float | int | None = None
    """Share of the language's documents on which a neuron is active."""
    against_quorum: float | int | None = None
    seed: int | None = None
    operation: Operation | None = None
    operands: tuple["Origin | str", ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, e.g. ``top``, ``layers``, ``source``."""
    seen: SeenDocuments | None = None
    """The documents that were read to find the neurons; None where that is unknown. Not in the mapping."""

    def __or__(self, record: Mapping[str, Any]) -> "Origin":
        """This origin with further entries, or other ones."""
        more = {**self.more, **record}
        typed = {name: more.pop(name) for name in (*_TYPED, "seen") if name in more}
        for word in more.keys() & set(get_args(Operation)):
            names = more.pop(word)
            typed |= {"operation": word, "operands": (names,) if word == "not" else tuple(names)}
        return replace(self, **typed, more=more)

    @cached_property
    def _record(self) -> dict[str, Any]:
        typed = {name: value for name in _TYPED if (value := getattr(self, name)) is not None}
        names = [operand if isinstance(operand, str) else operand.name for operand in self.operands]
        algebra = {self.operation: names[0] if self.operation == "not" else names} if self.operation else {}
        return {**typed, **algebra, **self.more}

    def __getitem__(self, key: str) -> Any:
        return self._record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    @property
    def name(self) -> str:
        """A short name for a set of this origin."""
        if self.language is not None:
            name = f"{self.language} {self.kind or ''}".strip()
            return f"{name} (against {named(self.against, 'languages')})" if self.against else name
        if self.operation is None:
            return self.kind or "neurons"
        names = self[self.operation]
        return f"not {names}" if self.operation == "not" else f"({f' {self.operation} '.join(names)})"


def seen_by_both(one: Any, other: Any) -> SeenDocuments | None:
    """What two sets or detections have read; None where it is unknown of one."""
    return None if one.seen is None or other.seen is None else one.seen | other.seen


_TYPED = ("language", "kind", "against", "against_kind", "quorum", "against_quorum", "seed")


@dataclass(frozen=True, eq=False, init=False)
class NeuronSet(Result, kind="neuron_set"):
    """A set of neurons of one model: immutable boolean masks by site, with set algebra.

    ``a & b``, ``a | b``, ``a - b``, ``a ^ b`` and ``~a`` give new sets; ``len(a)`` counts neurons;
    ``(layer, site, neuron) in a`` asks for one.
    """

    space: NeuronSpace
    masks: Mapping[str, Bool[Tensor, "layer _"]]
    """By site, bool ``[layer, neuron]`` with neuron = head * d_head + index for ``q``, ``k`` and ``v``."""
    origin: Origin
    """Where the set comes from, e.g. language, what it was taken against, quorum, seed."""

    def __init__(
        self,
        space: NeuronSpace,
        masks: Mapping[str, Bool[Tensor, "layer _"]],
        origin: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """From masks by site (copied); a site of the model without a mask has no neurons in the set.

        Raises:
            ValueError: for masks of other shapes, or of a site that the model lacks.
        """
        expected = {site: (space.n_layers, width) for site, width in space.widths.items()}
        shapes = {site: tuple(mask.shape) for site, mask in masks.items()}
        if not shapes.items() <= expected.items():
            raise ValueError(f"Masks of shapes {shapes} do not fit {space.model}, which has {expected}.")
        whole = {site: masks.get(site, torch.zeros(shape)) for site, shape in expected.items()}
        copies = {site: mask.detach().to("cpu", torch.bool, copy=True) for site, mask in whole.items()}
        origin = origin if isinstance(origin, Origin) else Origin() | origin
        vars(self).update(space=space, masks=MappingProxyType(copies), origin=origin)

    def __reduce__(self) -> tuple[Any, ...]:
        return NeuronSet, (self.space, dict(self.masks), self.origin)

    @classmethod
    def empty(cls, space: NeuronSpace, **origin: Any) -> "NeuronSet":
        """The set without neurons."""
        return cls(space, {}, origin)

    @classmethod
    def from_list(cls, space: NeuronSpace, neurons: Iterable[tuple[int, str, int]], **origin: Any) -> "NeuronSet":
        """From ``(layer, site, neuron)`` triples, e.g. ``[(0, "mlp", 17)]``.

        Raises:
            ValueError: for a neuron that the model does not have.
        """
        neuron_set, widths = cls(space, {}, origin), space.widths
        for layer, site, neuron in neurons:
            if not (0 <= layer < space.n_layers and 0 <= neuron < widths.get(site, 0)):
                sizes = space.described_sizes
                raise ValueError(f"{space.model} has no neuron ({layer}, {site!r}, {neuron}): it has {sizes}.")
            neuron_set.masks[site][layer, neuron] = True
        return neuron_set

    @classmethod
    def from_frame(cls, space: NeuronSpace, frame: pd.DataFrame, **origin: Any) -> "NeuronSet":
        """From a table with a row per neuron, as :meth:`to_frame` gives it: columns layer, site and neuron.

        Raises:
            ValueError: for a table without these columns, or a neuron that the model does not have.
        """
        names = ["layer", "site", "neuron"]
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"The table has no column {missing[0]!r}; its columns are {', '.join(map(str, frame))}.")
        rows = frame[names].itertuples(index=False, name=None)
        return cls.from_list(space, ((_whole(layer), site, _whole(neuron)) for layer, site, neuron in rows), **origin)

    def _combine(self, other: "NeuronSet", name: Operation, operation: Callable[..., Tensor]) -> "NeuronSet":
        if not isinstance(other, NeuronSet):
            return NotImplemented
        self.space.require_compatible(other.space)
        masks = {site: operation(mask, other.masks[site]) for site, mask in self.masks.items()}
        operands = self.origin | {"seen": None}, other.origin | {"seen": None}
        seen = seen_by_both(self.origin, other.origin)
        return NeuronSet(self.space, masks, Origin(operation=name, operands=operands, seen=seen))

    __and__ = partialmethod(_combine, name="and", operation=and_)
    __or__ = partialmethod(_combine, name="or", operation=or_)
    __xor__ = partialmethod(_combine, name="xor", operation=xor)
    __sub__ = partialmethod(_combine, name="minus", operation=lambda a, b: a & ~b)

    def __invert__(self) -> "NeuronSet":
        masks = {site: ~mask for site, mask in self.masks.items()}
        operand = self.origin | {"seen": None}
        return NeuronSet(self.space, masks, Origin(operation="not", operands=(operand,), seen=self.origin.seen))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.space == other.space and all(torch.equal(m, other.masks[s]) for s, m in self.masks.items())

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    def __contains__(self, neuron: tuple[int, str, int]) -> bool:
        layer, site, index = neuron
        inside = 0 <= layer < self.space.n_layers and 0 <= index < self.space.widths.get(site, 0)
        return inside and bool(self.masks[site][layer, index])

    def restrict(self, *, layers: Iterable[int] | None = None, sites: str | Iterable[str] | None = None) -> "NeuronSet":
        """The part in some layers and sites, e.g. ``restrict(layers=range(0, 8), sites=["mlp"])``."""
        check_arguments(NeuronSet.restrict, locals())
        n_layers = self.space.n_layers
        layers = list(range(n_layers) if layers is None else layers)
        sites = require_sites(SITES if sites is None else sites)
        if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
            raise ValueError(f"{self.space.model} has layers 0 to {n_layers - 1}, not {outside[0]}.")
        inside = torch.isin(torch.arange(n_layers), torch.tensor(layers, dtype=torch.long))
        masks = {site: mask & inside[:, None] & (site in sites) for site, mask in self.masks.items()}
        places = {"layers": inside.nonzero().flatten().tolist(), "sites": list(sites)}
        return NeuronSet(self.space, masks, self.origin | places)

    @property
    def fraction(self) -> float:
        """The share of all neurons of the model that are in the set."""
        return len(self) / self.space.total

    def counts(self) -> pd.DataFrame:
        """Neurons in the set by layer (rows) and site (columns)."""
        return pd.DataFrame({site: mask.sum(-1).tolist() for site, mask in self.masks.items()}).rename_axis("layer")

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron: layer, site, structure, neuron, head (NA in the feed-forward), index in it."""
        places = [(site, place) for site, mask in self.masks.items() for place in mask.nonzero().tolist()]
        rows = [(layer, site, SITES[site].structure, neuron) for site, (layer, neuron) in places]
        frame = pd.DataFrame(rows, columns=["layer", "site", "structure", "neuron"])
        in_head = frame["structure"] == "attention"
        frame["head"] = (frame["neuron"] // self.space.d_head).where(in_head).astype("Int64")
        frame["index"] = (frame["neuron"] % self.space.d_head).where(in_head, frame["neuron"])
        return frame

    def __repr__(self) -> str:
        return f"NeuronSet({self.origin.name}: {len(self):,} neurons, {self.fraction:.2%} of {self.space.shown})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.counts().T.to_html()}"

    def hooks(
        self,
        mode: Mode = "zero",
        *,
        values: Any = None,
        language: str | None = None,
        factor: float | None = None,
        positions: Literal["all"] | ContentPositions = "all",
    ) -> list[ForwardHook]:
        """``[(hook name, function)]`` that intervene on the set: ``run_with_hooks(fwd_hooks=french.hooks())``.

        Args:
            mode: ``"zero"``; ``"mean"``, held at the mean over all languages; ``"language_mean"``, at the mean of the
                set's own language; ``"set"``, at the mean of another ``language`` or at values of your own;
                ``"scale"``, multiplied by ``factor``; ``"resample"``, at what it was on a token of another document.
                Two change the gate's activation a of feed-forward neurons a·u instead, whose u stays that of the pass:
                ``"add"``, a + ``factor`` · values; ``"replace"``, values in place of a.
            values: for the modes that hold: what :func:`collect_means` gave (:func:`collect_samples` for
                ``"resample"``), or, for ``"set"``, ``{site: [layer, neuron]}``; for those of the gate: what
                :func:`collect_firing` gave, for a language's mean, or :meth:`Firing.gate_values`.
            language: whose values; by default, except for ``"set"``, those of the set's own language.
            factor: for ``"scale"``, and for ``"add"``, where it is 1 by default.
            positions: all, or a :class:`ContentPositions` to spare special tokens and padding.

        Raises:
            ValueError: for an unknown mode, options that it lacks or has no use for, values of another model, or
                neurons of attention, which have no gate.

        Example:
            >>> logits = model.run_with_hooks("Bonjour", fwd_hooks=french.hooks())
            >>> held = french.hooks("scale", factor=0.5)
        """
        check_arguments(NeuronSet.hooks, locals())
        require_options(mode, factor, values is not None)
        options = {"mode": mode, "language": language, "own": self.origin.language, "factor": factor}
        content = None if positions == "all" else positions
        make = gate_hooks if is_of_gate(mode) else holding_hooks
        return make(self.space, self.masks, values, content=content, **options)


def _whole(value: Any) -> int:
    """A number of a table; a ValueError for one that is not whole."""
    if pd.isna(value) or isinstance(value, str) or value != int(value):
        raise ValueError(f"{value!r} is not the number of a layer or neuron.")
    return int(value)


def warn_of_other_weights(model: HookedModel, sets: Iterable[NeuronSet]) -> None:
    """Warn of sets that were detected in a model of this name with other weights; the model's are read once."""
    recorded = dict.fromkeys((one.space, one.space.fingerprint) for one in sets if one.space.fingerprint)
    if not recorded:
        return
    ours = NeuronSpace.of(model, fingerprint=True)
    for space, _ in recorded:
        if space == ours:  # else whatever uses the set warns, or refuses it
            space.require_compatible(ours, stacklevel=4)


def ablate(
    model: HookedModel, neurons: NeuronSet, mode: Mode = "zero", *, positions: Positions = "all", **options: Any
) -> AbstractContextManager[HookedModel]:
    """``model`` with an intervention on the set, in forward passes and in ``generate``; restored on any exit.

    Args:
        model: a hooked model.
        neurons: the set.
        mode: zero by default; the others, and their ``options``, are those of :meth:`NeuronSet.hooks`.
        positions: ``"content"`` spares special tokens and padding.
        options: ``values=``, ``language=``, ``factor=``.

    Raises:
        ValueError: at once, if the set is of a model with other sizes, or for options that do not fit the mode.
            Another name warns; weights are not compared here, as that reads them all (:func:`effect_matrix` does).

    Example:
        >>> before = model("Bonjour le monde")
        >>> with mw.ablate(model, french):
        ...     off = model("Bonjour le monde")
        >>> torch.equal(model("Bonjour le monde"), before), torch.equal(off, before)
        (True, False)
    """
    check_arguments(ablate, locals())
    neurons.space.require_compatible(NeuronSpace.of(model))
    content = None if positions == "all" else ContentPositions(model)
    hooks = neurons.hooks(mode, positions=content or "all", **options)

    @contextmanager
    def switched() -> Iterator[HookedModel]:
        with changed_by_user(model), content or nullcontext(), hooked(model, hooks):
            yield model

    return switched()
