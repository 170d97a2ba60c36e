import json

import pytest
import torch

import mwork_lens as mw
from mwork_lens.effects import passage_nats
from mwork_lens.generation.completions import generate
from mwork_lens.model import bridge_on
from mwork_lens.tasks.catalogue import answer_overlap
from mwork_lens.tasks.prompts import Prompt
from mwork_lens.tasks.run import Condition, read_prompts, run_task
from mwork_lens.tasks.task import Hub, Question, Task

from ..decoders.a_to_gr import GROUPED
from ..decoders.row import Decoder, transformers_model
from ..tiny import FAMILIES, some_neurons, spelled, tiny, tokens
from ..words import words

TASK = Task("xquad", "Letters", Hub("none", {"en": "en", "zh": "zh"}), lambda *_: None, answer_overlap, ("F1",))  # pyright: ignore


def prompt(length, seed, language="en", name="0"):
    question = Question(name, language, {}, ("a",), document=name)
    known = (3 + tokens(n, seed + shift) % 8 for n, shift in ((length, 0), (1, 1), (4, 4), (2, 2)))
    return Prompt(question, "", next(known), tuple(known))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_once_give_what_whole_passes_give(family):
    model = tiny(family)
    prompts = [prompt(length, seed) for seed, length in enumerate((5, 9, 3, 8, 6))]
    whole = [torch.cat([p.ids, answer]) for p in prompts for answer in p.continuations]
    with mw.edit_weights(model, some_neurons(model)):
        found, completions = read_prompts(model, prompts, max_new_tokens=4)
        expected, _ = passage_nats(model, whole, skip=[len(p.ids) for p in prompts for _ in p.continuations])
        written = generate(model, [p.ids for p in prompts], max_new_tokens=4)
    nats = torch.tensor([n for of_prompt in found for n in of_prompt], dtype=torch.float64)
    torch.testing.assert_close(nats, expected, rtol=1e-9, atol=1e-12)
    assert completions == written


def test_prompts_of_any_length_end_apart_as_they_do_alone():
    model = spelled("llama")
    prompts = [prompt(length, seed) for seed, length in enumerate((5, 14, 3, 12, 6, 4))]
    options = {"max_new_tokens": 8, "stop": ["h"]}
    _, together = read_prompts(model, prompts, **options)
    assert together == [completion for one in prompts for completion in read_prompts(model, [one], **options)[1]]
    assert len({len(completion.tokens) for completion in together}) > 1


def test_a_prompt_without_room_for_its_answer_is_refused_before_any_is_asked(tmp_path):
    with pytest.raises(ValueError, match=r"Question '0' \(en\) has 60 tokens; with an answer of 5 .* 64"):
        run_task(spelled("llama"), TASK, {"en": [prompt(60, 0)]}, [], tmp_path / "rows.jsonl", max_new_tokens=5)
    assert not (tmp_path / "rows.jsonl").exists()


def test_unknown_words_of_questions_and_answers_are_said_by_language(tmp_path):
    question = Question("0", "en", {}, ("a",), document="0")
    asked = Prompt(question, "", torch.tensor([1, 3, 2, 4]), (torch.tensor([2, 5]),))
    run = {"max_new_tokens": 1, "progress": False}
    with pytest.warns(UserWarning, match=r"\(<unk> by language: en 40\.0%\): the model reads one and the same token"):
        run_task(
            spelled("llama"),
            TASK,
            {"en": [asked], "zh": [prompt(5, 0, "zh")]},
            [Condition("original", "", None, None, ("en",))],
            tmp_path / "rows.jsonl",
            **run,
        )


def conditions(model):
    neurons = some_neurons(model)
    return [
        Condition("original", "", None, None, ("en", "zh")),
        Condition("specific", "generation", "zh", neurons, ("zh", "en")),
    ]


def prompts():
    return {
        language: [prompt(3 + i % 4, 10 * k + i, language, str(i)) for i in range(7)]
        for k, language in enumerate(("en", "zh"))
    }


