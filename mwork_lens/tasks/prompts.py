"""The prompts that a model reads: a task's template in the question's language, maybe after worked examples."""

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
from ..settings import WORDINGS
from .chat import chat_prompt, uses_chat
from .task import Question, Task

BETWEEN_EXAMPLES = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """A question ready to be read."""

    question: Question
    text: str
    """What the model reads, worked examples and a chat template's own words included."""
    ids: Int[Tensor, " pos"]
    continuations: tuple[Int[Tensor, " _"], ...]
    """Token ids of the answers whose likelihood is measured: the reference, then the options."""
    stop: tuple[str, ...] = ()
    """What ends its answer besides the task's own: the beginning of another question, after worked examples."""


@cache
def templates(name: str, wording: str = WORDINGS[0]) -> Mapping[str, Mapping[str, str]]:
    """By language: ``prompt`` and ``reference`` with places to fill, and what stands ``between`` them."""
    by_language = json.loads((files("mwork_lens") / "data" / "prompts" / f"{name}.json").read_text(encoding="utf-8"))
    changed = {language: words.pop("paper", {}) for language, words in by_language.items()}
    return {
        language: {**words, **(changed[language] if wording == "paper" else {})}
        for language, words in by_language.items()
    }


def make_prompts(
    model: HookedModel,
    task: Task,
    questions: Sequence[Question],
    *,
    chat: bool | None,
    max_tokens: int | None,
    wording: str = WORDINGS[0],
    exemplars: Mapping[str, Sequence[Question]] = {},
) -> list[Prompt]:
    """The task's template, filled in each question's language, after that language's worked examples.

    Prompts longer than ``max_tokens`` lose the end of the field that the task allows to be cut (an article); so does
    each worked example, and these do not count for the question.
    """
    words, by_chat = templates(task.name, wording), uses_chat(model, chat)
    lacking = sorted({q.language for q in questions} - set(words))
    if lacking:
        raise ValueError(f"{task.title} has no prompt in {lacking[0]!r}; it has {', '.join(words)}.")
    languages = dict.fromkeys(question.language for question in questions)
    forms = {tag: _Form(model, task, words[tag], by_chat, max_tokens) for tag in languages}
    before = {tag: "".join(map(forms[tag].worked, exemplars.get(tag, ()))) for tag in languages}
    return [forms[question.language].prompt(question, before[question.language]) for question in questions]


@dataclass(frozen=True)
class _Form:
    """How questions of one language are asked."""

    model: HookedModel
    task: Task
    words: Mapping[str, str]
    chat: bool
    max_tokens: int | None

    def prompt(self, question: Question, before: str) -> Prompt:
        """A question after worked examples."""
        fields, room = question.fields, self.max_tokens
        text, ids = self._filled(fields, before, question.id)
        if room is not None and (excess := len(ids) - room - len(self._ids(before))) > 0 and self.task.cut:
            text, ids = self._filled(self._shortened(fields, excess), before, question.id)
        between = "" if self.chat else self.words["between"]
        reference = self.words["reference"].format(answer=question.references[0])
        answers = [between + answer for answer in (reference, *question.choices)]
        stop = (
            (BETWEEN_EXAMPLES + label,) if before and (label := self.words["prompt"].partition("{")[0].strip()) else ()
        )
        return Prompt(question, text, ids, tuple(self._after(text, ids, answer) for answer in answers), stop)

    def worked(self, question: Question) -> str:
        """A worked example, with what stands between it and what follows."""
        fields, text = question.fields, self.words["prompt"].format_map(question.fields)
        excess = 0 if self.max_tokens is None else len(self._ids(text)) - self.max_tokens
        if excess > 0 and self.task.cut:
            text = self.words["prompt"].format_map(self._shortened(fields, excess))
        answer = question.worked or self.words["reference"].format(answer=question.references[0])
        return text + self.words["between"] + answer + BETWEEN_EXAMPLES

    def _filled(self, fields: Mapping[str, str], before: str, name: str) -> tuple[str, Int[Tensor, " pos"]]:
        text = before + self.words["prompt"].format_map(fields)
        text = chat_prompt(self.model, text) if self.chat else text
        return text, self._encoded(text, name)

    def _shortened(self, fields: Mapping[str, str], excess: int) -> dict[str, str]:
        assert self.task.cut is not None
        tokens = self._ids(fields[self.task.cut])
        left = self.model.tokenizer.decode(tokens[: max(1, len(tokens) - excess)], skip_special_tokens=True)
        return {**fields, self.task.cut: left}

    def _encoded(self, text: str, name: str) -> Int[Tensor, " pos"]:
        """A template writes the first token itself; elsewhere the model's tokenizer decides."""
        document: Any = torch.tensor(self._ids(text)) if self.chat else text
        return encode(self.model, [document], [name], None)[0]

    def _ids(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _after(self, text: str, ids: Tensor, answer: str) -> Int[Tensor, " new"]:
        """The tokens that ``answer`` adds; on its own where it would merge with the prompt's last token."""
        whole = self._encoded(text + answer, "an answer")
        if len(whole) > len(ids) and torch.equal(whole[: len(ids)], ids):
            return whole[len(ids) :]
        return torch.tensor(self._ids(answer))
