"""The effect matrix: loss with sets of neurons off, and what follows from it: rises, intervals, selectivity."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import ModelRecord
from ..model.shards import Part, by_name, shown_part
from ..statistics import Estimate, Jackknife, adjusted_verdict, benjamini_hochberg, counted, not_measurable
from ..store import Result, require_record
from ..text import Status, check_arguments
from ..text.choices import listed, named
from ..text.languages import share_a_script
from .merging import merged_fields
from .overlap import DETECTION, TUNING, documents_read, overlap_words

BASELINE, TUNED = "baseline", "tuned"
Unit = Literal["token", "byte", "passage"]
UNITS: Mapping[str, str] = {"token": "nats per token", "byte": "nats per UTF-8 byte", "passage": "nats per passage"}
DECIMALS: Mapping[str, int] = {"token": 2, "byte": 3, "passage": 1}
"""With how many decimals to show a rise in each unit."""
_VERDICTS = {
    False: {"above": "selective", "below": "not selective", "at": "not clearly selective"},
    True: {"above": "against {}", "below": "in favour of {}", "at": "not clearly for or against {}"},
}
"""What a difference says of a set that was switched off (False) or tuned (True)."""
Among = Literal["others", "same_script", "other_script"]
BY_PASSAGE = ("tokens", "utf8_bytes", "documents", "folds", "documents_of", "seen")
"""Fields with an entry for each passage, by language."""


class _MadeOf(TypedDict):
    """A row's neurons in one draw."""

    neurons: int
    origin: Mapping[str, Any]


class _Read(TypedDict):
    """What the corpus says of itself."""

    passages: Mapping[str, int]
    parallel: bool
    hash: object


class _Settings(ModelRecord):
    """What results are computed from, of all that the settings hold."""

    sets: Mapping[str, Sequence[_MadeOf]]
    corpus: _Read
    seen_by: NotRequired[str]
    part: NotRequired[Part]


