"""How often intervals leave the truth out, and verdicts are false, on simulated documents.

Not a test (it takes an hour). ``python -m tests.benchmarks.coverage --experiments 2000`` prints two tables: what
intervals miss, of the jackknife and of other choices, by number of documents and distribution; and the share of null
experiments (of no effect at all) in which each kind of result says something. ``--figure`` draws the first.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.stats import norm, t

import mwork_lens as mw
from mwork_lens.effects import LayerSweep, StageGrid
from mwork_lens.neurons import MWORK_PARTS
from mwork_lens.plots.style import COLOURS, DASHES, finish, panels
from mwork_lens.statistics import FALSE_DISCOVERIES, FEWEST, Estimate, Jackknife, benjamini_hochberg
from mwork_lens.tasks.result import ALL, LIKELIHOOD, ORIGINAL, TaskResult
from mwork_lens.tasks.task import Question
from mwork_lens.tuning import Enhancement
from mwork_lens.tuning.enhancement import HELD_OUT, Passages, Run, RunResult

Sample = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: Mapping[str, Sample] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "t3": lambda random, shape: random.standard_t(3, shape) / np.sqrt(3),
    "gamma(2)": lambda random, shape: (random.gamma(2, 1, shape) - 2) / np.sqrt(2),
    "lognormal": lambda random, shape: (random.lognormal(0, 1, shape) - np.e**0.5) / np.sqrt((np.e - 1) * np.e),
}
"""Of mean zero and variance one."""
LANGUAGES = ("en", "de", "fr", "ru")
DOCUMENTS = (6, 12, 40)
NUMBERS = (2, 3, 4, 5, *DOCUMENTS, 100)
SHOWN = ("expanded percentile", "jackknife t", "ours")
"""Methods that are drawn: two usual ones, and the one in use."""


def intervals(documents: int, sample: Sample, random: np.random.Generator, experiments: int) -> dict[str, float]:
    """By method: per cent of intervals that leave out zero, the true mean; of a ratio and of a difference too."""
    values = sample(random, (documents, experiments))
    mean, spread = values.mean(0), values.std(0, ddof=1) / np.sqrt(documents)
    few = values[:, : min(experiments, 2000)]
    counts = random.multinomial(documents, np.full(documents, 1 / documents), size=999) / documents
    draws = np.sort(counts @ few, axis=0)
    tail = norm.cdf(t.ppf(0.025, documents - 1) * np.sqrt(documents / (documents - 1)))
    expanded = np.quantile(draws, tail, axis=0) > 0, np.quantile(draws, 1 - tail, axis=0) < 0
    skewness = ((values - mean) ** 3).mean(0) / values.std(0) ** 3 / np.sqrt(documents)
    statistic = mean / spread
    hall = statistic + skewness / 3 * statistic**2 + skewness**2 / 27 * statistic**3 + skewness / 6
    missed = {
        "expanded percentile": np.mean(expanded[0] | expanded[1]),
        "Hall's transformation": np.mean(np.abs(hall) > t.ppf(0.975, documents - 1)),
        "jackknife t": np.mean(np.abs(statistic) > t.ppf(0.975, documents - 1)),
    }
    if documents >= FEWEST:  # on fewer, ours says nothing
        missed["ours"] = _missed([Estimate.of_mean(values)])
        missed["ours, ratio of sums"] = _missed(_ratio(documents, sample, random, experiments, 1))
        missed["ours, own − others"] = _missed(_ratio(documents, sample, random, experiments, 4))
        missed["any star of 12"] = any_star(documents, sample, random, min(experiments, 4000)) / 100
        missed["1.5 sd found"] = found(documents, sample, random, experiments) / 100
    return {name: 100 * float(share) for name, share in missed.items()}


def any_star(documents: int, sample: Sample, random: np.random.Generator, tables: int) -> float:
    """Per cent of tables of twelve cells without any effect that have a star."""
    p = np.stack([Estimate.of_mean(sample(random, (documents, tables)))._p for _ in range(12)])
    return 100 * float(np.mean([(benjamini_hochberg(each) <= FALSE_DISCOVERIES).any() for each in p.T]))


def found(documents: int, sample: Sample, random: np.random.Generator, experiments: int) -> float:
    """Per cent of effects of 1.5 standard deviations, to either side, that a test of one number finds."""
    effects = np.where(np.arange(experiments) % 2, 1.5, -1.5)
    return 100 * float(np.mean(Estimate.of_mean(effects + sample(random, (documents, experiments)))._p <= 0.05))


def _missed(estimates: Sequence[Estimate]) -> float:
    return float(np.mean([each._p <= 0.05 for each in estimates]))


def _ratio(
    documents: int, sample: Sample, random: np.random.Generator, experiments: int, languages: int
) -> list[Estimate]:
    """Sums over uneven documents by sums of tokens; the first language minus the mean of the others."""
    parts = []
    for _ in range(100):  # designs
        of = np.repeat(np.arange(documents), random.integers(1, 4, documents))
        tokens, many = random.integers(10, 60, len(of))[:, None].astype(float), max(experiments // 100, 1)
        shared, jackknife = random.standard_normal((documents, many)), Jackknife.of({"": [*map(str, of)]}, paired=True)
        means = []
        for _ in range(languages):
            values = (sample(random, (documents, many)) + shared * (languages > 1))[of]
            values = values + 0.5 * random.standard_normal((len(of), many))
            means.append(jackknife.total("", values * tokens) / jackknife.size("", tokens))
        parts.append(means[0] - Estimate.mean(means[1:]) if languages > 1 else means[0])
    return parts


class Null:
    """Losses of parallel passages that nothing changes but chance."""

    def __init__(self, documents: int, sample: Sample, random: np.random.Generator) -> None:
        self.sample, self.random = sample, random
        self.of = np.repeat(np.arange(documents), random.integers(1, 4, documents))
        self.names = [*map(str, self.of)]
        self.tokens = torch.from_numpy(random.integers(10, 60, len(self.of)))
        self.base = 3.0 * self.tokens[None].double()

    def losses(self, draws: int = 1) -> torch.Tensor:
        """``[draw, passage]``: each document rises or falls by chance, each of its passages a little more so."""
        rises = self.sample(self.random, (draws, self.of.max() + 1))[:, self.of]
        rises = rises + 0.5 * self.random.standard_normal((draws, len(self.of)))
        return self.base + torch.from_numpy(rises) * self.tokens

    def matrix(self, rows: Mapping[str, str], draws: int = 1) -> mw.EffectMatrix:
        """Of rows that each belong to a language."""
        made_of = {"neurons": 9, "origin": {"kind": "specific"}}
        corpus = {"parallel": True, "passages": dict.fromkeys(LANGUAGES, len(self.of))}
        return mw.EffectMatrix(
            nats={
                "baseline": dict.fromkeys(LANGUAGES, self.base),
                **{row: {read: self.losses(draws) for read in LANGUAGES} for row in rows},
            },
            tokens=dict.fromkeys(LANGUAGES, self.tokens),
            utf8_bytes=dict.fromkeys(LANGUAGES, self.tokens),
            documents=dict.fromkeys(LANGUAGES, self.names),
            folds=dict.fromkeys(LANGUAGES, [0] * len(self.of)),
            languages=rows,
            settings={"model": "null", "corpus": corpus, "sets": dict.fromkeys(rows, [made_of] * draws)},
        )

    def grid(self) -> StageGrid:
        """Two languages' sets in four parts, whole and cut to equal size."""
        rows = {
            f"{language} {part}{equal}": language
            for language in ("de", "fr")
            for part in MWORK_PARTS
            for equal in ("", " (equal)")
        }
        effects = self.matrix(rows)
        stages = {"languages": ["de", "fr"], "understanding": [0, 1], "task_solving": [1, 2], "generation": [2, 3]}
        effects.settings["stages"] = stages
        return StageGrid(effects)

    def sweep(self) -> LayerSweep:
        """One language's set in the first and the last layer of three, and as many neurons of all layers."""
        parts = [f"{side} 1{equal}" for side in ("first", "last") for equal in ("", " (equal)")]
        effects = self.matrix({f"de {part}": "de" for part in (*parts, "first 3")})
        effects.settings["sets"]["de first 3"][0]["origin"]["layers"] = [0, 1, 2]
        return LayerSweep(effects)

    def enhancement(self, arms: Sequence[str] = ("specific", "random", "matched")) -> Enhancement:
        """One language tuned in several arms with two seeds."""
        runs = [Run("de", arm, 9, 0.1, seed) for arm in arms for seed in (0, 1)]
        counts = ("neurons", "trained", "changed", "steps", "tokens", "tuning_seconds", "measuring_seconds")
        metadata = {**dict.fromkeys(counts, 9), "losses": [1.0, 1.0]}
        results = [RunResult(run, {HELD_OUT: {read: self.losses()[0] for read in LANGUAGES}}, metadata) for run in runs]
        names = dict.fromkeys(LANGUAGES, self.names)
        read = Passages(dict.fromkeys(LANGUAGES, self.tokens), names, {"parallel": True, "passages": names})
        design = {"languages": ["de"], "documents": [9], "paper_rate": 0, "rates": [0.1], "seeds": [0, 1]}
        of_part = {"passages": {"de": len(self.names)}, "documents": {"de": len(set(self.names))}}
        trials = [{"language": "de", "arm": arm, "rate": 0.1, "development_loss": 1.0} for arm in arms]
        original = RunResult(None, {HELD_OUT: dict.fromkeys(LANGUAGES, self.base[0])}, {})
        settings = {
            "model": "null",
            "design": {**design, "arms": [*arms]},
            "own_rates": {"de": dict.fromkeys(arms, 0.1)},
        }
        settings |= {"trials": trials, "corpora": {"development": of_part}}
        return Enhancement(original, results, {HELD_OUT: read}, settings)

    def tasks(self, task: Any) -> TaskResult:
        """Answers whose log-likelihood changes by chance, with one part off."""
        rows = []
        for read in LANGUAGES:
            offs = LANGUAGES[1:] if read == "en" else (read,)
            for arm, part, off in ((ORIGINAL, "", ""), *(("specific", "understanding", off) for off in offs)):
                values = (self.losses() if off else self.base)[0] / self.tokens
                rows += [
                    {
                        **{"arm": arm, "part": part, "off": off, "language": read, "id": str(i), "document": name},
                        **{"output": "", "stopped": "end", "scores": {}, "nats": float(value), "tokens": 1},
                    }
                    for i, (name, value) in enumerate(zip(self.names, values, strict=True))
                ]
        questions = {
            read: [Question(str(i), read, {}, ("",), document=name) for i, name in enumerate(self.names)]
            for read in LANGUAGES
        }
        return TaskResult(task, rows, questions)


