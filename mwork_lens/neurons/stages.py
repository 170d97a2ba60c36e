"""MWork's three stages over a model's layers, and the parts of a set of neurons that lie in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import or_
from typing import get_args

from ..model import SITES, HookedModel, Structure
from .sets import NeuronSet
from .space import NeuronSpace

STAGES = ("understanding", "task_solving", "generation")
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
ALL_PARTS = (*STAGES, *(f"{stage} {structure}" for stage, structure in product(STAGES, STRUCTURES)))
"""What may be asked for: a stage, or a structure within a stage, e.g. ``task_solving attention``."""

MWORK_PARTS = ("understanding", "task_solving attention", "task_solving feed_forward", "generation")
"""The four parts that the paper switches off one at a time; together they are every neuron."""


@dataclass(frozen=True, init=False)
class Stages:
    """The layers of each stage: the first N1 understand, the last N2 generate, those between solve the task.

    ``Stages(model, understanding=4, generation=2)``; the ranges are ``.understanding``, ``.task_solving`` and
    ``.generation``.
    """

    model: str
    understanding: range
    task_solving: range
    generation: range

    def __init__(
        self, model: HookedModel | NeuronSpace, *, understanding: int | None = None, generation: int | None = None
    ) -> None:
        """Divide the layers of a model.

        Args:
            model: a hooked model, or the space of a set or detection.
            understanding: N1, the first layers; by default a quarter of all, as in the authors' code (8 of 32).
            generation: N2, the last layers; by default an eighth of all, as in the authors' code (4 of 32).

        Raises:
            ValueError: unless each stage has at least one layer.
        """
        known = isinstance(model, NeuronSpace)
        name, n_layers = (model.model, model.n_layers) if known else (str(model.cfg.model_name), model.cfg.n_layers)
        first = max(1, n_layers // 4) if understanding is None else understanding
        last = max(1, n_layers // 8) if generation is None else generation
        if first < 1 or last < 1 or first + last >= n_layers:
            raise ValueError(
                f"understanding={first} and generation={last} do not leave a layer for each of the three stages: "
                f"{name} has {n_layers} layers."
            )
        ranges = (range(first), range(first, n_layers - last), range(n_layers - last, n_layers))
        object.__setattr__(self, "model", name)
        for stage, layers in zip(STAGES, ranges, strict=True):
            object.__setattr__(self, stage, layers)

    @property
    def n_layers(self) -> int:
        """All layers."""
        return self.generation.stop

    def select(self, neurons: NeuronSet, *parts: str) -> NeuronSet:
        """The neurons of a set that lie in any of these parts.

        ``select(french, "understanding", "task_solving attention")`` has the understanding layers' neurons and the
        ``q``, ``k`` and ``v`` ones of the task-solving layers. The set's language and making stay recorded, with
        ``parts``.

        Args:
            neurons: a set of a model with as many layers.
            parts: stages, or a structure within a stage (:data:`ALL_PARTS`).

        Raises:
            ValueError: for no part, one that does not exist, or a set of a model with another number of layers.
        """
        unknown = [part for part in parts if part not in ALL_PARTS]
        if unknown or not parts:
            asked = f"There is no part {unknown[0]!r}" if unknown else "Name at least one part"
            raise ValueError(f"{asked}; parts are {', '.join(ALL_PARTS)}.")
        if neurons.space.n_layers != self.n_layers:
            raise ValueError(
                f"These stages are of {self.model} with {self.n_layers} layers; the set is of {neurons.space.model} "
                f"with {neurons.space.n_layers}."
            )
        chosen = reduce(or_, (self._part(neurons, part) for part in parts))
        return NeuronSet(neurons.space, chosen.masks, neurons.origin | {"parts": list(parts)})

    def _part(self, neurons: NeuronSet, part: str) -> NeuronSet:
        stage, *structure = part.split()
        sites = [name for name, site in SITES.items() if not structure or site.structure == structure[0]]
        return neurons.restrict(layers=getattr(self, stage), sites=sites)

    def split(self, neurons: NeuronSet) -> dict[str, NeuronSet]:
        """The four parts of a set that the paper switches off one at a time, by name; each neuron is in one."""
        return {part: self.select(neurons, part) for part in MWORK_PARTS}

    def __iter__(self) -> Iterator[tuple[str, range]]:
        """Stages with their layers, in order."""
        return ((stage, getattr(self, stage)) for stage in STAGES)

    def __repr__(self) -> str:
        described = ", ".join(f"{stage} {layers.start}–{layers.stop - 1}" for stage, layers in self)
        return f"Stages({self.model}: {described})"
