"""On few documents every table, figure and sentence says "not measurable"; on more, stars and verdicts are the same."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens import plots
from mwork_lens.experiments.report import findings
from mwork_lens.experiments.tasks import gaps
from mwork_lens.lens import LanguageRatio
from mwork_lens.settings import TUNED_ARMS
from mwork_lens.tasks import TASKS
from mwork_lens.tasks.result import LIKELIHOOD
from mwork_lens.text import OTHER, SHARED

from .benchmarks.coverage import DISTRIBUTIONS, Null

NOTHING = "not measurable on {} document"
ENHANCEMENT = ("enhancement_matrix", "enhancement_by_documents", "enhancement_by_language")
CLEAR = re.compile(
    r"(?<!not )(?<!not clearly )\b(selective|supported)\b|\d\*|✓|better than|worse than|(above|below) chance \("
)


class Planted(Null):
    """Losses of language ``de`` rise by more than the others', or by as much."""

    def losses(self, draws=1):
        self.calls = getattr(self, "calls", 0) + 1
        return super().losses(draws) + 2.0 * self.tokens * (self.calls % 3 == 1)


def ratio_of(null):
    """Prompts of which more decode to English than random directions do."""
    names, generator = ("en", "de", SHARED, OTHER), torch.Generator().manual_seed(0)
    counts = 4 + torch.rand(len(null.names), 4, 4, generator=generator, dtype=torch.float64)
    counts[..., 0] += 5
    chance = 5 + torch.rand(4, 50, 4, generator=generator, dtype=torch.float64)
    corpus = {"parallel": True}
    settings = {"model": "null", "n_layers": 3, "corpus": corpus, "top_k": 10, "by": "count", "identifier": "script"}
    of = {"de": counts}, chance, torch.full((4,), 0.25, dtype=torch.float64), (0, 1, 2, 3), names, ("en", "de")
    return LanguageRatio(*of, {"de": null.names}, {**settings, "normalize": True})


def answers_of(null):
    """Every second answer is right, with neurons off as without."""
    result = null.tasks(TASKS["mgsm"])
    scores = [dict.fromkeys(result.task.metrics, float(int(row["id"]) % 2)) for row in result.rows]
    return replace(result, rows=[{**row, "scores": each} for row, each in zip(result.rows, scores, strict=True)])


def texts_of(figure):
    """Everything that a reader of a figure sees, and sees over it."""
    layout = [each.text for each in figure.layout.annotations] + [figure.layout.title.text]
    cells = [each for trace in figure.data for name in ("text", "hovertext") for each in np.ravel(trace[name])]
    return [str(text) for text in (*layout, *cells) if text is not None]


def detail(figure):
    """The line under a figure's title."""
    return figure.layout.title.subtitle.text


def map_all(result, *names):
    """Several figures of a result."""
    return [getattr(plots, name)(result) for name in names]


