"""What the experiment found: tuned × read matrices of held-out loss, and what they say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ...effects import BASELINE, TUNED, EffectMatrix
from ...model import HookedModel
from ...store import Result, storable
from ...text import Corpus
from ...tuning import predicted
from .runs import Outcome, Run

HELD_OUT = "held-out"
"""The domain of the tuning text: its evaluation documents."""
DEVELOPMENT = "development"
ORIGINAL = "original"
Rate = Literal["own", "paper"]


@storable
@dataclass(frozen=True)
class Read:
    """The passages of one domain, by language."""

    tokens: Mapping[str, Int[Tensor, " _"]]
    """Those of each passage that count."""
    documents: Mapping[str, Sequence[str]]
    """The document of each passage."""
    corpus: Mapping[str, Any]
    """What the corpus says of itself."""

    @classmethod
    def of(cls, model: HookedModel, corpus: Corpus, encoded: Mapping[str, Sequence[Tensor]]) -> "Read":
        """Of a corpus and its token ids."""
        tokens = {read: torch.tensor([predicted(model, row) for row in rows]) for read, rows in encoded.items()}
        return cls(tokens, corpus.documents, corpus.describe())


@dataclass(frozen=True)
class Enhancement(Result, kind="enhancement"):
    """Losses of every passage, of the original model and after each run."""

    original: Outcome
    outcomes: Sequence[Outcome]
    read: Mapping[str, Read]
    """By domain."""
    settings: Mapping[str, Any]
    """The design, the corpora, every arm's own rate (by language and arm) and the trials that chose it."""

    @property
    def design(self) -> Mapping[str, Any]:
        """What was compared."""
        return self.settings["design"]

    def rates(self) -> pd.DataFrame:
        """One row a trial: language, arm, documents, rate, seed, development_loss (nats a token), chosen."""
        frame = pd.DataFrame(self.settings["trials"])
        own = self.settings["own_rates"]
        chosen = [own[row["language"]][row["arm"]] == row["rate"] for row in self.settings["trials"]]
        return frame.assign(chosen=chosen)

    def runs(self) -> pd.DataFrame:
        """One row a run: language, arm, documents, rate, seed, neurons, trained and changed weights, steps, losses."""
        rows = []
        for outcome in self.outcomes:
            facts, run = outcome.facts, outcome.run
            assert run is not None
            shown = ("neurons", "trained", "changed", "steps", "tokens", "tuning_seconds", "measuring_seconds")
            losses = {"first_loss": facts["losses"][0], "last_loss": facts["losses"][-1]}
            rows.append({**vars(run), **{name: facts[name] for name in shown}, **losses})
        return pd.DataFrame(rows)

    def matrix(
        self, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None, against: str = ORIGINAL
    ) -> EffectMatrix:
        """Change of every language's loss (columns) after tuning each arm (rows), below zero where tuning helped.

        Its draws are seeds: intervals are by bootstrap over documents and seeds; ``selectivity()`` compares the change
        of the tuned language with the mean change of the others. Rows are named ``sw specific``.

        Args:
            domain: ``"held-out"`` or the name of another.
            rate: each arm's own learning rate, or the paper's.
            documents: how many passages were tuned on; the most if None.
            against: ``"original"``, or an arm: changes are then those beyond the same seed of that arm, and it has no
                row of its own.

        Raises:
            ValueError: for a domain, rate, number of documents or arm that was not measured.
        """
        if domain not in self.read:
            raise ValueError(f"domain={domain!r} was not read; there are {', '.join(self.read)}.")
        number = max(self.design["documents"]) if documents is None else documents
        chosen = self._chosen(rate, number)
        if not chosen:
            raise ValueError(f"Nothing was tuned at the {rate!r} rate on {documents} passages.")
        read = self.read[domain]
        base = {language: self.original.nats[domain][language] for language in read.tokens}
        nats = {BASELINE: {language: values[None] for language, values in base.items()}}
        languages, sets = {}, {}
        for (language, arm), outcomes in chosen.items():
            if arm == against:
                continue
            other = None if against == ORIGINAL else chosen.get((language, against))
            if other is None and against != ORIGINAL:
                raise ValueError(f"There is no arm {against!r} of {language!r} to compare with.")
            row = f"{language} {arm}"
            nats[row] = {name: _draws(outcomes, other, domain, name, values) for name, values in base.items()}
            languages[row] = language
            sets[row] = [{"neurons": o.facts["neurons"] or 0, "origin": {"kind": arm, **vars(o.run)}} for o in outcomes]
        return EffectMatrix(
            nats=nats,
            tokens=read.tokens,
            utf8_bytes={name: torch.zeros_like(count) for name, count in read.tokens.items()},
            documents=read.documents,
            folds={name: [0] * len(names) for name, names in read.documents.items()},
            languages=languages,
            settings={
                "model": self.settings["model"],
                "mode": TUNED,
                "corpus": read.corpus,
                "sets": sets,
                "against": against,
            },
        )

    def _chosen(self, rate: str, documents: int) -> dict[tuple[str, str], list[Outcome]]:
        """Outcomes of all seeds, by language and arm."""
        if rate not in get_args(Rate):
            raise ValueError(f"rate={rate!r}: it must be one of {', '.join(get_args(Rate))}.")
        found: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            run = outcome.run
            assert run is not None
            if run.documents == documents and run.rate == self._rate(run, rate):
                found.setdefault((run.language, run.arm), []).append(outcome)
        return found

    def _rate(self, run: Run, rate: str) -> float | None:
        return self.design["paper_rate"] if rate == "paper" else self.settings["own_rates"][run.language][run.arm]

    @cached_property
    def changes(self) -> pd.DataFrame:
        """One row a domain, rate, number of passages, tuned language, arm and language read.

        Change of loss against the original model with its 95 % interval, low and high, in nats a token.
        """
        frames = []
        for domain in self.read:
            for rate in get_args(Rate):
                for documents in self.design["documents"]:
                    if not self._chosen(rate, documents):
                        continue
                    matrix = self.matrix(domain, rate=rate, documents=documents)
                    cells = matrix.intervals.rename(columns={"rise": "change"})
                    named = cells["off"].str.split(" ", n=1, expand=True).set_axis(["language", "arm"], axis=1)
                    place = pd.DataFrame({"domain": domain, "rate": rate, "documents": documents}, index=cells.index)
                    frames.append(pd.concat([place, named, cells.drop(columns="off")], axis=1))
        return pd.concat(frames, ignore_index=True)

    def to_frame(self) -> pd.DataFrame:
        """:attr:`changes`."""
        return self.changes

    def table(self, domain: str = HELD_OUT, *, rate: Rate = "own", documents: int | None = None) -> pd.DataFrame:
        """The compact table: a row a language and arm, change of its own loss, of English's, of all others' mean.

        ``difference`` is own minus others, with its interval (low, high): below zero where tuning favours the language.
        """
        matrix = self.matrix(domain, rate=rate, documents=documents)
        found, frame = matrix.selectivity(), matrix.to_frame()
        if not len(found):
            return found
        found["neurons"] = found["neurons"].where(found["neurons"] > 0)  # missing where all parameters are tuned
        english = frame["en"].reindex(found.index) if "en" in frame else float("nan")
        kept = ["own", "others", "difference", "low", "high"]
        rates = [self.settings["own_rates"] if rate == "own" else None] * len(found)
        own = [r[row.split(" ", 1)[0]][row.split(" ", 1)[1]] if r else self.design["paper_rate"]
               for r, row in zip(rates, found.index, strict=True)]  # fmt: skip
        return found[["neurons", *kept]].assign(english=english, learning_rate=own).rename_axis("tuned")

    def findings(self) -> list[str]:
        """What the held-out numbers say of each language, for most passages, in sentences."""
        return [self._finding(language, rate) for language in self.design["languages"] for rate in self._rates_run()]

    def _rates_run(self) -> list[Rate]:
        most = max(self.design["documents"])
        return [rate for rate in get_args(Rate) if self._chosen(rate, most)]

    def _finding(self, language: str, rate: Rate) -> str:
        matrix = self.matrix(rate=rate)
        cells = matrix.intervals.set_index(["off", "read"])
        of = {row.split(" ", 1)[1]: cells.loc[(row, language)] for row in matrix.rows if row.startswith(f"{language} ")}
        listed = "; ".join(f"{arm} {c['rise']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f})" for arm, c in of.items())
        sentence = (
            f"{language}, {max(self.design['documents'])} passages, {rate} rate: change of its held-out loss in nats a "
            f"token, with 95 % intervals: {listed}."
        )
        compared = [self._against(language, rate, arm) for arm in ("random", "matched", "all") if arm in of]
        return " ".join([sentence, *(compared if "specific" in of else []), *self._edges(language, rate, of)])

    def _edges(self, language: str, rate: Rate, arms: Iterable[str]) -> list[str]:
        """Whose rate might have been better beyond those that were tried."""
        tried, own = self.design["rates"], self.settings["own_rates"][language]
        edges = (
            [f"{arm} ({own[arm]:g})" for arm in arms if own[arm] in (min(tried), max(tried))] if len(tried) > 1 else []
        )
        if rate != "own" or not edges:
            return []
        return [f"The lowest or highest rate tried was best for {', '.join(edges)}: one beyond it may be better still."]

    def _against(self, language: str, rate: Rate, arm: str) -> str:
        cells = self.matrix(rate=rate, against=arm).intervals.set_index(["off", "read"])
        cell = cells.loc[(f"{language} specific", language)]
        verdict = "better than" if cell["high"] < 0 else "worse than" if cell["low"] > 0 else "not told apart from"
        return f"Its own neurons are {verdict} {arm} ({cell['rise']:+.4f}, {cell['low']:+.4f} to {cell['high']:+.4f})."

    def __repr__(self) -> str:
        return f"Enhancement({len(self.outcomes)} runs)\n" + "\n".join(self.findings())


def _draws(
    outcomes: Sequence[Outcome], other: Sequence[Outcome] | None, domain: str, language: str, base: Tensor
) -> Tensor:
    """``[seed, passage]``: losses, or what they are above another arm's with the same seed, on top of ``base``."""
    nats = torch.stack([outcome.nats[domain][language] for outcome in outcomes])
    if other is None:
        return nats
    return nats - torch.stack([outcome.nats[domain][language] for outcome in other]) + base
