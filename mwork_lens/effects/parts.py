"""Parts of each language's set off one at a time: of growing numbers of layers (sweep), or by stage (grid)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

import pandas as pd

from ..detection import cut_to_size
from ..model import HookedModel, shown_model
from ..model.shards import by_name, shown_part
from ..neurons import MWORK_PARTS, STAGES, NeuronSet, NeuronSpace, Stages
from ..statistics import FEWEST, Estimate, benjamini_hochberg, interval_words, not_measurable
from ..store import Result, require_record
from ..text import Document, check_arguments
from ..text.choices import listed, require_choice
from .joining import concat_passages
from .losses import effect_matrix
from .matrix import EffectMatrix

Side = Literal["first", "last"]
SIDES: tuple[Side, ...] = ("first", "last")
MEAN = "mean"
Kind = TypeVar("Kind", bound="PartEffects")


def row_name(language: str, part: str, equal: bool = False) -> str:
    """The row of a part (``understanding``, ``first 4`` layers), maybe cut to as many neurons as the others have."""
    return f"{language} {part}{' (equal)' if equal else ''}"


@dataclass(frozen=True)
class PartEffects(Result):
    """An effect matrix with one row per language and part."""

    effects: EffectMatrix

    @classmethod
    def merge(cls: type[Kind], parts: Iterable[Kind] | Mapping[str, Kind]) -> Kind:
        """The result of a corpus out of those of all its parts (``shard=``), as :meth:`EffectMatrix.merge` does."""
        return cls(EffectMatrix.merge({name: part.effects for name, part in by_name(parts, cls.result_kind).items()}))

    def mean_difference(self, rows: Sequence[str]) -> Estimate:
        """Own rise minus the others' mean rise, mean over these rows, in the matrix's unit."""
        return Estimate.mean([self.effects.difference(row) for row in rows])


def _checked(sets: Mapping[str, NeuronSet], corpus: Mapping[str, Sequence[Document]]) -> dict[str, NeuronSet]:
    """Each set as that of the language it is named after; refuses one without text or neurons."""
    for language, neurons in sets.items():
        if language not in corpus or not len(neurons):
            text = listed(corpus, language)
            raise ValueError(f"The set {language!r} needs neurons ({len(neurons)}) and text ({text}).")
    return {name: NeuronSet(of.space, of.masks, of.origin | {"language": name}) for name, of in sets.items()}


class _OfLayers(TypedDict):
    """Where the neurons of a row come from."""

    layers: NotRequired[Sequence[int] | None]


@dataclass(frozen=True)
class LayerSweep(PartEffects, kind="layer_sweep"):
    """Selectivity of the part of each language's set that lies in the first, or the last, n layers.

    ``effects`` has one row per language, side and number of layers, e.g. ``fr first 4``, and one of as many of the
    set's neurons, drawn from all layers, ``fr first 4 (equal)``; that of all layers is the whole set.
    """

    def _require_whole(self) -> None:
        for row, made_of in self.effects.settings["sets"].items():
            require_record(made_of[0]["origin"], _OfLayers, f"the origin of {row!r}")
        needed = [row_name(language, f"first {self.n_layers}") for language in self.languages]
        if lacking := [row for row in needed if row not in self.effects.rows]:
            raise ValueError(f"The row {lacking[0]!r} is missing.")

    @property
    def languages(self) -> list[str]:
        """Whose sets were swept."""
        return list(dict.fromkeys(str(language) for language in self.effects.languages.values()))

    @cached_property
    def n_layers(self) -> int:
        """Layers of the model."""
        origins = [made_of[0]["origin"] for made_of in self.effects.settings["sets"].values()]
        return 1 + max(layer for origin in origins for layer in origin.get("layers") or [0])

    @cached_property
    def depths(self) -> list[int]:
        """The numbers of layers that were tried, apart from all."""
        rows = {depth: row_name(self.languages[0], f"first {depth}") for depth in range(1, self.n_layers)}
        return [depth for depth, row in rows.items() if row in self.effects.nats]

    def to_frame(self) -> pd.DataFrame:
        """One row per language (and their ``mean``), side and number of layers.

        Columns: ``neurons``; ``difference`` (own rise minus the mean rise of the others, nats per token); ``excess``,
        what that is above an even share: the whole set's difference times layers / all layers; and ``beyond``, what it
        is above that of as many of the set's neurons, drawn from all layers (NaN where that was not measured). Each
        with its 95 % interval by the jackknife over so many ``passages`` and ``documents``.
        """
        return pd.DataFrame(self._rows([*self.languages, MEAN]))

    def _rows(self, languages: Sequence[str]) -> list[dict[str, Any]]:
        rows = []
        for language, side, depth in product(languages, SIDES, [*self.depths, self.n_layers]):
            difference, whole = (self._difference(language, side, layers) for layers in (depth, self.n_layers))
            excess = difference - whole * (depth / self.n_layers)
            beyond = difference - self._difference(language, side, depth, equal=True)
            cells = {**difference.cells("difference", "difference_"), **excess.cells("excess", "excess_")}
            cells |= beyond.cells("beyond", "beyond_")
            place = {"language": language, "side": side, "layers": depth, "neurons": self._size(language, side, depth)}
            rows.append({**place, **cells, "passages": excess.passages, "documents": excess.documents})
        return rows

    def choice(self) -> tuple[int, int]:
        """N1 and N2: where the first and the last layers together exceed their even share of selectivity the most.

        The knee of both curves (mean over languages). Raises a ValueError on fewer than six documents, where no two
        depths leave a layer between, where the sets are not selective at all, or where neither curve is ever above an
        even share: such sets tell nothing about stages.
        """
        mean = self._means["first", self.n_layers]
        whole, excess = mean["difference"], {key: mean["excess"] for key, mean in self._means.items()}
        if (documents := mean["documents"]) < FEWEST:
            few = not_measurable(documents, passages=mean["passages"])
            raise ValueError(f"Which layers stand out is {few}: all together differ by {whole:+.3f} nats per token.")
        allowed = [(a, b) for a, b in product(self.depths, repeat=2) if a + b < self.n_layers]
        if not allowed:
            raise ValueError(f"No two of depths={self.depths} leave a layer between them: add a smaller one.")
        first, last = max(allowed, key=lambda pair: excess["first", pair[0]] + excess["last", pair[1]])
        if whole <= 0 or max(excess["first", first], excess["last", last]) <= 0:
            raise ValueError(
                f"No layers stand out: on {self.effects.text_read} all together differ by {whole:+.3f} nats per token, "
                f"the first {first} by {excess['first', first]:+.3f} from their even share of it, the last {last} by "
                f"{excess['last', last]:+.3f}."
            )
        return first, last

    def finding(self) -> str:
        """The choice as a sentence with its numbers."""
        try:
            first, last = self.choice()
        except ValueError as error:
            return str(error)
        parts = []
        for side, depth in ("first", first), ("last", last):
            mean = self._means[side, depth]
            excess, beyond = (
                f"{mean[name]:+.3f} "
                + interval_words(mean[f"{name}_low"], mean[f"{name}_high"], "+.3f", mean["documents"])
                for name in ("excess", "beyond")
            )
            parts.append(
                f"the {side} {f'{depth} layers hold' if depth > 1 else 'layer holds'} {mean['difference']:+.3f}, "
                f"{excess} above an even share"
                + (f" and {beyond} above as many of the sets' neurons of all layers" if self.has_equal else "")
            )
        whole = self._means["first", self.n_layers]["difference"]
        return (
            f"Own rise minus the others' with all {self.n_layers} layers' neurons off: {whole:+.3f} nats per token "
            f"(mean of {', '.join(self.languages)}, {self.effects.text_read}); {'; '.join(parts)}; "
            + ("" if self.has_equal else "what as many neurons of all layers do was not measured; ")
            + "these places are where the sum of both shares is largest, which flatters them."
        )

    def stages(self, model: HookedModel | NeuronSpace) -> Stages:
        """:meth:`choice` as stages of a model."""
        first, last = self.choice()
        return Stages(model, understanding=first, generation=last)

    @cached_property
    def _means(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The rows of the mean over languages in :meth:`to_frame`, by side and number of layers."""
        return {(row["side"], row["layers"]): row for row in self._rows([MEAN])}

    @property
    def has_equal(self) -> bool:
        """Whether as many of each set's neurons, drawn from all layers, were measured beside each part."""
        return bool(self.depths) and row_name(self.languages[0], f"first {self.depths[0]}", True) in self.effects.nats

    def _difference(self, language: str, side: Side, depth: int, equal: bool = False) -> Estimate:
        if equal and not self.has_equal:
            return Estimate.nan()
        return self.mean_difference(self._parts(language, side, depth, equal and depth < self.n_layers))

    def _size(self, language: str, side: Side, depth: int) -> float:
        """Neurons of a part, or the mean of several languages'."""
        sets = self.effects.settings["sets"]
        sizes = [sets[row][0]["neurons"] for row in self._parts(language, side, depth)]
        return sum(sizes) / len(sizes)

    def _parts(self, language: str, side: Side, depth: int, equal: bool = False) -> list[str]:
        """Rows of a part, one for each language that is asked for."""
        side = side if depth < self.n_layers else "first"
        languages = self.languages if language == MEAN else [language]
        return [row_name(name, f"{side} {depth}", equal) for name in languages]

    def __repr__(self) -> str:
        settings, swept = self.effects.settings, f"{', '.join(self.languages)}; layers {self.depths}"
        return f"LayerSweep({shown_model(settings)}: {shown_part(settings)}{swept})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)


