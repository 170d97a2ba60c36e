"""What tuning a language's neurons does to every language: losses of the original model and after each run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, NotRequired, TypedDict, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..effects import BASELINE, TUNED, EffectMatrix
from ..model import ModelRecord
from ..statistics import adjusted_verdict, benjamini_hochberg, counted, interval_words
from ..store import Result, require_record, storable
from ..text import check_arguments
from ..text.choices import listed

HELD_OUT = "held-out"
"""The domain of the tuning text: its evaluation documents."""
ORIGINAL = "original"
SEEN_BY = "what came before (detection, the choice of rates, tuning)"
"""What may have read the documents that results are measured on."""
_UNITS = ("passages", "documents")
Rate = Literal["own", "paper"]
RATES: tuple[Rate, ...] = get_args(Rate)
_VERDICTS = {
    "below": "are better than",
    "above": "are worse than",
    "at": "are not told apart from",
    "not measurable": "beside",
}
_COMPARED = {"random": "specific", "matched": "specific", "all": "specific", "other-neurons": "own-as-few"}
"""Which of the own neurons' arms, of the same size but for all parameters, each arm is compared with."""
_OWN = {"specific": "Its own neurons", "own-as-few": "As few of its own neurons"}
REFERENCE = "a reference, not a control of this size"
"""What the arm that tunes all parameters is."""


@storable
@dataclass(frozen=True)
class Run:
    """What is tuned, on how much, at which rate and with which seed."""

    language: str
    arm: str
    documents: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.language}_{self.arm}_{self.documents}_{self.rate:g}_seed{self.seed}"


class _Measured(TypedDict):
    """Of a run."""

    neurons: int | None
    trained: int
    changed: float | None
    steps: int
    tokens: int
    tuning_seconds: float
    measuring_seconds: float


@dataclass(frozen=True)
class RunResult(Result, kind="enhancement_run"):
    """The loss of every passage after a run."""

    run: Run | None
    """None for the original model."""
    nats: Mapping[str, Mapping[str, Float[Tensor, " _"]]]
    """By domain and language: negative log-likelihood of each passage."""
    metadata: Mapping[str, Any]
    """Neurons, trained and changed weights, steps, the loss of each step's texts, seconds."""

    def _require_whole(self) -> None:
        if self.run is not None and self.nats:  # none where it diverged
            require_record(self.metadata, _Measured, f"the run {self.run.name}")


@storable
@dataclass(frozen=True)
class Passages:
    """The passages of one domain, by language."""

    tokens: Mapping[str, Int[Tensor, " _"]]
    """Those of each passage that count."""
    documents: Mapping[str, Sequence[str]]
    """The document of each passage."""
    corpus: Mapping[str, Any]
    """What the corpus says of itself."""

    def _require_whole(self) -> None:
        passages = {language: len(documents) for language, documents in self.documents.items()}
        if {language: len(tokens) for language, tokens in self.tokens.items()} != passages:
            raise ValueError(f"tokens: not one for each of the passages, {passages}.")


class _Design(TypedDict):
    languages: Sequence[str]
    documents: Sequence[int]
    arms: Sequence[str]
    seeds: Sequence[int]
    rates: Sequence[float]
    paper_rate: float | None


class _Trial(TypedDict):
    language: str
    arm: str
    rate: float


class _Settings(ModelRecord):
    """What results are computed from and say, of all that the settings hold."""

    design: _Design
    own_rates: Mapping[str, Mapping[str, float | None]]
    trials: Sequence[_Trial]
    corpora: NotRequired[Mapping[str, Mapping[str, Any]]]
    seen: NotRequired[Mapping[str, Mapping[str, Sequence[str]]]]


