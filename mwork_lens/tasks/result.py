"""Answers under conditions as the paper's tables: English, non-English and Δ, with n, intervals and honest gaps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..statistics import Estimate, Resampling, benjamini_hochberg, wilson
from .task import Answer, Question, Task

ORIGINAL, ENGLISH = "original", "en"
LIKELIHOOD = "log-likelihood"
"""Of the reference answer, mean over its tokens, in nats: every task has this metric as well as its own."""
GROUPS = ("English", "non-English", "Δ")
ALL = "all"
NO_DATA, NOT_MEASURABLE, NO_NEURONS, MEASURED = "no data", "not measurable", "no neurons", "measured"
MISMATCHED = 20
"""With the references of how many other questions an answer is scored to find what chance gives."""

COLUMNS = [
    *("metric", "scope", "arm", "part", "group", "status", "n", "score", "low", "high"),
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
    """One an answer: arm, part, off, language, id, document, output, scores, nats, tokens."""
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
        frame = pd.DataFrame(
            [
                {**{key: row[key] for key in ("arm", "part", "off", "language", "id", "document")}, **row["scores"]}
                | {LIKELIHOOD: -row["nats"] / row["tokens"]}
                for row in self.rows
            ]
        )
        return frame.set_index(["arm", "part", "language", "off", "id"]).sort_index()

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
    def conditions(self) -> list[tuple[str, str]]:
        """Arms with their parts, in the order of the run; the original model is not among them."""
        run = dict.fromkeys((str(row["arm"]), str(row["part"])) for row in self.rows)
        empty = dict.fromkeys((arm, part) for arm, part, _ in sorted(self.empty))
        return [condition for condition in {**run, **empty} if condition[0] != ORIGINAL]

    # --- what chance gives ---

    @cached_property
    def chance(self) -> dict[str, dict[str, Float[np.ndarray, " question"]]]:
        """By metric and language: what each question's score would be by chance.

        For options, one over their number. For written answers, the mean score that the original model's answer gets
        with the references of other questions (about other documents).
        """
        by_id = {(q.language, q.id): q for questions in self.questions.values() for q in questions}
        chance: dict[str, dict[str, np.ndarray]] = {metric: {} for metric in self.task.metrics}
        for language, rows in self._answers().items():
            questions = [by_id[language, row["id"]] for row in rows]
            by_question = [self._by_chance(questions, place, row) for place, row in enumerate(rows)]
            for metric in self.task.metrics:
                chance[metric][language] = np.array([scores[metric] for scores in by_question], dtype=float)
        return chance

    def _answers(self) -> dict[str, list[Mapping[str, Any]]]:
        answers = {(r["language"], r["id"]): r for r in self.rows if r["arm"] == ORIGINAL}
        return {lang: [answers[lang, name] for name in rows.index] for lang, rows in self._baseline.items()}

    def _by_chance(self, questions: Sequence[Question], place: int, row: Mapping[str, Any]) -> Mapping[str, float]:
        own = questions[place]
        guess = self.task.chance(own)
        if guess is not None:
            return dict.fromkeys(self.task.metrics, guess)
        others = [q for q in (*questions[place + 1 :], *questions[:place]) if q.document != own.document][:MISMATCHED]
        answer = Answer(row["output"], cut=row["stopped"] == "length")
        scored = [self.task.score(other, answer) for other in others]
        return {m: float(np.mean([s[m] for s in scored])) if scored else np.nan for m in self.task.metrics}

    def measurable(self, metric: str) -> dict[str, bool]:
        """By language: whether chance is below the interval of the original model's score, as its cell shows it."""
        if metric == LIKELIHOOD:
            return dict.fromkeys(self._baseline, True)
        return {
            language: self._score_interval(metric, {language: rows[metric].to_numpy()})[0]
            > float(self.chance[metric][language].mean())
            for language, rows in self._baseline.items()
        }

    # --- intervals ---

    @cached_property
    def _resampling(self) -> Resampling:
        documents = {lang: rows["document"].astype(str).tolist() for lang, rows in self._baseline.items()}
        return Resampling.of(documents, paired=self.task.parallel)

    def _mean(self, values: Values) -> Estimate:
        """Mean over languages of the mean over questions."""
        return Estimate.mean([self._resampling.mean(language, own) for language, own in values.items()])

    # --- cells ---

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a cell: metric, scope (``all`` or a language), arm, part, group, n, score and change with intervals.

        ``relative`` is the change over the original score above chance. ``p`` tests the change, ``q`` is ``p`` adjusted
        over all cells of one metric and scope (Benjamini and Hochberg). ``status`` says why a cell is empty.
        """
        scopes = [ALL, *(self.languages if len(self.languages) > 1 else [])]
        cells = [
            cell
            for metric in (*self.task.metrics, LIKELIHOOD)
            for scope in scopes
            for arm, part in [(ORIGINAL, ""), *self.conditions]
            for cell in self._cells(metric, scope, arm, part)
        ]
        frame = pd.DataFrame(cells, columns=COLUMNS)
        frame["q"] = frame.groupby(["metric", "scope"])["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
        return frame

    def _cells(self, metric: str, scope: str, arm: str, part: str) -> list[dict[str, Any]]:
        languages = self.languages if scope == ALL else [scope]
        offs = languages or self._offs()
        english = [ENGLISH] if ENGLISH in self._baseline else []
        both = {GROUPS[0]: english, GROUPS[1]: languages}
        found = {group: self._values(metric, arm, part, names, offs) for group, names in both.items()}
        cells = [
            {
                "metric": metric,
                "scope": scope,
                "arm": arm,
                "part": part,
                "group": group,
                **self._cell(metric, arm, group, found),
            }
            for group in GROUPS
        ]
        return [cell for cell in cells if not (arm == ORIGINAL and cell["group"] == GROUPS[2])]

    def _offs(self) -> list[str]:
        return list(dict.fromkeys(str(row["off"]) for row in self.rows if row["off"]))

    def _values(
        self, metric: str, arm: str, part: str, names: Sequence[str], offs: Sequence[str]
    ) -> tuple[str, Values, Values]:
        """Status, values and baselines of the languages of a group."""
        if not names:
            return NO_DATA, {}, {}
        original = {name: self._baseline[name][metric].to_numpy() for name in names}
        if arm == ORIGINAL:
            return MEASURED, original, original
        whose = {name: offs if name == ENGLISH else [name] for name in names}
        run = {name: [off for off in them if (arm, part, off) not in self.empty] for name, them in whose.items()}
        if not all(run.values()):
            return NO_NEURONS, {}, original
        values = {
            name: np.mean([self._frame.loc[(arm, part, name, off), metric].to_numpy() for off in them], axis=0)
            for name, them in run.items()
        }
        known = self.measurable(metric)
        return (MEASURED if all(known[name] for name in names) else NOT_MEASURABLE), values, original

    def _cell(self, metric: str, arm: str, group: str, found: Mapping[str, Any]) -> dict[str, Any]:
        parts = [found[group]] if group != GROUPS[2] else [found[GROUPS[0]], found[GROUPS[1]]]
        names = [name for _, _, original in parts for name in original]
        statuses = [status for status, _, _ in parts]
        status = next((s for s in (NO_DATA, NO_NEURONS, NOT_MEASURABLE) if s in statuses), MEASURED)
        n = 0 if status == NO_DATA else self._questions(names)
        cell: dict[str, Any] = {"status": status, "n": n}
        if status in (NO_DATA, NO_NEURONS):
            return cell
        if group != GROUPS[2]:
            values = parts[0][1]
            low, high = self._score_interval(metric, values)
            cell |= {"score": float(self._mean(values).value), "low": low, "high": high}
        if arm == ORIGINAL or status == NOT_MEASURABLE:
            return cell
        return cell | self._changes(metric, parts)

    def _changes(self, metric: str, parts: Sequence[tuple[str, Values, Values]]) -> dict[str, Any]:
        """The change of a group, or that of the first minus that of the second."""
        groups = [self._mean({n: values[n] - original[n] for n in values}) for _, values, original in parts]
        relative = [c.value / self._above(metric, original) for c, (_, _, original) in zip(groups, parts, strict=True)]
        change = groups[0] - groups[1] if len(groups) == 2 else groups[0]
        return {
            "change": float(change.value),
            "change_low": change.low,
            "change_high": change.high,
            "relative": relative[0] - relative[1] if len(groups) == 2 else relative[0],
            "p": change.p,
        }

    def _above(self, metric: str, original: Values) -> float:
        """The original score above chance; NaN for the log-likelihood."""
        if metric == LIKELIHOOD:
            return np.nan
        return float(self._mean({name: own - self.chance[metric][name] for name, own in original.items()}).value)

    def _questions(self, names: Sequence[str]) -> int:
        """Distinct questions: a parallel one counts once, in however many languages."""
        asked = [(("" if self.task.parallel else name), key) for name in names for key in self._baseline[name].index]
        return len(set(asked))

    def _score_interval(self, metric: str, values: Values) -> tuple[float, float]:
        """Wilson's for shares of questions that are independent, else a bootstrap over documents."""
        whole, mean = np.concatenate(list(values.values())), self._mean(values)
        n = self._questions(list(values))
        if np.isin(whole, (0.0, 1.0)).all() and n == self._documents_of(values):
            return wilson(round(float(mean.value) * n), n)
        return (mean.low, mean.high) if metric == LIKELIHOOD else (max(0.0, mean.low), min(1.0, mean.high))

    def _documents_of(self, values: Values) -> int:
        names = [("" if self.task.parallel else n, d) for n in values for d in self._baseline[n]["document"]]
        return len(set(names))

    # --- tables ---

    def table(self, metric: str | None = None, *, scope: str = ALL) -> pd.DataFrame:
        """The paper's table as text: arms by part and group; a star where q is at most 0.05.

        Args:
            metric: the leading one by default. Scores are in per cent, log-likelihoods in nats per token. English and
                non-English show the score, Δ the difference of changes.
            scope: ``all`` languages, or one.
        """
        cells = self._chosen(metric, scope)
        return _text_table(cells, _shown(cells["metric"].iloc[0]))

    def _chosen(self, metric: str | None, scope: str) -> pd.DataFrame:
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ValueError(f"There is no metric {metric!r}; there are {', '.join(self.metrics)}.")
        return self.cells.query("metric == @metric and scope == @scope")

    def to_frame(self) -> pd.DataFrame:
        """All cells, tidy."""
        return self.cells

    def __repr__(self) -> str:
        return f"TaskResult({self.task.title}: {len(self.rows)} answers; {self.metrics[0]})\n{self.table()}"