def said(null: Null, task: Any) -> Iterator[tuple[str, bool]]:
    """What each kind of result says of an experiment of no effect, claim by claim."""
    selectivity = null.matrix({"de": "de"}, draws=int(null.random.integers(1, 4))).selectivity()
    yield "selectivity", bool((selectivity["p_adjusted"] <= FALSE_DISCOVERIES).any())
    many = null.matrix({"de": "de", "fr": "fr", "ru": "ru"}).intervals
    yield "any star in a matrix of 12 cells", bool((many["p_adjusted"] <= FALSE_DISCOVERIES).any())
    grid = null.grid()
    for p in grid.means()["p_adjusted"]:
        yield "stage grid", p <= FALSE_DISCOVERIES
    for evidence in mw.workflow(grid).evidence:
        if evidence.verdict != "not measured":
            yield "workflow", evidence.p_adjusted <= FALSE_DISCOVERIES
    for p in null.enhancement()._beyond("de", "own", ["random", "matched"])["p_adjusted"]:
        yield "enhancement finding", p <= FALSE_DISCOVERIES
    cells = null.tasks(task).cells
    cells = cells[(cells["metric"] == LIKELIHOOD) & (cells["scope"] == ALL) & cells["p"].notna()]
    for q in cells["q"]:
        yield "task table", q <= FALSE_DISCOVERIES


