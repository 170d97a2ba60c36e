"""MWork's three stages over a model's layers, and the parts of a set of neurons that lie in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

from ..model import SITES, HookedModel, Structure
from ..model.architecture import require_hooked
from ..text import check_arguments
from ..text.choices import listed
from .sets import NeuronSet
from .space import NeuronSpace

STAGES = ("understanding", "task_solving", "generation")
ALL_PARTS = (*STAGES, *(f"{stage} {structure}" for stage, structure in product(STAGES, get_args(Structure))))
"""What may be asked for: a stage, or a structure within a stage, e.g. ``task_solving attention``."""

MWORK_PARTS = ("understanding", "task_solving attention", "task_solving feed_forward", "generation")
"""The four parts that the paper switches off one at a time; together they are every neuron."""


@dataclass(frozen=True, init=False)
class Stages:
    """The layers of each stage: the first N1 understand, the last N2 generate, those between solve the task."""

    model: str
    understanding: range
    task_solving: range
    generation: range

    def __init__(
        self, model: HookedModel | NeuronSpace, *, understanding: int | None = None, generation: int | None = None
    ) -> None:
        """N1 and N2 are by default a quarter and an eighth of all layers, as in the authors' code (8 and 4 of 32).

        Raises:
            ValueError: unless each stage has at least one layer.
        """
        check_arguments(Stages, locals())
        of_space = isinstance(model, NeuronSpace)
        if not of_space:
            require_hooked(model)
        name, n_layers = (model.model, model.n_layers) if of_space else (str(model.cfg.model_name), model.cfg.n_layers)
        first = max(1, n_layers // 4) if understanding is None else understanding
        last = max(1, n_layers // 8) if generation is None else generation
        if first < 1 or last < 1 or first + last >= n_layers:
            problem = f"understanding={first} and generation={last} do not leave a layer for each of the three stages"
            raise ValueError(f"{problem}: {name} has {n_layers} layers.")
        ranges = (range(first), range(first, n_layers - last), range(n_layers - last, n_layers))
        vars(self).update(zip(STAGES, ranges, strict=True), model=name)

    @property
    def n_layers(self) -> int:
        """All layers."""
        return self.generation.stop

    def select(self, neurons: NeuronSet, *parts: str) -> NeuronSet:
        """The neurons of a set that lie in any of these parts.

        ``select(french, "understanding", "task_solving attention")`` has the understanding layers' neurons and the
        ``q``, ``k`` and ``v`` ones of the task-solving layers. The set's history is recorded, with ``parts``.

        Raises:
            ValueError: for no part, one that does not exist, or a set of a model with another number of layers.
        """
        unknown = [part for part in parts if part not in ALL_PARTS]
        if unknown or not parts:
            problem = f"There is no part {unknown[0]!r}" if unknown else "Name at least one part"
            raise ValueError(f"{problem}; parts are {listed(ALL_PARTS, *unknown[:1])}.")
        if neurons.space.n_layers != self.n_layers:
            of_set = f"the set is of {neurons.space.model} with {neurons.space.n_layers}."
            raise ValueError(f"These stages are of {self.model} with {self.n_layers} layers; {of_set}")
        selected = NeuronSet.empty(neurons.space)
        for stage, *structure in map(str.split, parts):
            sites = [name for name, site in SITES.items() if not structure or site.structure == structure[0]]
            selected |= neurons.restrict(layers=getattr(self, stage), sites=sites)
        return NeuronSet(neurons.space, selected.masks, neurons.origin | {"parts": list(parts)})

    def split(self, neurons: NeuronSet) -> dict[str, NeuronSet]:
        """The four parts of a set that the paper switches off one at a time, by name; each neuron is in one."""
        return {part: self.select(neurons, part) for part in MWORK_PARTS}

    def __iter__(self) -> Iterator[tuple[str, range]]:
        """Stages with their layers, in order."""
        return ((stage, getattr(self, stage)) for stage in STAGES)

    def __repr__(self) -> str:
        described = ", ".join(f"{stage} {layers.start}–{layers.stop - 1}" for stage, layers in self)
        return f"Stages({self.model}: {described})"