@pytest.fixture(scope="module", params=[1, 2, 5, 6, 12])
def shown(request):
    """By name: what each kind of result shows of so many documents."""
    null = Planted(request.param, DISTRIBUTIONS["normal"], np.random.default_rng(request.param))
    matrix, grid, ratio = null.matrix({"de": "de", "fr": "fr"}), null.grid(), ratio_of(null)
    flow, enhancement, tasks = mw.workflow(grid, ratio), null.enhancement([*TUNED_ARMS]), answers_of(null)
    sweep = null.sweep()
    return (
        request.param,
        matrix,
        len(null.names),
        {
            "effects": [matrix.finding("de"), *texts_of(mw.plots.effect_matrix(matrix))],
            "selectivity": texts_of(mw.plots.selectivity(matrix)),
            "report": findings(matrix, ratio),
            "grid": texts_of(mw.plots.stage_grid(grid)),
            "sweep": [sweep.finding(), *texts_of(mw.plots.layer_sweep(sweep))],
            "workflow": [*texts_of(mw.plots.workflow(flow)), *(each.verdict for each in flow.evidence)],
            "ratio": [ratio.finding("en"), *texts_of(mw.plots.language_ratio(ratio))],
            "enhancement": [*enhancement.findings(), *texts_of(mw.plots.enhancement_matrix(enhancement))],
            "tasks": [*tasks.table(LIKELIHOOD).to_numpy().ravel(), *gaps(tasks)],
        },
        {
            "effects": [matrix.intervals, matrix.selectivity(), matrix.by_fold(), matrix.documents_read],
            "grid": [grid.to_frame(), grid.to_frame(equal=True), grid.means()],
            "sweep": [sweep.to_frame()],
            "workflow": [flow.to_frame().query("verdict != 'not measured'")],
            "ratio": [ratio.to_frame(), ratio.verdict()],
            "enhancement": [enhancement.changes, enhancement.table(), enhancement.runs(), enhancement.rates()],
            "tasks": [tasks.cells.rename(columns={"n": "passages"})],
        },
        {
            "effects": [matrix.finding("de"), detail(mw.plots.effect_matrix(matrix)), repr(matrix)],
            "selectivity": [detail(mw.plots.selectivity(matrix))],
            "report": [findings(matrix, ratio)[0]],
            "grid": [detail(mw.plots.stage_grid(grid))],
            "sweep": [sweep.finding(), detail(mw.plots.layer_sweep(sweep))],
            "workflow": [each for each in texts_of(mw.plots.workflow(flow)) if "neurons off" in each],
            "ratio": [ratio.finding("en"), *map(detail, map_all(ratio, "language_ratio", "language_heatmap"))],
            "enhancement": [*enhancement.findings(), *map(detail, map_all(enhancement, *ENHANCEMENT))],
            "tasks": [detail(mw.plots.task_changes(tasks)), repr(tasks)],
        },
    )


def test_what_is_not_measurable_is_said_and_nothing_else_is(shown):
    documents, _, _, by_kind, *_ = shown
    for kind, texts in by_kind.items():
        whole = "\n".join(texts)
        assert not re.search(r"\bnan\b", whole, re.IGNORECASE), (kind, whole)
        body = re.sub(r"[✓*]: [^\n]*", "", whole)  # what explains a mark
        if documents < 6:
            assert NOTHING.format(documents) in whole, (kind, whole)
            assert not CLEAR.search(body), (kind, body)
            assert not re.search(r"[(\[][+−-]?[\d.]+%? to ", body), (kind, body)
        else:
            assert "not measurable" not in whole, (kind, whole)


def test_documents_and_passages_are_said(shown):
    documents, _, passages, _, tables, texts = shown
    for kind, table in ((kind, table) for kind, of_kind in tables.items() for table in of_kind):
        of = next(of for of in ("evaluation_", "development_", "") if f"{of}documents" in table)
        counts = table[[f"{of}passages", f"{of}documents"]].dropna()
        assert len(counts) == len(table), (kind, table)
        assert (counts == (passages, documents)).all(axis=None), (kind, table)
    for kind, text in ((kind, text) for kind, of_kind in texts.items() for text in of_kind):
        whole = text.replace("<br>", " ")
        of = rf"\b{documents} documents?\b|\b{passages} \({documents}\)|n {passages}/{documents}\b"
        assert re.search(of, whole), (kind, whole)
        assert re.search(rf"\b{passages}\b", whole), (kind, whole)


def test_a_star_is_a_verdict(shown):
    documents, matrix, *_ = shown
    cells = matrix.selectivity()
    for row in cells.index:
        clear = bool(CLEAR.search(matrix.finding(row)))
        assert clear == bool(cells.loc[row, "p_adjusted"] <= 0.05 and cells.loc[row, "difference"] > 0)
        assert documents >= 6 or not clear


def test_controls_of_another_size_are_named():
    matrix = Null(6, DISTRIBUTIONS["normal"], np.random.default_rng(0)).matrix({"de": "de", "shared for de": "de"})
    assert "another size" not in detail(plots.selectivity(matrix))
    sets = {**matrix.settings["sets"], "shared for de": [{"neurons": 4, "origin": {"kind": "shared"}}]}
    fewer = replace(matrix, settings={**matrix.settings, "sets": sets})
    assert detail(plots.selectivity(fewer)).endswith("of another size: shared for de (4 of 9)")