class _Task:
    """What the table of a task needs to know of it: log-likelihoods only."""

    parallel, metrics, title = True, (), "null"

    def score(self, question: Question, answer: Any) -> dict[str, float]:
        """It has no scores of its own."""
        return {}


def verdicts(documents: int, sample: Sample, random: np.random.Generator, experiments: int) -> dict[str, float]:
    """By kind of result: per cent of its claims that are false."""
    counted: dict[str, list[bool]] = {}
    for _ in range(experiments):
        for kind, false in said(Null(documents, sample, random), _Task()):
            counted.setdefault(kind, []).append(bool(false))
    return {kind: 100 * float(np.mean(each)) for kind, each in counted.items()}


def figure(table: pd.DataFrame, experiments: int) -> go.Figure:
    """What intervals miss, a panel for each distribution, a line for each method."""
    drawn, cells = panels([*DISTRIBUTIONS], shared_yaxes=True, horizontal_spacing=0.02)
    for cell, kind in zip(cells, DISTRIBUTIONS, strict=True):
        rows = table.xs(kind, level="distribution")
        for i, method in enumerate(SHOWN):
            line = {"color": COLOURS[i], "dash": DASHES[i]}
            drawn.add_scatter(x=rows.index, y=rows[method], name=method, mode="lines+markers", line=line, **cell)
        drawn.add_hline(5, line={"color": "#999999", "width": 1}, **cell)
    detail = f"Per cent of {experiments:,} null experiments; 95 % intervals should miss 5 % (grey line)"
    title = "How often an interval leaves out the true mean"
    drawn.update_xaxes(type="log", tickvals=[2, 3, 4, 6, 12, 40, 100], tickangle=0, tickfont={"size": 12})
    drawn.update_yaxes(range=[0, 30])
    layout = {"width": 1150, "height": 430, "legend": {"orientation": "h", "y": -0.25}}
    return finish(drawn, title, detail, layout, x="documents", y="missed, per cent")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--only", choices=("intervals", "verdicts"))
    parser.add_argument("--figure", type=Path, help="a .png of what intervals miss")
    options = parser.parse_args()
    pd.set_option("display.width", 200)
    random = np.random.default_rng(0)
    for name, of, numbers in (("intervals", intervals, NUMBERS), ("verdicts", verdicts, DOCUMENTS)):
        if options.only not in (None, name):
            continue
        many = 10 * options.experiments if name == "intervals" else options.experiments
        rows = {
            (number, kind): of(number, sample, random, many)
            for number in numbers
            for kind, sample in DISTRIBUTIONS.items()
        }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["documents", "distribution"])
        print(f"{name}: false, per cent, of {many:,} experiments\n{table.round(1).to_string()}\n", flush=True)
        if name == "intervals" and options.figure:
            figure(table, many).write_image(options.figure, scale=1.5)


if __name__ == "__main__":
    main()
