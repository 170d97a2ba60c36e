"""How many first layers understand and how many last ones generate: a language's neurons off layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..model import HookedModel
from ..neurons import NeuronSet, NeuronSpace, Stages
from ..statistics import interval
from ..text import Document
from .ablating import effect_matrix
from .parts import PartEffects, own_sets

Side = Literal["first", "last"]
SIDES: tuple[Side, ...] = ("first", "last")
MEAN = "mean"


@dataclass(frozen=True)
class LayerSweep(PartEffects, kind="layer_sweep"):
    """Selectivity of the part of each language's set that lies in the first, or the last, n layers.

    ``effects`` has a row a language, side and number of layers, e.g. ``fr first 4``; that of all layers is the whole
    set.
    """

    @property
    def languages(self) -> list[str]:
        """Whose sets were swept."""
        return list(dict.fromkeys(str(language) for language in self.effects.languages.values()))

    @cached_property
    def n_layers(self) -> int:
        """Layers of the model."""
        return max(int(row.rsplit(" ", 1)[1]) for row in self.effects.rows)

    @cached_property
    def depths(self) -> list[int]:
        """The numbers of layers that were tried, besides all."""
        return sorted({int(row.rsplit(" ", 1)[1]) for row in self.effects.rows} - {self.n_layers})

    def to_frame(self) -> pd.DataFrame:
        """One row a language (and their ``mean``), side and number of layers.

        Columns: ``difference`` (own rise minus the mean rise of the others, nats a token) and ``excess``, what that is
        above an even share: the whole set's difference times layers / all layers. Each with its 95 % interval by
        bootstrap over documents.
        """
        rows = []
        for language, side, depth in product([*self.languages, MEAN], SIDES, [*self.depths, self.n_layers]):
            row: dict[str, Any] = {"language": language, "side": side, "layers": depth}
            for name, (value, drawn) in self._measured(language, side, depth).items():
                low, high = interval(drawn, documents=self.effects.document_count())
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def choice(self) -> tuple[int, int]:
        """N1 and N2: where the first and the last layers together exceed their even share of selectivity the most.

        The knee of both curves (mean over languages). Raises a ValueError where the sets are not selective at all, or
        neither curve is ever above an even share: such sets tell nothing about stages.
        """
        whole = self._measured(MEAN, "first", self.n_layers)["difference"][0]
        excess = {(s, d): self._measured(MEAN, s, d)["excess"][0] for s, d in product(SIDES, self.depths)}
        allowed = [(a, b) for a, b in product(self.depths, repeat=2) if a + b < self.n_layers]
        first, last = max(allowed, key=lambda pair: excess["first", pair[0]] + excess["last", pair[1]])
        if whole <= 0 or max(excess["first", first], excess["last", last]) <= 0:
            raise ValueError(
                f"No layers stand out: all layers together differ by {whole:+.3f} nats a token, the first {first} by "
                f"{excess['first', first]:+.3f} from their even share of it, the last {last} by "
                f"{excess['last', last]:+.3f}."
            )
        return first, last

    def finding(self) -> str:
        """What was chosen, as a sentence with its numbers."""
        try:
            chosen = dict(zip(SIDES, self.choice(), strict=True))
        except ValueError as error:
            return str(error)
        whole = self._measured(MEAN, "first", self.n_layers)["difference"][0]
        parts = []
        for side, depth in chosen.items():
            (value, _), (excess, drawn) = self._measured(MEAN, side, depth).values()
            low, high = interval(drawn, documents=self.effects.document_count())
            said = f"{value:+.3f}, {excess:+.3f} ({low:+.3f} to {high:+.3f}) above an even share"
            parts.append(f"the {side} {f'{depth} layers hold' if depth > 1 else 'layer holds'} {said}")
        return (
            f"Own rise minus the others' with all {self.n_layers} layers' neurons off: {whole:+.3f} nats a token (mean "
            f"of {', '.join(self.languages)}); {'; '.join(parts)}."
        )

    def stages(self, model: HookedModel | NeuronSpace) -> Stages:
        """:meth:`choice` as stages of a model."""
        first, last = self.choice()
        return Stages(model, understanding=first, generation=last)

    def _measured(
        self, language: str, side: Side, depth: int
    ) -> dict[str, tuple[float, Float[np.ndarray, " resample"]]]:
        """Estimate and resamples of a language's difference and excess, or of their means over languages."""
        names = self.languages if language == MEAN else [language]
        even = depth / self.n_layers

        def mean(of: int) -> tuple[float, np.ndarray]:
            return self.mean_difference([f"{name} {side if of < self.n_layers else 'first'} {of}" for name in names])

        (value, drawn), (whole, whole_drawn) = mean(depth), mean(self.n_layers)
        return {"difference": (value, drawn), "excess": (value - even * whole, drawn - even * whole_drawn)}

    def __repr__(self) -> str:
        return f"LayerSweep({self.effects.settings['model']}: {', '.join(self.languages)}; layers {self.depths})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)


def layer_sweep(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    corpus: Mapping[str, Sequence[Document]],
    *,
    depths: Sequence[int] | None = None,
    **options: Any,
) -> LayerSweep:
    """Switch off the part of each set in the first n layers, then in the last n, for growing n.

    Use development documents, neither those that the sets were detected on nor those of the final claim.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: neurons by language.
        corpus: development documents; at least these languages and one more.
        depths: the numbers of layers to try; 1 to all but two by default.
        options: passed on to :func:`effect_matrix`.

    Raises:
        ValueError: for a set of a language that the corpus lacks, a set without neurons, or depths out of range.
    """
    n_layers = NeuronSpace.of(model).n_layers
    tried = list(range(1, n_layers - 1)) if depths is None else sorted(set(depths))
    if not tried or not 1 <= tried[0] <= tried[-1] <= n_layers - 2:
        raise ValueError(f"depths={depths}: give numbers of layers from 1 to {n_layers - 2}.")
    rows: dict[str, NeuronSet] = {}
    for language, own in own_sets(sets, corpus).items():
        for depth in tried:
            rows[f"{language} first {depth}"] = own.restrict(layers=range(depth))
            rows[f"{language} last {depth}"] = own.restrict(layers=range(n_layers - depth, n_layers))
        rows[f"{language} first {n_layers}"] = own
    return LayerSweep(effect_matrix(model, rows, corpus, **options))
