"""Sets of a model's neurons, and switching them off."""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ..model import (
    SITES,
    ContentPositions,
    ForwardHook,
    HookedModel,
    Mode,
    Positions,
    change_of,
    hooked,
    mask_hooks,
    require_sites,
)
from ..store import Result
from .origin import Operation, Origin
from .space import NeuronSpace, described_widths


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
        if any(expected.get(site) != shape for site, shape in shapes.items()):
            raise ValueError(f"Masks of shapes {shapes} do not fit {space.model}, which has {expected}.")
        empty = {site: torch.zeros(shape, dtype=torch.bool) for site, shape in expected.items() if site not in masks}
        copies = {site: mask.detach().to("cpu", torch.bool, copy=True) for site, mask in masks.items()} | empty
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "masks", MappingProxyType({site: copies[site] for site in expected}))
        object.__setattr__(self, "origin", Origin.of(origin))

    def __reduce__(self) -> tuple[Any, ...]:
        return NeuronSet, (self.space, dict(self.masks), self.origin)

    # --- making ---

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
        masks = {site: mask.clone() for site, mask in cls.empty(space).masks.items()}
        for layer, site, neuron in neurons:
            width = space.widths.get(site, 0)
            if not (0 <= layer < space.n_layers and 0 <= neuron < width):
                raise ValueError(
                    f"{space.model} has no neuron ({layer}, {site!r}, {neuron}): it has {space.n_layers} layers with "
                    f"{described_widths(space)}."
                )
            masks[site][layer, neuron] = True
        return cls(space, masks, origin)

    # --- algebra ---

    def _combine(
        self, other: "NeuronSet", operation: Callable[[Tensor, Tensor], Tensor], name: Operation
    ) -> "NeuronSet":
        if not isinstance(other, NeuronSet):
            return NotImplemented
        self.space.require_compatible(other.space)
        masks = {site: operation(mask, other.masks[site]) for site, mask in self.masks.items()}
        return NeuronSet(self.space, masks, Origin(operation=name, operands=(self.origin, other.origin)))

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, operator.and_, "and")

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, operator.or_, "or")

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, operator.xor, "xor")

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combine(other, lambda a, b: a & ~b, "minus")

    def __invert__(self) -> "NeuronSet":
        masks = {site: ~mask for site, mask in self.masks.items()}
        return NeuronSet(self.space, masks, Origin(operation="not", operands=(self.origin,)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.space == other.space and all(torch.equal(m, other.masks[s]) for s, m in self.masks.items())

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    def __contains__(self, neuron: tuple[int, str, int]) -> bool:
        layer, site, index = neuron
        inside = 0 <= layer < self.space.n_layers and 0 <= index < self.space.widths.get(site, 0)
        return inside and bool(self.masks[site][layer, index])

    def restrict(self, *, layers: Iterable[int] | None = None, sites: str | Iterable[str] | None = None) -> "NeuronSet":
        """The part in some layers and sites, e.g. ``restrict(layers=range(0, 8), sites=["mlp"])``."""
        kept = torch.ones(self.space.n_layers, dtype=torch.bool)
        if layers is not None:
            chosen = list(layers)
            outside = [layer for layer in chosen if not 0 <= layer < self.space.n_layers]
            if outside:
                raise ValueError(f"{self.space.model} has layers 0 to {self.space.n_layers - 1}, not {outside[0]}.")
            kept = torch.isin(torch.arange(self.space.n_layers), torch.tensor(chosen, dtype=torch.long))
        kept_sites = require_sites(SITES if sites is None else sites)
        masks = {site: mask & kept[:, None] & (site in kept_sites) for site, mask in self.masks.items()}
        places = {"layers": kept.nonzero().flatten().tolist(), "sites": list(kept_sites)}
        return NeuronSet(self.space, masks, self.origin | places)

    # --- looking ---

    @property
    def fraction(self) -> float:
        """The share of all neurons of the model that are in the set."""
        return len(self) / self.space.total

    def counts(self) -> pd.DataFrame:
        """Neurons in the set by layer (rows) and site (columns)."""
        return pd.DataFrame({site: mask.sum(-1).tolist() for site, mask in self.masks.items()}).rename_axis("layer")

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron: layer, site, structure, neuron, head (missing in the feed-forward), index in it."""
        rows = [
            (layer, site, SITES[site].structure, neuron)
            for site, mask in self.masks.items()
            for layer, neuron in mask.nonzero().tolist()
        ]
        frame = pd.DataFrame(rows, columns=["layer", "site", "structure", "neuron"])
        in_head = frame["structure"] == "attention"
        frame["head"] = (frame["neuron"] // self.space.d_head).where(in_head).astype("Int64")
        frame["index"] = (frame["neuron"] % self.space.d_head).where(in_head, frame["neuron"])
        return frame

    def __repr__(self) -> str:
        return f"NeuronSet({self.origin.name}: {len(self):,} neurons, {self.fraction:.2%} of {self.space.model})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.counts().T.to_html()}"

    # --- using ---

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
            values: for the modes that hold: what :func:`collect_means` gave (:func:`collect_samples` for
                ``"resample"``), or, for ``"set"``, ``{site: [layer, neuron]}``.
            language: whose values; by default, except for ``"set"``, those of the set's own language.
            factor: for ``"scale"``.
            positions: all, or a :class:`ContentPositions` to spare special tokens and padding.

        Raises:
            ValueError: for an unknown mode, options that it lacks or has no use for, or values of another model.
        """
        change = change_of(mode, factor, values is not None)
        held = None if values is None else self._held(mode, values, language)
        return mask_hooks(self.masks, change, held, None if positions == "all" else positions)

    def _held(self, mode: Mode, values: Any, language: str | None) -> Mapping[str, Tensor]:
        if not isinstance(values, Mapping):
            self.space.require_compatible(values.space)
            return values.held(mode, language, self.origin.language)
        if mode != "set" or language is not None:
            raise ValueError(f"mode={mode!r} with {language=} takes its values from collect_means, not from tensors.")
        return {site: self._fitting(site, values.get(site)) for site, mask in self.masks.items() if mask.any()}

    def _fitting(self, site: str, values: Tensor | None) -> Tensor:
        found, expected = None if values is None else tuple(values.shape), tuple(self.masks[site].shape)
        if values is None or found != expected:
            raise ValueError(f"values of {site} have shape {found}, where {self.space.model} has {expected}.")
        return values


def ablate(
    model: HookedModel,
    neurons: NeuronSet,
    mode: Mode = "zero",
    *,
    positions: Positions = "all",
    **options: Any,
) -> contextlib.AbstractContextManager[HookedModel]:
    """``model`` with an intervention on the set, in forward passes and in ``generate``; restored on any exit.

    Args:
        model: a hooked model.
        neurons: the set.
        mode: zero by default; the others, and their ``options``, are those of :meth:`NeuronSet.hooks`.
        positions: ``"content"`` spares special tokens and padding.
        options: ``values=``, ``language=``, ``factor=``.

    Raises:
        ValueError: at once, if the set is of a model with other sizes, or for options that do not fit the mode.
    """
    neurons.space.require_compatible(NeuronSpace.of(model))
    if positions not in get_args(Positions):
        raise ValueError(f"positions={positions!r}: it must be one of {', '.join(get_args(Positions))}.")
    if positions == "all":
        return hooked(model, neurons.hooks(mode, **options))
    content = ContentPositions(model)
    return _together(content, hooked(model, neurons.hooks(mode, positions=content, **options)))


@contextlib.contextmanager
def _together(
    watching: ContentPositions, hooks: contextlib.AbstractContextManager[HookedModel]
) -> Iterator[HookedModel]:
    with watching, hooks as model:
        yield model
