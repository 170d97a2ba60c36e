"""Prompts through a tokenizer's chat template, without the thinking that some models begin an answer with."""

from collections.abc import Mapping
from typing import Any

from ..model import HookedModel

WITHOUT_THINKING: Mapping[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""What templates call their switch; one that has none does not look at these."""
OPEN = ("<think>", "<thinking>", "<seed:think>")
"""What a prompt ends with where the answer is to begin with a thought."""


def uses_chat(model: HookedModel, chat: bool | None) -> bool:
    """Whether prompts go through the tokenizer's chat template: as ``chat`` says, by default where it has one."""
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer, which tasks need.")
    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    if chat and not has_template:
        raise ValueError(f"The tokenizer of {model.cfg.model_name} has no chat template: leave chat out, or at False.")
    return has_template if chat is None else chat


def chat_prompt(model: HookedModel, text: str) -> str:
    """``text`` as a user's turn, and the beginning of an answer to it; thinking is off, where there is a switch.

    Raises:
        ValueError: where the template fails, or leaves out the text.
    """
    for content in (text, [{"type": "text", "text": text}]):  # of multimodal models some take a list of parts only
        prompt = _rendered(model, content, **WITHOUT_THINKING)
        if text.strip() in prompt:
            return prompt
    raise ValueError(f"The chat template of {model.cfg.model_name} leaves out what the user says. {_REMEDY}")


def thinking(model: HookedModel, chat: bool | None) -> str | None:
    """Whether a chat's answers begin with a thought: ``off``, ``on`` (no switch is known) or ``no switch``.

    None where prompts are not chats.
    """
    if not uses_chat(model, chat):
        return None
    prompt = chat_prompt(model, "?")
    if prompt.rstrip().endswith(OPEN):
        return "on"
    return "off" if prompt != _rendered(model, "?") else "no switch"


_REMEDY = "With chat=False (--no-chat) tasks are asked without it."


def _rendered(model: HookedModel, content: Any, **options: Any) -> str:
    turns = [{"role": "user", "content": content}]
    try:
        return model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # whatever the template raises, or Python within it
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"The chat template of {model.cfg.model_name} fails: {problem}. {_REMEDY}") from error
