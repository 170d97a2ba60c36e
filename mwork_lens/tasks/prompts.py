"""Questions as the token ids that a model reads, with those of the answers to weigh."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..model import HookedModel, encode
from .task import Question, Task


@dataclass(frozen=True)
class Prompt:
    """A question ready to be read."""

    question: Question
    text: str
    """What the model reads, a chat template's own words included."""
    ids: Int[Tensor, " pos"]
    continuations: tuple[Int[Tensor, " _"], ...]
    """Token ids of the answers whose likelihood is measured: the reference, then the options."""


@cache
def templates(name: str) -> Mapping[str, Mapping[str, str]]:
    """By language: ``prompt`` and ``reference`` with places to fill, and what stands ``between`` them."""
    return json.loads((files("mwork_lens") / "data" / "prompts" / f"{name}.json").read_text(encoding="utf-8"))


def uses_chat(model: HookedModel, chat: bool | None) -> bool:
    """Whether prompts go through the tokenizer's chat template: as ``chat`` says, by default where it has one."""
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer, which tasks need.")
    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    if chat and not has_template:
        raise ValueError(f"The tokenizer of {model.cfg.model_name} has no chat template: leave chat out, or at False.")
    return has_template if chat is None else chat


def make_prompts(
    model: HookedModel, task: Task, questions: Sequence[Question], *, chat: bool | None, max_tokens: int | None
) -> list[Prompt]:
    """The task's template, filled in each question's language.

    Prompts longer than ``max_tokens`` lose the end of the field that the task allows to be cut (an article).
    """
    words, by_chat = templates(task.name), uses_chat(model, chat)
    lacking = sorted({q.language for q in questions} - set(words))
    if lacking:
        raise ValueError(f"{task.title} has no prompt in {lacking[0]!r}; it has {', '.join(words)}.")
    return [_prompt(model, task, question, words[question.language], by_chat, max_tokens) for question in questions]


def _prompt(
    model: HookedModel, task: Task, question: Question, words: Mapping[str, str], chat: bool, max_tokens: int | None
) -> Prompt:
    def filled(fields: Mapping[str, str]) -> tuple[str, Int[Tensor, " pos"]]:
        text = words["prompt"].format_map(fields)
        if chat:
            turns = [{"role": "user", "content": text}]
            text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text, _encode(model, text, chat, question.id)

    text, ids = filled(question.fields)
    if max_tokens is not None and task.cut and len(ids) > max_tokens:
        tokens = _ordinary_ids(model, question.fields[task.cut])
        left = tokens[: max(1, len(tokens) - (len(ids) - max_tokens))]
        cut = model.tokenizer.decode(left, skip_special_tokens=True)
        text, ids = filled({**question.fields, task.cut: cut})
    between = "" if chat else words["between"]
    reference = words["reference"].format(answer=question.references[0])
    answers = [between + answer for answer in (reference, *question.choices)]
    return Prompt(question, text, ids, tuple(_after(model, text, ids, answer, chat) for answer in answers))


def _encode(model: HookedModel, text: str, chat: bool, name: str) -> Int[Tensor, " pos"]:
    """A template writes the first token itself; elsewhere the model's tokenizer decides."""
    document: Any = torch.tensor(_ordinary_ids(model, text)) if chat else text
    return encode(model, [document], [name], None)[0]


def _ordinary_ids(model: HookedModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _after(model: HookedModel, text: str, ids: Tensor, answer: str, chat: bool) -> Int[Tensor, " new"]:
    """The tokens that ``answer`` adds; on its own where it would merge with the prompt's last token."""
    whole = _encode(model, text + answer, chat, "an answer")
    if len(whole) > len(ids) and torch.equal(whole[: len(ids)], ids):
        return whole[len(ids) :]
    return torch.tensor(_ordinary_ids(model, answer))