@dataclass(frozen=True)
class Enhancement(Result, kind="enhancement"):
    """Losses of every passage, of the original model and after each run."""

    original: RunResult
    results: Sequence[RunResult]
    read: Mapping[str, Passages]
    """By domain."""
    settings: Mapping[str, Any]
    """The design, the corpora, every arm's own rate (by language and arm) and the trials that chose it."""

    def _require_whole(self) -> None:
        require_record(self.settings, _Settings, "the settings")
        passages = {domain: {read: len(each) for read, each in of.tokens.items()} for domain, of in self.read.items()}
        for result in (self.original, *self.results):
            nats = {domain: {read: len(each) for read, each in by.items()} for domain, by in result.nats.items()}
            if passages != {domain: nats.get(domain) for domain in passages}:
                name = result.run.name if result.run else ORIGINAL
                raise ValueError(f"The losses of {name} are not one for each of the passages, {passages}.")
        read, own = passages.get(HELD_OUT, {}), self.settings["own_rates"]
        for result in self.results:
            run = result.run
            if run is None or run.language not in read or run.arm not in self.design["arms"]:
                raise ValueError(f"There is no such run in the design: {run}.")
        runs = [vars(result.run) for result in self.results]
        places = [(each["language"], each["arm"]) for each in (*runs, *self.settings["trials"])]
        if lacking := [place for place in places if place[1] not in own.get(place[0], {})]:
            raise ValueError(f"The rate of {' '.join(lacking[0])} is missing.")
        if lacking := [name for name in self.design["languages"] if name not in own or name not in read]:
            raise ValueError(f"Rates or losses of {lacking[0]!r} are missing.")

    @property
    def design(self) -> Mapping[str, Any]:
        """What was compared."""
        return self.settings["design"]

    def rates(self) -> pd.DataFrame:
        """One row per trial: language, arm, documents, rate, seed, development_loss (nats per token), chosen.

        And what it was measured on: development_passages, development_documents (NaN where that was not recorded).
        """
        trials, own = self.settings["trials"], self.settings["own_rates"]
        corpus = self.settings.get("corpora", {}).get("development", {})
        read = [
            {f"development_{what}": corpus.get(what, {}).get(t["language"], math.nan) for what in _UNITS}
            for t in trials
        ]
        table = pd.DataFrame(trials).assign(chosen=[own[t["language"]][t["arm"]] == t["rate"] for t in trials])
        return table.join(pd.DataFrame(read, index=table.index))

    def runs(self) -> pd.DataFrame:
        """One row per run: language, arm, documents, rate, seed, neurons, trained and changed weights, steps, losses.

        Losses are those of the tuned language on the held-out documents, before and after, in nats per token, on so
        many evaluation_passages of evaluation_documents.
        """
        columns = ("neurons", "trained", "changed", "steps", "tokens", "tuning_seconds", "measuring_seconds")
        rows = []
        for result in self.results:
            run = result.run
            assert run is not None
            losses = {"loss_before": self._loss(self.original, run), "loss_after": self._loss(result, run)}
            read = self.read[HELD_OUT].documents[run.language]
            counts = {"evaluation_passages": len(read), "evaluation_documents": len(set(read))}
            rows.append({**vars(run), **{name: result.metadata[name] for name in columns}, **losses, **counts})
        return pd.DataFrame(rows)

    def _loss(self, result: RunResult, run: Run) -> float:
        return float(result.nats[HELD_OUT][run.language].sum() / self.read[HELD_OUT].tokens[run.language].sum())

    def matrix(
        self, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, against: str = ORIGINAL
    ) -> EffectMatrix:
        """Change of every language's loss (columns) after tuning each arm (rows, ``sw specific``), its draws are seeds.

        At each arm's own learning rate or the paper's, on this many passages (the most if None), compared with the
        original model, or ``against`` the same seed of an arm, which then has no row.

        Raises:
            ValueError: for a domain, rate, number of documents or arm that was not measured.
        """
        check_arguments(Enhancement.matrix, locals())
        if domain not in self.read:
            raise ValueError(f"domain={domain!r} was not read; there are {listed(self.read, domain)}.")
        number = max(self.design["documents"]) if documents is None else documents
        if (rate, number) not in self._by_arm:
            raise ValueError(f"Nothing was tuned at the {rate!r} rate on {number} passages.")
        passages, base, by_arm = self.read[domain], self.original.nats[domain], self._by_arm[rate, number]
        nats, sets = {BASELINE: {read: base[read][None] for read in passages.tokens}}, {}
        for (language, arm), draws in by_arm.items():
            if arm == against:
                continue
            row = f"{language} {arm}"
            nats[row] = {read: _stacked(draws, domain, read) for read in passages.tokens}
            if against != ORIGINAL:
                if (language, against) not in by_arm:
                    arms = listed([other for of, other in by_arm if of == language], against)
                    raise ValueError(f"There is no arm {against!r} of {language!r} to compare with; there are {arms}.")
                other = by_arm[language, against]
                nats[row] = {r: values - _stacked(other, domain, r) + base[r] for r, values in nats[row].items()}
            sets[row] = [
                {"neurons": result.metadata["neurons"] or 0, "origin": {"kind": arm, **vars(result.run)}}
                for result in draws
            ]
        settings = {"model": self.settings["model"], "mode": TUNED, "corpus": passages.corpus}
        return EffectMatrix(
            nats=nats,
            tokens=passages.tokens,
            utf8_bytes={read: torch.zeros_like(count) for read, count in passages.tokens.items()},
            documents=passages.documents,
            folds={read: [0] * len(names) for read, names in passages.documents.items()},
            seen=self.settings.get("seen", {}).get(domain, {}),
            languages={f"{language} {arm}": language for language, arm in by_arm if arm != against},
            settings={**settings, "sets": sets, "against": against, "seen_by": SEEN_BY},
        )

    @cached_property
    def _by_arm(self) -> dict[tuple[Rate, int], dict[tuple[str, str], list[RunResult]]]:
        """By rate and number of passages that were run: results of all seeds, by language and arm."""
        runs: dict[tuple[Rate, int], dict[tuple[str, str], list[RunResult]]] = {}
        places: Iterator[tuple[Rate, int]] = product(RATES, self.design["documents"])
        for (rate, number), result in product(places, self.results):
            run = result.run
            assert run is not None
            at = self.design["paper_rate"] if rate == "paper" else self.settings["own_rates"][run.language][run.arm]
            if (run.documents, run.rate) == (number, at):
                runs.setdefault((rate, number), {}).setdefault((run.language, run.arm), []).append(result)
        return runs

    @cached_property
    def changes(self) -> pd.DataFrame:
        """One row per domain, rate, number of passages, tuned language, arm and language read.

        Columns after these: change of loss against the original model in nats per token, with its 95 % interval low and
        high, p, evaluation_passages, evaluation_documents, and p_adjusted over the arms and languages of that table.
        """
        frames = []
        for domain, ((rate, documents), by_arm) in product(self.read, self._by_arm.items()):
            cells = _changes(self.matrix(domain, rate=rate, documents=documents))
            arms = {" ".join(arm): arm for arm in by_arm}
            places = [(domain, rate, documents, *arms[row]) for row in cells.pop("off")]
            place = pd.DataFrame(places, columns=["domain", "rate", "documents", "language", "arm"])
            frames.append(place.join(cells))
        return pd.concat(frames, ignore_index=True)

    def to_frame(self) -> pd.DataFrame:
        """:attr:`changes`."""
        return self.changes

    def table(self, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None) -> pd.DataFrame:
        """The compact table: one row per language and arm, change of its own loss, English's, all others' mean.

        ``difference`` is own minus others, with its interval (low, high): below zero where tuning favours the language.
        ``role`` says whether an arm is the language's own neurons, a control for them, or a reference (all parameters,
        for which no control of the same size exists); passages and documents are those of the evaluation.
        """
        check_arguments(Enhancement.table, locals())
        matrix = self.matrix(domain, rate=rate, documents=documents)
        table, frame = matrix.selectivity(), matrix.to_frame()
        if not len(table):
            return table
        table["neurons"] = table["neurons"].where(table["neurons"] > 0)  # NaN where all parameters are tuned
        rates = [matrix.settings["sets"][row][0]["origin"]["rate"] for row in table.index]
        table = table[["neurons", "own", "others", "difference", "low", "high", "passages", "documents"]]
        arms = [str(matrix.settings["sets"][row][0]["origin"]["kind"]) for row in table.index]
        roles = ["reference" if arm == "all" else "own" if arm in _OWN else "control" for arm in arms]
        table.insert(0, "role", roles)
        english = frame["en"].reindex(table.index) if "en" in frame else float("nan")
        return table.assign(english=english, learning_rate=rates).rename_axis("tuned")

    def findings(self) -> list[str]:
        """What the held-out numbers say of each language, for most passages, in sentences."""
        most, places = max(self.design["documents"]), product(self.design["languages"], self._by_arm)
        return [self._finding(language, rate, most) for language, (rate, number) in places if number == most]

    def _finding(self, language: str, rate: Rate, passages: int) -> str:
        place = {"domain": HELD_OUT, "rate": rate, "documents": passages, "language": language, "read": language}
        here = (self.changes[list(place)] == list(place.values())).all(axis=1)
        cells = {str(cell["arm"]): cell for cell in self.changes.loc[here].to_dict("records")}
        arms, listed = list(cells), "; ".join(f"{arm} {_change(cell)}" for arm, cell in cells.items())
        documents = self.read[HELD_OUT].documents[language]
        sentences = [
            f"{language}, tuned on {passages} passages, {rate} rate: change of its loss on "
            f"{counted([len(documents)], [len(set(documents))])} held out, in nats per token, with 95 % intervals: "
            f"{listed}."
        ]
        others = [arm for arm, own in _COMPARED.items() if arm in arms and own in arms]
        for cell in self._beyond(language, rate, others).to_dict("records"):
            side, arm = _VERDICTS[adjusted_verdict(cell["change"], cell["p_adjusted"])], cell["arm"]
            named = f"all parameters, {REFERENCE}" if arm == "all" else arm
            sentences.append(f"{_OWN[_COMPARED[arm]]} {side} {named} ({_change(cell, brackets=False)}).")
        if "other-neurons" in arms and "own-as-few" not in arms:
            sentences.append("There is no own-as-few to compare other-neurons with, which may be fewer than its own.")
        tried, own = self.design["rates"], self.settings["own_rates"][language]
        edges = [f"{arm} ({own[arm]:g})" for arm in arms if rate == "own" and own[arm] in (min(tried), max(tried))]
        if edges and len(tried) > 1:
            best = f"The lowest or highest rate tried was best for {', '.join(edges)}"
            sentences.append(f"{best}: one beyond it may be better still.")
        return " ".join(sentences)

    def _beyond(self, language: str, rate: Rate, arms: Sequence[str]) -> pd.DataFrame:
        """Change of a language's own loss by its own neurons, against other arms; p is adjusted over these."""
        if not arms:
            return pd.DataFrame()
        tables = {arm: _changes(self.matrix(rate=rate, against=arm)).set_index(["off", "read"]) for arm in arms}
        rows = [{"arm": arm, **cells.loc[f"{language} {_COMPARED[arm]}", language]} for arm, cells in tables.items()]
        cells = pd.DataFrame(rows)
        return cells.assign(p_adjusted=benjamini_hochberg(cells["p"].to_numpy()))

    def __repr__(self) -> str:
        return f"Enhancement({len(self.results)} runs)\n" + "\n".join(self.findings())


def _changes(matrix: EffectMatrix) -> pd.DataFrame:
    return matrix.intervals.rename(columns={"rise": "change", **{name: f"evaluation_{name}" for name in _UNITS}})


def _change(row: Mapping[Any, Any], brackets: bool = True) -> str:
    interval = interval_words(row["low"], row["high"], "+.4f", int(row["evaluation_documents"]))
    return f"{row['change']:+.4f}" + (f" {interval}" if brackets else f", {interval[1:-1]}")


def _stacked(results: Sequence[RunResult], domain: str, language: str) -> Float[Tensor, "seed passage"]:
    return torch.stack([result.nats[domain][language] for result in results])