@dataclass(frozen=True)
class EffectMatrix(Result, kind="effect_matrix"):
    """Loss of every passage with nothing off and with each set off; the rises in loss follow from it."""

    nats: Mapping[str, Mapping[str, Float[Tensor, "_ _"]]]
    """By what is off (``"baseline"`` first) and by language, ``[draw, passage]``: negative log-likelihood. A control
    may be drawn several times, with other seeds; its rise is the mean over draws."""
    tokens: Mapping[str, Int[Tensor, " _"]]
    """By language: the tokens of each passage that count."""
    utf8_bytes: Mapping[str, Int[Tensor, " _"]]
    """By language: the length in UTF-8 of what was read of each passage (0 for documents given as token ids)."""
    documents: Mapping[str, Sequence[str]]
    """By language: the document of each passage."""
    folds: Mapping[str, Sequence[int]]
    """By language: which detection's sets each passage was measured with; 0 where there is one."""
    languages: Mapping[str, str | None]
    """Whose neurons each row switches off, where the row has a language."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    unit: Unit = "token"
    """What rises are divided by: tokens, UTF-8 bytes or passages."""
    documents_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By language: the hash of each passage's token ids, where they are recorded."""
    seen: Mapping[str, Sequence[Status]] = field(default_factory=dict)
    """By language: whether each passage's document was read to find the neurons (``Status``), where that is recorded:
    ``unseen``, ``seen``, ``seen in another language`` (a translation was), or ``unknown``."""

    def _require_whole(self) -> None:
        passages = {language: len(documents) for language, documents in self.documents.items()}
        by_passage = {name: getattr(self, name) for name in BY_PASSAGE if getattr(self, name) or name in BY_PASSAGE[:4]}
        rows = {f"nats of {off}": {read: nats[0] for read, nats in row.items()} for off, row in self.nats.items()}
        for name, values in {**by_passage, **rows}.items():
            if {language: len(value) for language, value in values.items()} != passages:
                raise ValueError(f"{name}: not one for each of the passages, {passages}.")
        if BASELINE not in self.nats or set(self.rows) != set(self.languages):
            raise ValueError(
                f"The rows {self.rows} are not those of the languages {dict(self.languages)}, or have no {BASELINE!r}."
            )
        require_record(self.settings, _Settings, "the settings")
        sets, known = self.settings["sets"], self.settings["corpus"]["passages"]
        if unsaid := [row for row in self.rows if not sets.get(row)]:
            raise ValueError(f"The settings do not say what each row is made of: {unsaid[0]!r} is missing.")
        if lacking := passages.keys() - known.keys():
            raise ValueError(f"The settings do not know the passages of {sorted(lacking)}.")

    @classmethod
    def merge(cls, parts: Iterable["EffectMatrix"] | Mapping[str, "EffectMatrix"]) -> "EffectMatrix":
        """The matrix of a corpus out of those of all its parts, in any order, to the last bit (messages call them by
        the names of a mapping).

        Raises:
            ValueError: for parts of other models, settings or sets; that are missing, there twice or of another plan;
                and for what is not a part of ``effect_matrix(..., shard=)``.
        """
        return cls(**merged_fields(by_name(parts, "matrix"), BY_PASSAGE))

    @property
    def rows(self) -> list[str]:
        """The names of what was switched off, or tuned."""
        return [name for name in self.nats if name != BASELINE]

    @property
    def tuned(self) -> bool:
        """Whether neurons were tuned (see :func:`mwork_lens.tuning_effects`) and not switched off."""
        return self.settings.get("mode") == TUNED

    @property
    def seen_by(self) -> str:
        """What :attr:`seen` is of: detection, or the tuning of the deltas."""
        return self.settings.get("seen_by", TUNING if self.tuned else DETECTION)

    @property
    def decimals(self) -> int:
        """With how many to show a change: tuning does less than switching off."""
        return DECIMALS[self.unit] + self.tuned

    def per(self, unit: Unit) -> "EffectMatrix":
        """The same result in another unit: nats per ``"token"``, UTF-8 ``"byte"`` or parallel ``"passage"``.

        Tokenizers cut some languages finer than others, so that rises per token of different languages compare badly;
        bytes differ by script; passages say the same in every language.

        Raises:
            ValueError: for another unit, bytes of documents given as token ids, or passages that are not parallel.
        """
        check_arguments(EffectMatrix.per, locals())
        if unit == "byte" and not all(lengths.all() for lengths in self.utf8_bytes.values()):
            raise ValueError("unit='byte': some documents were given as token ids, which have no bytes.")
        if unit == "passage" and not self.settings["corpus"]["parallel"]:
            raise ValueError("unit='passage' compares parallel passages, and this corpus is not parallel.")
        return replace(self, unit=unit)

    def fold(self, number: int) -> "EffectMatrix":
        """The part that was measured with the sets of one detection.

        Raises:
            ValueError: if there is no such fold.
        """
        check_arguments(EffectMatrix.fold, locals())
        passages = {read: [i for i, fold in enumerate(folds) if fold == number] for read, folds in self.folds.items()}
        if not all(passages.values()):
            raise ValueError(f"There is no fold {number}; there are {self._fold_numbers}.")
        return self._part(self.rows, passages)

    def select(self, rows: Sequence[str] | None = None, languages: Sequence[str] | None = None) -> "EffectMatrix":
        """Some rows and some of the languages read; ``selectivity`` then compares among these only.

        Raises:
            ValueError: for one that is not there, or none.
        """
        check_arguments(EffectMatrix.select, locals())
        rows = list(self.rows if rows is None else rows)
        reads = list(self.tokens if languages is None else languages)
        unknown = [name for name in rows if name not in self.rows] + [name for name in reads if name not in self.tokens]
        if unknown or not rows or not reads:
            name = repr(unknown[0]) if unknown else "row or language"
            every = f"rows are {listed(self.rows, name)}; read are {listed(self.tokens, name)}"
            raise ValueError(f"There is no {name}; {every}.")
        return self._part(rows, {read: list(range(len(self.folds[read]))) for read in reads})

    def _part(self, rows: Sequence[str], passages: Mapping[str, Sequence[int]]) -> "EffectMatrix":
        """Some rows, and some passages of the languages named."""
        by_read = {}
        for name in BY_PASSAGE:
            values = getattr(self, name)
            by_read[name] = {read: _pick(values[read], i) for read, i in passages.items() if read in values}
        corpus = self.settings["corpus"]
        corpus = {**corpus, "passages": {read: corpus["passages"][read] for read in passages}}
        sets = {name: self.settings["sets"][name] for name in rows}
        return replace(
            self,
            **by_read,
            nats={off: {read: self.nats[off][read][:, i] for read, i in passages.items()} for off in (BASELINE, *rows)},
            languages={name: self.languages[name] for name in rows},
            settings={**self.settings, "corpus": corpus, "sets": sets},
        )

    def only_part(self, part: Part) -> "EffectMatrix":
        """The passages of one part of the corpus, with what the part says of itself."""
        return replace(self._part(self.rows, part["rows"]), settings={**self.settings, "part": part})

    def to_frame(self) -> pd.DataFrame:
        """Rise of each language's loss (columns) when a set is off (rows), in nats per ``unit``."""
        columns = {
            read: {off: self._rises(off, read).mean(0).sum() / float(self._sizes(read).sum()) for off in self.rows}
            for read in self.tokens
        }
        return pd.DataFrame(columns, index=self.rows).rename_axis("off")

    @property
    def baseline(self) -> pd.Series:
        """Loss by language with nothing off, in nats per ``unit``."""
        losses = {r: float(self.nats[BASELINE][r].sum() / self._sizes(r).sum()) for r in self.tokens}
        return pd.Series(losses, name=f"nats_per_{self.unit}")

    @cached_property
    def intervals(self) -> pd.DataFrame:
        """One row per cell: off, read, rise with its 95 % interval low and high (nats per ``unit``), p, passages,
        documents, p_adjusted.

        By the jackknife over documents, and over draws where a row has several (see :attr:`Estimate.interval`); NaN on
        fewer than six documents. p is of no rise at all; p_adjusted is Benjamini and Hochberg's over all cells.
        """
        frame = pd.DataFrame(
            {"off": off, "read": read, **rise.tested("rise")}
            for off in self.rows
            for read, rise in self._row(off).items()
        )
        return frame.assign(p_adjusted=benjamini_hochberg(frame["p"].to_numpy()))

    def selectivity(self, among: Among = "others") -> pd.DataFrame:
        """One row per set that has a language: its own rise against the mean rise of other languages, with intervals.

        ``difference`` is own minus others (nats per ``unit``), with its 95 % interval low and high, p, the passages and
        documents that it rests on, and p_adjusted (over the rows). ``ratio`` is own over others, and NaN unless the
        whole interval of the others' rise lies above zero. Damage alone proves nothing: any important neurons hurt
        when they are off.

        Args:
            among: which other languages: all, those usually written in the own language's script, or those that are
                not. A set that raises the loss of its own language alone, not of its script's, is a language's set.

        Raises:
            ValueError: for another ``among``.
        """
        check_arguments(EffectMatrix.selectivity, locals())
        if among not in self._selectivities:
            self._selectivities[among] = self._selectivity_table(among)
        return self._selectivities[among].copy()

    @cached_property
    def _selectivities(self) -> dict[Among, pd.DataFrame]:
        return {}

    def _selectivity_table(self, among: Among) -> pd.DataFrame:
        rows = [self._selectivity(off, own, among) for off, own in self.languages.items() if own in self.tokens]
        if not rows:
            return pd.DataFrame()
        frame = pd.DataFrame(rows).set_index("off")
        return frame.assign(p_adjusted=benjamini_hochberg(frame["p"].to_numpy()))

    def by_fold(self, among: Among = "others") -> pd.DataFrame:
        """:meth:`selectivity` of each fold alone, one row per set and fold: what another detection would have given."""
        check_arguments(EffectMatrix.by_fold, locals())
        frames = [self.fold(number).selectivity(among).assign(fold=number) for number in self._fold_numbers]
        return pd.concat(frames).set_index("fold", append=True).sort_index(level=0, sort_remaining=True)

    def finding(self, off: str, among: Among = "others") -> str:
        """What switching one row off does, as a sentence with its numbers; and what was seen of the documents, if any.

        Raises:
            ValueError: for a row that is not there, or another ``among``.
        """
        check_arguments(EffectMatrix.finding, locals())
        if off not in self.rows:
            raise ValueError(f"There is no row {off!r}; there are {listed(self.rows, off)}.")
        return " ".join(filter(None, [self._finding(off, among), overlap_words(self.documents_read, self.seen_by)]))

    def _finding(self, off: str, among: Among) -> str:
        done, shown, unit = "tuned" if self.tuned else "off", f"+.{self.decimals}f", UNITS[self.unit]
        if self.languages[off] not in self.tokens:
            rises = ", ".join(f"{read} {rise:{shown}}" for read, rise in self.to_frame().loc[off].items())
            return f"{off} {done}: the loss changes by {rises} {unit}."
        row = self.selectivity(among).loc[off]
        own, others = row["language"], self._others(row["language"], among)
        if 0 < abs(row["difference"]) < 0.5 * 10.0**-self.decimals:  # which would be shown as zero
            shown = f"+.{self.decimals + 3}f"
        sentence = f"{off} {done} ({row['neurons']:,.0f} neurons): the loss of {own} changes by {row['own']:{shown}}"
        if not others:
            return f"{sentence} {unit}."
        sentence += f", that of {named(others, 'others')} by {row['others']:{shown}} {unit} on average"
        sentence += f": a difference of {row['difference']:{shown}}"
        side = adjusted_verdict(row["difference"], row["p_adjusted"])
        if side == "not measurable":
            return f"{sentence}, {not_measurable(int(row['documents']), passages=int(row['passages']))}."
        read = counted(map(len, self.documents.values()), [row["documents"]])
        sentence += f" ({row['low']:{shown}} to {row['high']:{shown}}, {read})"
        times = "" if self.tuned or np.isnan(row["ratio"]) else f", {row['ratio']:.1f} times as much"
        return f"{sentence}{times}; {_VERDICTS[self.tuned][side].format(own)}."

    def passages(self) -> pd.DataFrame:
        """One row per passage, set and draw: off, draw, read, fold, document, nats, tokens, utf8_bytes."""
        sizes = {read: (self.tokens[read].tolist(), self.utf8_bytes[read].tolist()) for read in self.tokens}
        rows = [
            (off, draw, read, *passage)
            for off, by_language in self.nats.items()
            for read, draws in by_language.items()
            for draw, nats in enumerate(draws.tolist())
            for passage in zip(self.folds[read], self.documents[read], nats, *sizes[read], strict=True)
        ]
        columns = ["off", "draw", "read", "fold", "document", "nats", "tokens", "utf8_bytes"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def documents_read(self) -> pd.DataFrame:
        """One row per language read: passages, documents, and how many of these were seen when neurons were found.

        ``seen`` in this language, ``seen_in_another_language`` only (as a translation), ``unknown``, or ``unseen``.
        """
        return documents_read(self.seen, self.documents)

    @property
    def text_read(self) -> str:
        """How much text, in words."""
        documents = (len(set(names)) for names in self.documents.values())
        return f"{counted(map(len, self.documents.values()), documents)} per language"

    def difference(self, off: str, among: Among = "others") -> Estimate:
        """Own rise minus the others' mean rise, to average or compare over rows.

        Raises:
            ValueError: for a row that is not there or has no language of the corpus, another ``among``, or a language
                without such others.
        """
        check_arguments(EffectMatrix.difference, locals())
        if off not in self.rows:
            raise ValueError(f"There is no row {off!r}; there are {listed(self.rows, off)}.")
        own = str(self.languages.get(off))
        others = self._others(own, among) if own in self.tokens else []
        if not others:
            raise ValueError(f"The row {off!r} (language {own!r}) has no own language and others to compare.")
        rises = self._row(off)
        return rises[own] - Estimate.mean([rises[read] for read in others])

    def document_count(self, reads: Sequence[str] | None = None) -> int:
        """How many documents a statistic of these languages (all by default) rests on."""
        return min(len(set(self.documents[read])) for read in reads or self.documents)

    def _selectivity(self, off: str, own: str | None, among: Among) -> dict[str, Any]:
        own, made_of = str(own), self.settings["sets"][off]
        others, rises = self._others(own, among), self._row(off)
        rise, mean = rises[own], Estimate.mean([rises[read] for read in others]) if others else Estimate.nan()
        difference = rise - mean
        mean = replace(mean, documents=difference.documents)
        ratio = rise / mean if mean.verdict() == "above" else Estimate.nan()
        kind, sizes = made_of[0]["origin"].get("kind"), [one["neurons"] for one in made_of]
        row = {"off": off, "language": own, "kind": kind, "neurons": float(np.mean(sizes)), "own": float(rise.value)}
        cells = {**mean.cells("others", "others_"), **difference.tested("difference")}
        return {**row, **cells, "p_adjusted": np.nan, **ratio.cells("ratio", "ratio_")}

    def _others(self, own: str, among: Among) -> list[str]:
        others = [read for read in self.tokens if read != own]
        if among == "others":
            return others
        return [read for read in others if share_a_script(own, read) == (among == "same_script")]

    @property
    def _fold_numbers(self) -> list[int]:
        return sorted({fold for folds in self.folds.values() for fold in folds})

    def _sizes(self, read: str) -> Int[Tensor, " passage"]:
        sizes = {"token": self.tokens[read], "byte": self.utf8_bytes[read]}
        return sizes.get(self.unit, torch.ones_like(self.tokens[read]))

    @cached_property
    def _jackknife(self) -> Jackknife:
        return Jackknife.of(self.documents, paired=bool(self.settings["corpus"]["parallel"]))

    def _rises(self, off: str, read: str) -> Float[np.ndarray, "draw passage"]:
        return (self.nats[off][read] - self.nats[BASELINE][read]).numpy()

    @cached_property
    def _total_sizes(self) -> dict[str, Estimate]:
        return {read: self._jackknife.size(read, self._sizes(read).double().numpy()) for read in self.tokens}

    def _row(self, off: str) -> dict[str, Estimate]:
        """By language read: the mean rise over draws, which are the same ones whatever is read."""
        sums, sizes = self._jackknife.mean_total, self._total_sizes
        return {read: sums(read, self._rises(off, read), f"draws of {off}") / sizes[read] for read in sizes}

    def __repr__(self) -> str:
        title = f"{shown_part(self.settings)}rise in {UNITS[self.unit]}; {self.text_read}"
        return f"EffectMatrix({title})\n{self.to_frame().round(3).to_string()}"

    def _repr_html_(self) -> str:
        title = f"Rise of loss, {UNITS[self.unit]} (off × read), on {self.text_read}"
        return f"<p>{title}</p>{self.to_frame().round(3).to_html()}"


def _pick(values: Tensor | Sequence[Any], numbers: Sequence[int]) -> Tensor | list[Any]:
    return values[numbers] if isinstance(values, Tensor) else [values[i] for i in numbers]
