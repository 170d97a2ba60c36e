import json
import shutil
from dataclasses import replace

import pytest

import mwork_lens as mw
from mwork_lens.experiments.tasks import TaskOptions, run_task_experiment, seen_words
from mwork_lens.tasks.catalogue import TASKS
from mwork_lens.text import SeenDocuments

from ..tiny import spelled

TEXTS = {
    "en": ["a b c d", "b c a a b", "c c a b d", "a d b", "a a b c", "d c b a"],
    "zh": ["e f g h", "h h f e", "g e f h f", "e e g h", "f g h", "h g f e"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, a detection and MGSM and XQuAD in miniature."""
    folder = tmp_path_factory.mktemp("tasks")
    model = spelled("llama", n_layers=3)
    mw.detect(model, TEXTS, progress=False).save(folder / "detection")
    for language, letters in (("en", "abcd"), ("zh", "efgh")):
        lines = [f"{letters[i % 4]} {letters[(i + 1) % 4]} ?\t{i + 1}" for i in range(5)]
        (folder / f"mgsm_{language}.tsv").write_text("\n".join(lines) + "\n")
    return model, folder


def options(folder, **changed):
    given = {"data": str(folder), "detection": str(folder / "detection"), "max_new_tokens": 3, "batch_size": 2}
    return TaskOptions(**{**given, "shown": False, "quorum": 0.5, "limit": 4, "without": ("1",), **changed})


@pytest.mark.filterwarnings("ignore:The tokenizer does not know part of the text")  # of letters
def test_an_experiment_ends_in_its_tables_and_resumes_to_the_same(place, tmp_path):
    model, folder = place
    result, written = run_task_experiment(model, "reasoning", tmp_path / "run", options(folder))
    assert {row["id"] for row in result.rows} == {"0", "2", "3", "4"}
    assert list(result.table().index[:2]) == ["original", "random"]
    names = {path.name for path in written.written}
    assert names >= {"settings.json", "rows.jsonl", "prompts.jsonl", "cells.csv", "examples.csv", "report.html"}
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]
    assert settings["without"] == ["1"]
    assert settings["of"] == {"en": 4, "zh": 4}
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    whole = (tmp_path / "run" / "rows.jsonl").read_text()
    (tmp_path / "killed" / "rows.jsonl").write_text(whole[: len(whole) // 3])
    again, _ = run_task_experiment(model, "reasoning", tmp_path / "killed", options(folder))
    assert again.rows == result.rows
    assert (tmp_path / "killed" / "cells.csv").read_text() == (tmp_path / "run" / "cells.csv").read_text()
    with pytest.raises(ValueError, match="seed = 0, not 1"):
        run_task_experiment(model, "reasoning", tmp_path / "run", options(folder, seed=1))


@pytest.mark.filterwarnings("ignore:The tokenizer does not know part of the text")  # of letters
def test_a_set_off_in_one_part_is_what_the_rows_say(place, tmp_path):
    model, folder = place
    result, _ = run_task_experiment(model, "reasoning", tmp_path / "run", options(folder, arms=("active",)))
    prompts = [json.loads(line) for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert any(p["prompt"] == "Question: a b ?\nAnswer: Let's think step by step." for p in prompts)
    detection, stages = mw.Detection.load(folder / "detection"), mw.Stages(model)
    neurons = stages.select(detection.active("zh", quorum=0.5), "generation")
    row = next(r for r in result.rows if (r["part"], r["language"], r["id"]) == ("generation", "zh", "0"))
    prompt = next(p["prompt"] for p in prompts if (p["language"], p["id"]) == ("zh", "0"))
    with mw.ablate(model, neurons):
        (expected,) = mw.generate(model, [prompt], max_new_tokens=3)
    assert row["output"] == expected.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chat": True}, "no chat template"),
        ({"languages": ["en", "fr"]}, r"MGSM in .* has no 'fr'; it has en, zh"),
        ({"off": ["fr"]}, "no set of neurons for 'fr'"),
        ({"off": ["en"]}, "'zh' is asked"),
        ({"arms": ("luck",)}, "arms='luck': it must be one of random"),
        ({"limit": 0}, "limit=0"),
        ({"understanding": 5}, "understanding=5"),
        ({"data": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"detection": "/nowhere/detection"}, "holds no saved result"),
    ],
)
def test_bad_options_are_refused_before_anything_is_asked(place, tmp_path, changed, message):
    model, folder = place
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_task_experiment(model, "reasoning", tmp_path / "run", options(folder, **changed))
    assert not (tmp_path / "run" / "rows.jsonl").exists()


def test_no_set_for_a_language(place, tmp_path):
    model, folder = place
    only = tmp_path / "french"
    only.mkdir()
    (only / "mgsm_fr.tsv").write_text("a b ?\t1\n")
    with pytest.raises(ValueError, match="no set of neurons for 'fr'"):
        run_task_experiment(
            model,
            "reasoning",
            tmp_path / "run",
            options(only, detection=str(folder / "detection"), languages=["fr"], without=()),
        )


def test_questions_that_detection_has_read_are_said(place):
    _, folder = place
    questions = mw.load_questions(TASKS["mgsm"], folder)
    detection = mw.Detection.load(folder / "detection")
    assert seen_words(TASKS["mgsm"], questions, detection).startswith("Detection has seen none of the documents (5 ")
    texts = tuple(question.fields["question"] for question in questions["zh"])
    read = mw.Corpus({"zh": texts}, {"zh": tuple("abcde")}, parallel=False)
    detection = replace(detection, seen=SeenDocuments.of(read.identities))
    said = r"50 % in this language \(zh 5 of 5\) and 50 % in another language only \(en 5 of 5\)"
    with pytest.warns(UserWarning, match=said):
        assert "zh 5 of 5" in seen_words(TASKS["mgsm"], questions, detection)
    assert "unknown for 10 of 10" in seen_words(TASKS["mgsm"], questions, replace(detection, seen=None))
