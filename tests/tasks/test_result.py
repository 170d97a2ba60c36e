import numpy as np
import pytest

import mwork_lens as mw
from mwork_lens.experiments.tasks import gaps
from mwork_lens.tasks.catalogue import TASKS
from mwork_lens.tasks.result import TaskResult
from mwork_lens.tasks.task import Question

QUESTIONS = 40


def answers(arm, part, off, language, right):
    return [
        {"arm": arm, "part": part, "off": off, "language": language, "id": str(i), "document": str(i)}
        | {
            "output": "",
            "stopped": "choice",
            "scores": {"accuracy": float(i < right)},
            "nats": 2.0 + (arm != "original"),
        }
        | {"tokens": 2}
        for i in range(QUESTIONS)
    ]


def asked(*languages):
    return {
        language: [Question(str(i), language, {}, ("a",), ("a", "b", "c", "d", "e"), str(i)) for i in range(QUESTIONS)]
        for language in languages
    }


def result(rows, *languages, empty=frozenset()):
    return TaskResult(TASKS["xcsqa"], rows, asked(*languages), empty)


def cell(found, **where):
    cells = found.cells
    for key, value in {"metric": "accuracy", "scope": "all", **where}.items():
        cells = cells[cells[key] == value]
    (row,) = cells.to_dict("records")
    return row


def test_english_others_and_delta():
    rows = [
        *answers("original", "", None, "en", 32),
        *answers("original", "", None, "zh", 24),
        *answers("original", "", None, "fr", 20),
        *answers("specific", "generation", "zh", "zh", 12),
        *answers("specific", "generation", "zh", "en", 30),
        *answers("specific", "generation", "fr", "fr", 16),
        *answers("specific", "generation", "fr", "en", 32),
    ]
    found = result(rows, "en", "zh", "fr")
    where = {"arm": "specific", "part": "generation"}
    english, others, delta = (cell(found, group=group, **where) for group in ("English", "non-English", "Δ"))
    assert english["score"] == pytest.approx((30 + 32) / 80)
    assert english["change"] == pytest.approx(-1 / 40)
    assert others["score"] == pytest.approx((12 + 16) / 80)
    assert others["change"] == pytest.approx(-(12 / 40 + 4 / 40) / 2)
    assert delta["change"] == pytest.approx(english["change"] - others["change"])
    above = {"en": 0.8 - 0.2, "others": 0.55 - 0.2}
    assert delta["relative"] == pytest.approx(english["change"] / above["en"] - others["change"] / above["others"])
    assert delta["change_low"] < delta["change"] < delta["change_high"]
    assert delta["q"] < 0.05
    assert {english["n"], others["n"], delta["n"]} == {QUESTIONS}
    original = cell(found, arm="original", group="non-English")
    assert original["score"] == pytest.approx(22 / 40)
    low, high = mw.statistics.wilson(32, 40)
    assert (
        cell(found, arm="original", group="English")["low"],
        cell(found, arm="original", group="English")["high"],
    ) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert cell(found, arm="original", group="English", scope="zh")["score"] == 0.8
    assert cell(found, group="Δ", scope="zh", **where)["change"] == pytest.approx(-2 / 40 + 12 / 40)
    assert found.metrics == ("accuracy", "log-likelihood")
    likely = cell(found, group="non-English", metric="log-likelihood", **where)
    assert (likely["score"], likely["change"]) == (pytest.approx(-1.5), pytest.approx(-0.5))
    assert found.table().loc["specific", ("Δ", "generation")].startswith("17.5*")


def test_a_missing_language_is_no_data_and_never_zero():
    rows = [*answers("original", "", None, "en", 32), *answers("specific", "generation", "zh", "en", 30)]
    found = result(rows, "en")
    for group in ("non-English", "Δ"):
        missing = cell(found, arm="specific", part="generation", group=group)
        assert missing["status"] == "no data"
        assert np.isnan(missing["change"])
        assert missing["n"] == 0
    assert cell(found, arm="specific", part="generation", group="English")["change"] == pytest.approx(-2 / 40)
    assert found.table().loc["original", ("non-English", "generation")] == "no data"


def test_a_model_at_chance_is_not_measurable_and_likelihood_leads():
    rows = [
        *answers("original", "", None, "en", 9),
        *answers("original", "", None, "zh", 8),
        *answers("specific", "generation", "zh", "zh", 0),
        *answers("specific", "generation", "zh", "en", 8),
    ]
    found = result(rows, "en", "zh", empty=frozenset({("random", "generation", "zh")}))
    assert found.metrics[0] == "log-likelihood"
    assert cell(found, arm="original", group="English")["score"] == pytest.approx(9 / 40)
    for group in ("English", "non-English", "Δ"):
        gone = cell(found, arm="specific", part="generation", group=group)
        assert gone["status"] == "not measurable"
        assert np.isnan(gone["change"])
        assert (
            cell(found, arm="specific", part="generation", group=group, metric="log-likelihood")["status"] == "measured"
        )
        assert cell(found, arm="random", part="generation", group=group)["status"] == "no neurons"
    one_of_two = [*answers("original", "", None, "en", 32), *rows[QUESTIONS:]]
    assert result(one_of_two, "en", "zh").metrics[0] == "log-likelihood"
    assert gaps(result(one_of_two, "en", "zh"))[0].startswith("In zh the original model's accuracy is not above chance")
    figure = mw.plots.task_changes(found, metric="accuracy")
    assert "not measurable" in figure.layout.annotations[-1].text


@pytest.mark.parametrize("right", [11, 12, 13, 14])
def test_the_interval_that_a_cell_shows_decides_whether_it_is_measurable(right):
    found = result(answers("original", "", None, "zh", right), "zh")
    shown = cell(found, arm="original", group="non-English")
    assert (shown["low"], shown["high"]) == mw.statistics.wilson(right, QUESTIONS)
    assert found.measurable("accuracy") == {"zh": shown["low"] > 1 / 5} == {"zh": right >= 13}


def test_written_answers_are_at_chance_where_other_references_fit_as_well():
    def rows(right):
        texts = [f"word{i}" if i < right else "word" for i in range(QUESTIONS)]
        scores = [{"F1": float(i < right), "exact match": float(i < right)} for i in range(QUESTIONS)]
        return [
            {"arm": "original", "part": "", "off": None, "language": "en", "id": str(i), "document": str(i)}
            | {"output": texts[i], "stopped": "stop", "scores": scores[i], "nats": 1.0, "tokens": 1}
            for i in range(QUESTIONS)
        ]

    questions = {"en": [Question(str(i), "en", {}, (f"word{i}",), document=str(i)) for i in range(QUESTIONS)]}
    good, bad = (TaskResult(TASKS["xquad"], rows(right), questions) for right in (20, 0))
    assert good.measurable("F1") == {"en": True}
    assert bad.measurable("F1") == {"en": False}
    same = {"en": [Question(str(i), "en", {}, ("word",), document=str(i)) for i in range(QUESTIONS)]}
    echo = [{**row, "output": "word", "scores": {"F1": 1.0, "exact match": 1.0}} for row in rows(0)]
    assert TaskResult(TASKS["xquad"], echo, same).measurable("F1") == {"en": False}
