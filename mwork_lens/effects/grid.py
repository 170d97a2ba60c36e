"""The stage grid: each part of a language's set off by itself, by stage and structure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..detection import cut_to_size
from ..model import HookedModel
from ..neurons import MWORK_PARTS, STAGES, NeuronSet, Stages
from ..statistics import interval
from ..text import Document
from .ablating import effect_matrix
from .joining import pool_common
from .parts import PartEffects, own_sets

EQUAL = " (equal)"


@dataclass(frozen=True)
class StageGrid(PartEffects, kind="stage_grid"):
    """What each part of each language's set does to that language's loss and to the others'.

    ``effects`` has a row a language and part, e.g. ``fr understanding``, and the same cut to equal count,
    ``… (equal)``. A part without neurons has no row. The stages' layers are in its settings.
    """

    @property
    def languages(self) -> list[str]:
        """Whose sets were divided."""
        return list(self.effects.settings["stages"]["languages"])

    @property
    def layers(self) -> dict[str, range]:
        """The layers of each stage."""
        return {stage: range(*self.effects.settings["stages"][stage]) for stage in STAGES}

    @property
    def has_equal(self) -> bool:
        """Whether the version with equally many neurons in each part was measured."""
        return any(row.endswith(EQUAL) for row in self.effects.rows)

    def to_frame(self, *, equal: bool = False) -> pd.DataFrame:
        """One row a language and part, in the columns of :meth:`EffectMatrix.selectivity`; missing without neurons.

        Args:
            equal: whether each language's parts are cut to the size of the smallest that has any neurons.
        """
        table = self.effects.selectivity()
        rows = []
        for language in self.languages:
            for part in MWORK_PARTS:
                name = _row(language, part, equal)
                found = table.loc[name].to_dict() if name in table.index else {"neurons": 0}
                rows.append({**found, "language": language, "part": part})
        columns = ["language", "part", *(c for c in table.columns if c not in ("language", "kind"))]
        return pd.DataFrame(rows, columns=columns)

    def means(self, *, equal: bool = False, without: Sequence[str] = ("en",)) -> pd.DataFrame:
        """One row a part: own rise minus the others' mean rise, mean over languages, with its 95 % interval.

        Args:
            equal: as in :meth:`to_frame`.
            without: languages left out; English is the pivot of the hypothesis.
        """
        rows = []
        for part in MWORK_PARTS:
            value, drawn = self.difference([part], equal=equal, without=without)
            low, high = interval(drawn, documents=self.effects.document_count())
            rows.append({"part": part, "difference": value, "low": low, "high": high})
        return pd.DataFrame(rows).set_index("part")

    def difference(
        self, parts: Sequence[str], *, equal: bool = False, without: Sequence[str] = ("en",)
    ) -> tuple[float, Float[np.ndarray, " resample"]]:
        """Own rise minus the others', mean over these parts and over languages, and its resamples.

        Missing where no language has neurons there.
        """
        languages = [language for language in self.languages if language not in without]
        names = [_row(language, part, equal) for part in parts for language in languages]
        found = [name for name in names if name in self.effects.nats]
        return self.mean_difference(found) if found else (float("nan"), np.full(1, np.nan))

    def __repr__(self) -> str:
        layers = ", ".join(f"{stage} {found.start}–{found.stop - 1}" for stage, found in self.layers.items())
        return f"StageGrid({self.effects.settings['model']}: {', '.join(self.languages)}; {layers})"

    def _repr_html_(self) -> str:
        table = self.to_frame().pivot(index="part", columns="language", values="difference")
        return f"<p>Own rise minus the others' mean rise</p>{table.loc[list(MWORK_PARTS)].round(3).to_html()}"


def stage_grid(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    corpus: Mapping[str, Sequence[Document]],
    stages: Stages,
    *,
    equal: bool = True,
    draws: int = 1,
    **options: Any,
) -> StageGrid:
    """Switch off the four parts of each language's set, one at a time, and measure every language's loss.

    A part with more neurons does more damage, so each language's parts are also cut, at random, to the size of the
    smallest that has any.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: neurons by language.
        corpus: held-out documents; at least these languages and one more.
        stages: the layers of each stage.
        equal: whether to measure the parts cut to equal count as well.
        draws: how many times they are cut, with other seeds.
        options: passed on to :func:`effect_matrix`.

    Raises:
        ValueError: for a set of a language that the corpus lacks, or without neurons.
    """
    rows: dict[str, NeuronSet | list[NeuronSet]] = {}
    for language, own in own_sets(sets, corpus).items():
        parts = {name: part for name, part in stages.split(own).items() if len(part)}
        rows |= {_row(language, name, False): part for name, part in parts.items()}
        if equal:
            least = min(map(len, parts.values()))
            cut = {n: [cut_to_size(part, least, seed=seed) for seed in range(draws)] for n, part in parts.items()}
            rows |= {_row(language, name, True): drawn for name, drawn in cut.items()}
    effects = effect_matrix(model, rows, corpus, **options)
    divided = {stage: [layers.start, layers.stop] for stage, layers in stages}
    settings = {**effects.settings, "stages": {"languages": list(sets), **divided}}
    return StageGrid(replace(effects, settings=settings))


def pool_grids(grids: Sequence[StageGrid]) -> StageGrid:
    """One grid of several, each with the sets of a detection of its own, measured on documents of its own.

    A part that has no neurons in one of them has no row.
    """
    return StageGrid(pool_common([grid.effects for grid in grids]))


def _row(language: str, part: str, equal: bool) -> str:
    return f"{language} {part}{EQUAL if equal else ''}"
