"""Answers under conditions as the paper's tables: English, non-English and Δ, with n, intervals and honest gaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..statistics import Estimate, Jackknife, adjusted_verdict, benjamini_hochberg, not_measurable, wilson
from ..text import check_arguments
from ..text.choices import listed, require_choice
from .task import Answer, Question, Task

ORIGINAL, ENGLISH = "original", "en"
LIKELIHOOD = "log-likelihood"
"""Of the reference answer, mean over its tokens, in nats: every task has this metric as well as its own."""
GROUPS = ("English", "non-English", "Δ")
ALL = "all"
STATUSES = NO_DATA, NO_NEURONS, NOT_MEASURABLE, MEASURED = "no data", "no neurons", "not measurable", "measured"
"""Of a cell; of two compared cells the first of these counts."""
MISMATCHED = 20
"""With the references of how many other questions an answer is scored to find what chance gives."""

COLUMNS = [
    *("metric", "scope", "arm", "part", "group", "status", "n", "documents", "score", "low", "high"),
    *("change", "change_low", "change_high", "relative", "p"),
]

Values = Mapping[str, Float[np.ndarray, " question"]]
"""By language: a value for each question, in the baseline's order."""


@dataclass(frozen=True)
class TaskResult:
    """Every answer, and the tables that follow from them.

    English is asked with each other language's neurons off, each other language with its own off. Changes are against
    the original model on the same questions; Δ is English's change minus the others' mean change, so a positive one
    says that the damage is specific to them.
    """

    task: Task
    rows: Sequence[Mapping[str, Any]]
    """One row per answer: arm, part, off, language, id, document, output, stopped, scores, nats, tokens."""
    questions: Mapping[str, Sequence[Question]]
    """What was asked, by language."""
    empty: frozenset[tuple[str, str, str]] = frozenset()
    """Arm, part and language of sets that hold no neurons: nothing was run."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's scores and the reference's log-likelihood; the leading one first.

        The log-likelihood leads where some language's original score is not clear of chance.
        """
        score = self.task.metrics
        return (*score, LIKELIHOOD) if all(self.measurable(score[0]).values()) else (LIKELIHOOD, *score)

    @cached_property
    def _frame(self) -> pd.DataFrame:
        columns = ("arm", "part", "off", "language", "id", "document", "output", "stopped")
        rows = [
            {**{key: row.get(key) for key in columns}, **row["scores"], LIKELIHOOD: -row["nats"] / row["tokens"]}
            for row in self.rows
        ]
        return pd.DataFrame(rows).set_index(["arm", "part", "language", "off", "id"]).sort_index()

    @cached_property
    def _baseline(self) -> dict[str, pd.DataFrame]:
        """By language: the original model's answers, by question."""
        if not self.rows:
            return {}
        frame = self._frame.xs(ORIGINAL, level="arm").droplevel(["part", "off"])
        return {str(language): rows.droplevel("language") for language, rows in frame.groupby(level="language")}

    @property
    def languages(self) -> list[str]:
        """Those that were asked, but English."""
        return [language for language in self._baseline if language != ENGLISH]

    @property
    def scopes(self) -> list[str]:
        """What tables are of: all languages, and each of several."""
        return [ALL, *(self.languages if len(self.languages) > 1 else [])]

    @property
    def documents(self) -> dict[str, int]:
        """By language: how many documents its questions are about."""
        return {language: self._distinct([language], "document") for language in self._baseline}

    @property
    def cut(self) -> pd.DataFrame:
        """One row per condition and language: how many answers were written, and how many the token limit cut off."""
        keys = ["arm", "part", "off", "language"]
        rows = [
            {**{key: row.get(key) for key in keys}, "answers": 1, "cut": int(row["stopped"] == "length")}
            for row in self.rows
            if row["stopped"] != "choice"
        ]
        frame = pd.DataFrame(rows, columns=[*keys, "answers", "cut"])
        return pd.DataFrame(frame.groupby(keys, sort=False, dropna=False, as_index=False).sum())

    @property
    def conditions(self) -> list[tuple[str, str]]:
        """Arms with their parts, in the order of the run; the original model is not among them."""
        run = dict.fromkeys((str(row["arm"]), str(row["part"])) for row in self.rows)
        empty = dict.fromkeys((arm, part) for arm, part, _ in sorted(self.empty))
        return [condition for condition in {**run, **empty} if condition[0] != ORIGINAL]

    @cached_property
    def chance(self) -> dict[str, dict[str, Float[np.ndarray, " question"]]]:
        """By metric and language: what each question's score would be by chance.

        For options, one over their number. For written answers, the mean score that the original model's answer gets
        with the references of other questions (about other documents).
        """
        by_id = {(q.language, q.id): q for questions in self.questions.values() for q in questions}
        by_language: dict[str, pd.DataFrame] = {}
        for language, rows in self._baseline.items():
            questions = [by_id[language, name] for name in rows.index]
            answers = [Answer(output, cut=end == "length") for output, end in rows[["output", "stopped"]].to_numpy()]
            scores = [self._by_chance(questions, place, answer) for place, answer in enumerate(answers)]
            by_language[language] = pd.DataFrame(scores, dtype=float)
        return {m: {lang: scores[m].to_numpy() for lang, scores in by_language.items()} for m in self.task.metrics}

    def _by_chance(self, questions: Sequence[Question], place: int, answer: Answer) -> Mapping[str, float]:
        question = questions[place]
        if question.choices:
            return dict.fromkeys(self.task.metrics, 1 / len(question.choices))
        others = [q for q in (*questions[place + 1 :], *questions[:place]) if q.document != question.document]
        scored = [self.task.score(other, answer) for other in others[:MISMATCHED]]
        return {m: float(np.mean([s[m] for s in scored])) if scored else np.nan for m in self.task.metrics}

    def measurable(self, metric: str) -> dict[str, bool]:
        """By language: whether chance is below the interval of the original model's score, as its cell shows it."""
        check_arguments(TaskResult.measurable, locals())
        if metric == LIKELIHOOD:
            return dict.fromkeys(self._baseline, True)
        require_choice("metric", metric, self.chance)
        return dict(self._above_chance[metric])

    @cached_property
    def _above_chance(self) -> dict[str, dict[str, bool]]:
        return {
            metric: {
                language: self._score(metric, {language: rows[metric].to_numpy()})[1] > float(chance[language].mean())
                for language, rows in self._baseline.items()
            }
            for metric, chance in self.chance.items()
        }

    @cached_property
    def _jackknife(self) -> Jackknife:
        documents = {lang: rows["document"].astype(str).tolist() for lang, rows in self._baseline.items()}
        return Jackknife.of(documents, paired=self.task.parallel)

    def _mean(self, values: Values) -> Estimate:
        """Mean over languages of the mean over questions."""
        return Estimate.mean([self._jackknife.mean(language, numbers) for language, numbers in values.items()])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: metric, scope (``all`` or a language), arm, part, group, n, score, change, intervals.

        ``relative`` is the change over the original score above chance. ``p`` tests the change, ``q`` is ``p`` adjusted
        over all cells of one metric and scope (Benjamini and Hochberg). ``status`` says why a cell is empty.
        """
        cells = [
            cell
            for metric in (*self.task.metrics, LIKELIHOOD)
            for scope in self.scopes
            for arm, part in [(ORIGINAL, ""), *self.conditions]
            for cell in self._cells(metric, scope, arm, part)
        ]
        frame = pd.DataFrame(cells, columns=COLUMNS)
        frame["q"] = frame.groupby(["metric", "scope"])["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
        return frame

    def _cells(self, metric: str, scope: str, arm: str, part: str) -> list[dict[str, Any]]:
        languages = self.languages if scope == ALL else [scope]
        offs = languages or list(dict.fromkeys(str(row["off"]) for row in self.rows if row["off"]))
        english = [ENGLISH] if ENGLISH in self._baseline else []
        groups = [self._values(metric, arm, part, names, offs) for names in (english, languages)]
        parts = dict(zip(GROUPS, ([groups[0]], [groups[1]], groups), strict=True))
        if arm == ORIGINAL:
            del parts[GROUPS[2]]
        where = {"metric": metric, "scope": scope, "arm": arm, "part": part}
        return [{**where, "group": group, **self._cell(metric, arm, parts[group])} for group in parts]

    def _values(
        self, metric: str, arm: str, part: str, names: Sequence[str], offs: Sequence[str]
    ) -> tuple[str, Values, Values]:
        """Status, values and baselines of the languages of a group."""
        if not names:
            return NO_DATA, {}, {}
        original = {name: self._baseline[name][metric].to_numpy() for name in names}
        if arm == ORIGINAL:
            return MEASURED, original, original
        values, measurable = {}, self.measurable(metric)
        for name in names:
            run = [off for off in (offs if name == ENGLISH else [name]) if (arm, part, off) not in self.empty]
            if not run:
                return NO_NEURONS, {}, original
            values[name] = np.mean([self._frame.loc[(arm, part, name, off), metric] for off in run], axis=0)
        return (MEASURED if all(measurable[name] for name in names) else NOT_MEASURABLE), values, original

    def _cell(self, metric: str, arm: str, parts: Sequence[tuple[str, Values, Values]]) -> dict[str, Any]:
        """Of one group, or of the first compared with the second."""
        status = min((status for status, _, _ in parts), key=STATUSES.index)
        names = [name for _, _, original in parts for name in original]
        counts = {"n": "id", "documents": "document"}
        counted = {name: 0 if status == NO_DATA else self._distinct(names, key) for name, key in counts.items()}
        cell: dict[str, Any] = {"status": status, **counted}
        if status in (NO_DATA, NO_NEURONS):
            return cell
        if len(parts) == 1:
            cell |= zip(("score", "low", "high"), self._score(metric, parts[0][1]), strict=True)
        if arm == ORIGINAL or status == NOT_MEASURABLE:
            return cell
        changes, relatives = [], []
        for _, values, original in parts:
            changes.append(self._mean({name: scores - original[name] for name, scores in values.items()}))
            chance = self.chance.get(metric)  # the log-likelihood has none
            above = self._mean({n: x - chance[n] for n, x in original.items()}).value if chance else np.nan
            relatives.append(changes[-1].value / float(above))
        change, relative = changes[0], relatives[0]
        if len(parts) == 2:
            change, relative = change - changes[1], relative - relatives[1]
        return {**cell, **change.cells("change", "change_"), "relative": relative, "p": change.p}

    def _distinct(self, languages: Sequence[str], key: str) -> int:
        """How many questions (``id``) or documents: a parallel one counts once, in however many languages."""
        frames = {language: self._baseline[language].reset_index() for language in languages}
        return len({("" if self.task.parallel else name, one) for name, frame in frames.items() for one in frame[key]})

    def _score(self, metric: str, values: Values) -> tuple[float, float, float]:
        """With its interval: Wilson's for shares of questions that are independent, else the jackknife's."""
        mean, n = self._mean(values), self._distinct(list(values), "id")
        if not mean.measurable:
            return float(mean.value), np.nan, np.nan
        score, shares = float(mean.value), np.isin(np.concatenate(list(values.values())), (0.0, 1.0)).all()
        if shares and n == self._distinct(list(values), "document"):
            return score, *wilson(round(score * n), n)
        return score, *((mean.low, mean.high) if metric == LIKELIHOOD else (max(0.0, mean.low), min(1.0, mean.high)))

    def table(self, metric: str | None = None, *, scope: str = ALL) -> pd.DataFrame:
        """The paper's table as text: arms by part and group; a star where q is at most 0.05.

        Args:
            metric: the leading one by default. Scores are in per cent, log-likelihoods in nats per token. English and
                non-English show the score, Δ the difference of changes.
            scope: ``all`` languages, or one.

        Raises:
            ValueError: for a metric or a scope that is not there.
        """
        check_arguments(TaskResult.table, locals())
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ValueError(f"There is no metric {metric!r}; there are {listed(self.metrics, metric)}.")
        require_choice("scope", scope, self.scopes)
        cells = self.cells.query("metric == @metric and scope == @scope")
        parts = [part for part in cells["part"].unique() if part]
        columns = pd.MultiIndex.from_product([GROUPS, parts or [""]], names=["read", "off"])
        table = pd.DataFrame("–", index=pd.Index(cells["arm"].unique(), name="neurons"), columns=columns)
        for cell in cells.to_dict("records"):
            for part in parts if cell["arm"] == ORIGINAL else [cell["part"]]:
                table.loc[cell["arm"], (cell["group"], part)] = _cell_text(cell)
        return table

    def to_frame(self) -> pd.DataFrame:
        """All cells, tidy."""
        return self.cells

    def __repr__(self) -> str:
        return f"TaskResult({self.task.title}: {len(self.rows)} answers; {self.metrics[0]})\n{self.table()}"


def _cell_text(cell: Mapping[Any, Any]) -> str:
    if cell["status"] != MEASURED:
        return f"{cell['status']}" + (f" ({_number(cell)})" if cell["n"] else "")
    keys = ("change", "change_low", "change_high") if cell["group"] == GROUPS[2] else ("score", "low", "high")
    scale, decimals = (1, 2) if cell["metric"] == LIKELIHOOD else (100, 1)
    value, low, high = ("?" if np.isnan(cell[key]) else f"{scale * cell[key]:.{decimals}f}" for key in keys)
    if np.isnan(cell[keys[1]]):
        return f"{value} {not_measurable(cell['documents'])}, n {cell['n']}"
    star = "*" if adjusted_verdict(cell[keys[0]], cell["q"]) in ("above", "below") else ""
    return f"{value}{star} [{low}, {high}] {_number(cell)}"


def _number(cell: Mapping[Any, Any]) -> str:
    """Questions and, after a stroke, the documents that they are about."""
    return f"n {cell['n']}/{cell['documents']}"
