"""Chat templates: no thinking before a short answer, one clear error where a template fails."""

import pytest

from mwork_lens.tasks.catalogue import TASKS
from mwork_lens.tasks.chat import chat_prompt, thinking
from mwork_lens.tasks.prompts import make_prompts
from mwork_lens.tasks.task import Question

from ..tiny import spelled

TURNS = "{% for turn in messages %}<bos> {{ turn['content'] }} {% endfor %}"
THINKS = TURNS + "{% if enable_thinking is defined and not enable_thinking %}a b {% endif %}c"
OTHER = TURNS + "{% if thinking is not defined or thinking %}<think>\n{% endif %}"
PARTS = "{% for turn in messages %}{% for part in turn['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
QUESTION = Question("1", "en", {"context": "a b", "question": "c ?"}, ("d",), document="1")


def chats(template):
    model = spelled("llama")
    model.tokenizer.chat_template = template
    return model


def prompt(model, chat=None):
    return make_prompts(model, TASKS["xquad"], [QUESTION], chat=chat, max_tokens=None)[0]


@pytest.mark.parametrize(
    ("template", "end", "recorded"),
    [
        (THINKS, " a b c", "off"),
        (OTHER, " ", "off"),
        (TURNS + "c", " c", "no switch"),
        (TURNS + "<think>{{ '\n' }}", " <think>\n", "on"),
        ({"default": THINKS, "tool_use": "x"}, " a b c", "off"),
    ],
)
def test_a_short_answer_begins_without_a_thought(template, end, recorded):
    model = chats(template)
    text = prompt(model, chat=False).text
    asked = prompt(model)
    assert asked.text == f"<bos> {text}{end}"
    assert asked.ids.tolist()[:1] == [1]
    assert asked.ids.tolist()[1] != 1
    assert thinking(model, None) == recorded
    assert thinking(model, False) is None


def test_a_template_that_takes_a_list_of_parts_is_given_one():
    assert chat_prompt(chats(PARTS), "a b") == "a b"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "fails: roles must alternate"),
        ("{% for %}", "fails: Expected an expression"),
        ("{{ messages[0].none.such }}", "fails: .*has no attribute 'none'"),
        ("{{ 1 // 0 }}", "fails: .*by zero"),
        ("{{ messages[0]['role'] }}", "leaves out what the user says"),
    ],
)
def test_a_template_that_fails_is_one_clear_error(template, reason):
    with pytest.raises(ValueError, match=rf"^The chat template of \S+ {reason}.*chat=False \(--no-chat\)") as raised:
        prompt(chats(template))
    assert "\n" not in str(raised.value)
