"""What models read: the wording of templates, worked examples, limits."""

import json
import re
from pathlib import Path

import pytest

import mwork_lens.tasks
from mwork_lens.experiments.tasks import limits
from mwork_lens.settings import TaskOptions
from mwork_lens.tasks import TASKS, TaskResult, load_questions
from mwork_lens.tasks.exemplars import draw_exemplars, load_exemplars, without_exemplars
from mwork_lens.tasks.prompts import make_prompts, templates
from mwork_lens.tasks.run import Condition, run_task
from mwork_lens.tasks.task import Question

from ..tiny import spelled

PAGE = (Path(mwork_lens.tasks.__file__).parent / "tasks.md").read_text(encoding="utf-8")


def test_the_papers_slip_is_only_in_its_own_wording():
    corrected, paper = templates("mgsm"), templates("mgsm", "paper")
    assert corrected["en"]["prompt"] == "Question: {question}\nAnswer: Let's think step by step."
    assert paper["en"]["prompt"] == "Question: {question}\nAnswer: Let's this step by step."
    for name in TASKS:
        both = templates(name), templates(name, "paper")
        assert [tag for tag in both[0] if both[0][tag] != both[1][tag]] == (["en"] if name == "mgsm" else [])
        assert all(words.keys() == {"prompt", "reference", "between"} for each in both for words in each.values())
    with pytest.raises(ValueError, match="wording='mine': it must be one of corrected, paper"):
        TaskOptions(wording="mine")
    for wrong in ({"exemplars": -1}, {"exemplars_from": "exemplars.jsonl"}):
        with pytest.raises(ValueError, match="say how many worked examples"):
            TaskOptions(**wrong)


def asked(languages=("en", "zh"), number=6):
    letters = {"en": "abcd", "zh": "efgh"}

    def question(tag, i):
        return Question(str(i), tag, {"question": " ".join(letters[tag][: i % 3 + 2])}, (str(i),), document=str(i // 2))

    return {tag: [question(tag, i) for i in range(number)] for tag in languages}


def test_examples_are_the_same_questions_in_every_language_and_not_asked():
    questions = asked()
    drawn = draw_exemplars(TASKS["mgsm"], questions, 2, seed=0)
    assert [q.id for q in drawn["en"]] == [q.id for q in drawn["zh"]]
    assert len({q.document for q in drawn["en"]}) == 2
    left = without_exemplars(questions, drawn)
    documents = {q.document for q in drawn["en"]}
    assert {q.document for q in left["en"]} == {q.document for q in left["zh"]} == {"0", "1", "2"} - documents
    seeds = {tuple(q.id for q in draw_exemplars(TASKS["mgsm"], questions, 2, seed=seed)["en"]) for seed in range(8)}
    assert len(seeds) > 1
    with pytest.raises(ValueError, match="exemplars=4: there are 3 documents"):
        draw_exemplars(TASKS["mgsm"], questions, 4, seed=0)
    with pytest.raises(ValueError, match="exemplars=3 leave no question of 'en'"):
        without_exemplars(questions, draw_exemplars(TASKS["mgsm"], questions, 3, seed=0))


def test_a_prompt_holds_its_examples_and_ends_at_another_question(tmp_path):
    model, questions = spelled("llama"), asked()
    drawn = draw_exemplars(TASKS["mgsm"], questions, 1, seed=0)
    (prompt, *_) = make_prompts(
        model, TASKS["mgsm"], questions["en"], chat=False, max_tokens=None, wording="paper", exemplars=drawn
    )
    (example,) = drawn["en"]
    slip = "\nAnswer: Let's this step by step."
    assert prompt.text == (
        f"Question: {example.fields['question']}{slip} The answer is {example.references[0]}.\n\n"
        f"Question: {questions['en'][0].fields['question']}{slip}"
    )
    assert prompt.stop == ("\n\nQuestion:",)
    assert make_prompts(model, TASKS["mgsm"], questions["en"], chat=False, max_tokens=None)[0].stop == ()


def test_articles_of_examples_are_cut_too_and_do_not_count_for_the_question():
    model, article = spelled("llama"), " ".join("abcdefgh" * 3)
    example, question = (Question(name, "en", {"text": article}, ("a",), document=name) for name in ("1", "2"))
    alone, after = (
        make_prompts(model, TASKS["xlsum"], [question], chat=False, max_tokens=12, exemplars=exemplars)[0]
        for exemplars in ({}, {"en": [example]})
    )
    assert after.text.endswith(alone.text)
    before = after.text.removesuffix(alone.text)
    assert before.count("Summary:") == 1
    assert len(before.split()) <= 14


def test_the_datas_own_examples_bring_their_steps_and_leave_their_labels(tmp_path):
    rows = [
        {"lang": tag, "question": f"{label}{i} apples?", "answer": f"{steps}{i} is {i}.", "answer_number": i}
        for tag, label, steps in (("en", "Question: ", "Step-by-Step Answer: "), ("fr", "Question : ", "Réponse : "))
        for i in (3, 14)
    ]
    path = tmp_path / "exemplars.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    examples = load_exemplars(TASKS["mgsm"], path, ["fr"])
    assert list(examples) == ["fr"]
    assert [(q.fields["question"], q.worked, q.references) for q in examples["fr"]] == [
        ("3 apples?", "3 is 3.", ("3",)),
        ("14 apples?", "14 is 14.", ("14",)),
    ]
    with pytest.raises(ValueError, match="no 'th'; it has en, fr"):
        load_questions(TASKS["mgsm"], path, languages=["th"])


@pytest.mark.filterwarnings("ignore:The tokenizer does not know part")
def test_answers_that_the_limit_cuts_are_counted(tmp_path):
    model, questions = spelled("llama"), asked()
    prompts = {
        tag: make_prompts(model, TASKS["mgsm"], rows, chat=False, max_tokens=None) for tag, rows in questions.items()
    }
    everything = [Condition("original", "", None, None, ("en", "zh"))]
    rows = run_task(
        model, TASKS["mgsm"], prompts, everything, tmp_path / "rows.jsonl", max_new_tokens=1, progress=False
    )
    result = TaskResult(TASKS["mgsm"], rows, questions)
    cut = sum(row["stopped"] == "length" for row in rows)
    assert cut
    assert result.cut["answers"].tolist() == [6, 6]
    assert result.cut["cut"].sum() == cut
    (sentence,) = limits(result)
    assert "The limit of new tokens cut off answers of the original model: en " in sentence
    whole = TaskResult(TASKS["mgsm"], [{**row, "stopped": "end"} for row in rows], questions)
    assert limits(whole) == []


@pytest.mark.parametrize("name", TASKS)
def test_the_page_of_tasks_says_what_is_asked(name):
    task = TASKS[name]
    part = re.search(rf"## {re.escape(task.title)}\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)
    assert part
    prompt = templates(name)["en"]["prompt"].replace("\n", "\\n")
    assert f"`{prompt}`" in part[1]
    assert task.hub.path in part[1]
    assert f"{task.hub.split}" in part[1]
    assert all(metric in part[1] for metric in task.metrics)
    assert re.search(rf"\b{task.max_new_tokens} tokens" if name != "xcsqa" else "nothing is written", part[1])