def _shown(metric: str) -> Callable[[float], str]:
    return (lambda value: f"{value:.2f}") if metric == LIKELIHOOD else (lambda value: f"{100 * value:.1f}")


def _text_table(cells: pd.DataFrame, number: Callable[[float], str]) -> pd.DataFrame:
    parts = [part for part in cells["part"].unique() if part]
    arms = list(cells["arm"].unique())
    columns = pd.MultiIndex.from_product([GROUPS, parts or [""]], names=["read", "off"])
    table = pd.DataFrame("–", index=pd.Index(arms, name="neurons"), columns=columns)
    for cell in cells.to_dict("records"):
        for part in parts if cell["arm"] == ORIGINAL else [cell["part"]]:
            table.loc[cell["arm"], (cell["group"], part)] = _cell_text(cell, number)
    return table


def _cell_text(cell: Mapping[str, Any], number: Callable[[float], str]) -> str:
    if cell["status"] != MEASURED:
        return f"{cell['status']}" + (f" (n {cell['n']})" if cell["n"] else "")
    delta = cell["group"] == GROUPS[2]
    value, low, high = ("change", "change_low", "change_high") if delta else ("score", "low", "high")
    star = "*" if cell.get("q", np.nan) <= 0.05 else ""
    shown = [number(cell[key]) if not np.isnan(cell[key]) else "?" for key in (value, low, high)]
    return f"{shown[0]}{star} [{shown[1]}, {shown[2]}] n {cell['n']}"