def layer_sweep(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    corpus: Mapping[str, Sequence[Document]],
    *,
    depths: Sequence[int] | None = None,
    equal: bool = True,
    draws: int = 1,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> LayerSweep:
    """Switch off the part of each set in the first n layers, then in the last n, for growing n.

    A part with more neurons does more damage, so as many neurons of the whole set, drawn at random, are switched off
    beside each.

    Use development documents, neither those that the sets were detected on nor those of the final claim.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: neurons by language.
        corpus: development documents; at least these languages and one more.
        depths: the numbers of layers to try; 1 to all but two by default.
        equal: whether to measure as many neurons of all layers beside each part.
        draws: how many times they are drawn, with other seeds.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        options: passed on to :func:`effect_matrix`, e.g. ``shard=``.

    Raises:
        ValueError: for a set of a language that the corpus lacks, a set without neurons, or depths out of range.
    """
    check_arguments(layer_sweep, locals())
    n_layers = NeuronSpace.of(model).n_layers
    numbers = list(range(1, n_layers - 1)) if depths is None else sorted(set(depths))
    if not numbers or not 1 <= numbers[0] <= numbers[-1] <= n_layers - 2:
        raise ValueError(f"depths={depths}: give numbers of layers from 1 to {n_layers - 2}.")
    rows: dict[str, NeuronSet | list[NeuronSet]] = {}
    for language, neurons in _checked(sets, corpus).items():
        for depth, side in product(numbers, SIDES):
            layers = range(depth) if side == "first" else range(n_layers - depth, n_layers)
            part = neurons.restrict(layers=layers)
            rows[row_name(language, f"{side} {depth}")] = part
            if equal:
                drawn = [cut_to_size(neurons, len(part), seed=seed) for seed in range(draws)]
                rows[row_name(language, f"{side} {depth}", True)] = drawn
        rows[row_name(language, f"first {n_layers}")] = neurons
    return LayerSweep(effect_matrix(model, rows, corpus, checkpoint=checkpoint, **options))


class _Divided(TypedDict):
    """Whose sets a grid divides, and the first layer of each stage with the one after its last."""

    languages: Sequence[str]
    understanding: Sequence[int]
    task_solving: Sequence[int]
    generation: Sequence[int]


class _GridSettings(TypedDict):
    stages: _Divided


@dataclass(frozen=True)
class StageGrid(PartEffects, kind="stage_grid"):
    """What each part of each language's set does to that language's loss and to the others'.

    ``effects`` has one row per language and part, e.g. ``fr understanding``, and the same cut to equal count,
    ``… (equal)``. A part without neurons has no row. The stages' layers are in its settings.
    """

    def _require_whole(self) -> None:
        require_record(self.effects.settings, _GridSettings, "the settings")
        for stage in STAGES:
            if len(limits := self.effects.settings["stages"][stage]) != 2:
                raise ValueError(f"The layers of {stage} cannot be {limits!r:.60}.")

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
        return bool(self._rows(MWORK_PARTS, equal=True))

    def to_frame(self, *, equal: bool = False) -> pd.DataFrame:
        """One row per language and part, in the columns of :meth:`EffectMatrix.selectivity`; NaN without neurons.

        With ``equal``, each language's parts are cut to the size of the smallest that has any neurons.
        """
        parts, table = list(product(self.languages, MWORK_PARTS)), self.effects.selectivity()
        frame = table.reindex([row_name(*part, equal) for part in parts]).fillna({"neurons": 0})
        frame["language"], frame["part"] = zip(*parts, strict=True)
        columns = ["language", "part", *table.columns.difference(["language", "kind"], sort=False)]
        return frame.reset_index(drop=True).reindex(columns=columns)

    def means(self, *, equal: bool = False, without: Sequence[str] = ("en",)) -> pd.DataFrame:
        """One row per part: own rise minus the others' mean rise, mean over languages, with its 95 % interval.

        Columns: difference (nats per token), low, high, p, passages, documents, p_adjusted (over the parts).
        ``equal`` is as in :meth:`to_frame`; ``without`` are languages left out: English is the hypothesis's pivot.
        """
        check_arguments(StageGrid.means, locals())
        means = {part: self.difference([part], equal=equal, without=without) for part in MWORK_PARTS}
        rows = {part: mean.tested("difference") for part, mean in means.items()}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        return frame.assign(p_adjusted=benjamini_hochberg(frame["p"].to_numpy())).rename_axis("part")

    def difference(self, parts: Sequence[str], *, equal: bool = False, without: Sequence[str] = ("en",)) -> Estimate:
        """Own rise minus the others', mean over these parts and over languages; NaN if none has neurons there.

        Raises:
            ValueError: for a part that does not exist.
        """
        check_arguments(StageGrid.difference, locals())
        for part in parts:
            require_choice("part", part, MWORK_PARTS)
        rows = self._rows(parts, equal=equal, without=without)
        return self.mean_difference(rows) if rows else Estimate.nan()

    def _rows(self, parts: Sequence[str], *, equal: bool, without: Sequence[str] = ()) -> list[str]:
        languages = [language for language in self.languages if language not in without]
        names = [row_name(language, part, equal) for part, language in product(parts, languages)]
        return [name for name in names if name in self.effects.nats]

    def __repr__(self) -> str:
        layers = ", ".join(f"{stage} {layers.start}–{layers.stop - 1}" for stage, layers in self.layers.items())
        settings = self.effects.settings
        return f"StageGrid({shown_model(settings)}: {shown_part(settings)}{', '.join(self.languages)}; {layers})"

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
    checkpoint: str | Path | None = None,
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
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        options: passed on to :func:`effect_matrix`, e.g. ``shard=``.

    Raises:
        ValueError: for a set of a language that the corpus lacks, or without neurons.
    """
    check_arguments(stage_grid, locals())
    rows: dict[str, NeuronSet | list[NeuronSet]] = {}
    for language, neurons in _checked(sets, corpus).items():
        parts = {name: part for name, part in stages.split(neurons).items() if len(part)}
        rows |= {row_name(language, name): part for name, part in parts.items()}
        if equal:
            least = min(map(len, parts.values()))
            for name, part in parts.items():
                rows[row_name(language, name, True)] = [cut_to_size(part, least, seed=seed) for seed in range(draws)]
    effects = effect_matrix(model, rows, corpus, checkpoint=checkpoint, **options)
    limits = {stage: [layers.start, layers.stop] for stage, layers in stages}
    settings = {**effects.settings, "stages": {"languages": list(sets), **limits}}
    return StageGrid(replace(effects, settings=settings))


def pool_grids(grids: Sequence[StageGrid]) -> StageGrid:
    """One grid of several folds; a part without neurons in one of them has no row."""
    return StageGrid(concat_passages([grid.effects for grid in grids], common_rows=True))