def test_a_killed_run_resumes_to_the_same_rows(tmp_path):
    model = spelled("llama")
    options = {"max_new_tokens": 3, "batch_size": 2, "progress": False}
    rows = run_task(model, TASK, prompts(), conditions(model), tmp_path / "whole.jsonl", **options)
    assert len(rows) == 4 * 7
    text = (tmp_path / "whole.jsonl").read_text()
    # killed in the middle of a batch, and of a line
    cut = text[: len(text) // 2]
    assert not cut.endswith("\n")
    (tmp_path / "half.jsonl").write_text(cut)
    asked = []
    handle = model.ln_final.register_forward_hook(lambda *_: asked.append(1))
    try:
        again = run_task(model, TASK, prompts(), conditions(model), tmp_path / "half.jsonl", **options)
        first = len(asked)
        assert run_task(model, TASK, prompts(), conditions(model), tmp_path / "half.jsonl", **options) == rows
        assert len(asked) == first
    finally:
        handle.remove()
    assert again == rows
    off = [row for row in rows if row["arm"] == "specific" and row["language"] == "en"]
    on = [row for row in rows if row["arm"] == "original" and row["language"] == "en"]
    assert [row["id"] for row in off] == [row["id"] for row in on]
    assert [row["nats"] for row in off] != [row["nats"] for row in on]
    assert set(json.loads(text.splitlines()[0])) >= {"output", "stopped", "scores", "nats", "tokens", "document"}


def test_answers_of_other_processes_are_taken_over(tmp_path):
    model, path = spelled("llama"), tmp_path / "rows.jsonl"
    options = {"max_new_tokens": 3, "batch_size": 2, "progress": False}
    rows = run_task(model, TASK, prompts(), conditions(model), path, **options)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]))
    (tmp_path / "rows.jsonl-1").write_text("".join(lines[8:]) + '{"arm": "cut')
    assert run_task(model, TASK, prompts(), conditions(model), path, **options) == rows
    assert path.read_text().splitlines(keepends=True) == lines
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_line_ends_of_unicode_inside_an_answer_divide_no_row(tmp_path):
    model, path = spelled("llama"), tmp_path / "rows.jsonl"
    options = {"max_new_tokens": 3, "progress": False}
    rows = run_task(model, TASK, prompts(), conditions(model), path, **options)
    for row in rows:
        row["output"] = "one\u2028two\x85three\x0bfour"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert run_task(model, TASK, prompts(), conditions(model), path, **options) == rows


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in ('{"text": "mine"}\n', '{"text": "mine"}\n{"arm', "mine", '\n{"arm": "or', '{"text": "mi'):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises(ValueError, match="not a file of answers"):
            run_task(spelled("llama"), TASK, prompts(), [], tmp_path / "rows.jsonl", max_new_tokens=3)
        assert (tmp_path / "rows.jsonl").read_text() == content


@pytest.mark.parametrize("left", [0, 1, 5, 40])
def test_a_run_killed_within_its_first_answer_begins_anew(tmp_path, left):
    model, options = spelled("llama"), {"max_new_tokens": 3, "progress": False}
    rows = run_task(model, TASK, prompts(), conditions(model), tmp_path / "rows.jsonl", **options)
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text[:left])
    assert run_task(model, TASK, prompts(), conditions(model), tmp_path / "rows.jsonl", **options) == rows
    assert (tmp_path / "rows.jsonl").read_text() == text


def test_every_token_of_an_answer_counts_on_a_bridge_too():
    """Of a word that the tokenizer does not know the reference holds a special token."""
    hooked = tiny("llama")
    bridge = bridge_on(transformers_model.__wrapped__(Decoder("LlamaForCausalLM", GROUPED), torch.float64), words())
    ids, answer = torch.tensor([1, 3, 4]), torch.tensor([5, 2, 6])
    question = Question("1", "en", {}, ("a",), ("a", "b"))
    asked = [Prompt(question, "", ids, (answer, answer[:2]))]
    for model in (hooked, bridge):
        with torch.inference_mode():
            logits = model(torch.cat([ids, answer])[None]).log_softmax(-1)[0, 2:-1]
        nats = -logits[torch.arange(3), answer]
        ((read,), _) = read_prompts(model, asked, max_new_tokens=0)
        assert read == pytest.approx([float(nats.sum()), float(nats[:2].sum())], abs=1e-6)
