"""A batch of prompts read once: the likelihood of given answers, and the model's own answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...sites import HookedModel
from ..decoding import Cached, cache_rows, new_cache, next_logits
from ..generation import Completion, Ends, generate, left_padded, picker, write_on
from ..loss import passage_nats, token_nats
from .prompts import Prompt


@dataclass(frozen=True)
class Reading:
    """What one prompt gave."""

    completion: Completion | None
    """None where nothing was to be written."""
    nats: tuple[float, ...]
    """Negative log-likelihood of each continuation, given the prompt."""


@torch.inference_mode()
def read_prompts(
    model: HookedModel, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Sequence[str] = ()
) -> list[Reading]:
    """Weigh every prompt's continuations and, with ``max_new_tokens`` above 0, continue it greedily.

    On a HookedTransformer the prompts run once, and everything else goes on from their key-value cache; on a raw
    bridge prompts run again with each continuation.

    Raises:
        ValueError: if the residual stream is not finite.
    """
    ids = [prompt.ids for prompt in prompts]
    owners = [row for row, prompt in enumerate(prompts) for _ in prompt.continuations]
    answers = [answer for prompt in prompts for answer in prompt.continuations]
    if hasattr(model, "original_model"):
        written = generate(model, ids, max_new_tokens=max_new_tokens, stop=stop) if max_new_tokens else []
        whole = [torch.cat([ids[row], answer]) for row, answer in zip(owners, answers, strict=True)]
        nats, _ = passage_nats(model, whole, skip=[len(ids[row]) for row in owners])
    else:
        written, nats = _from_cache(model, ids, owners, answers, max_new_tokens, stop)
    by_prompt: list[list[float]] = [[] for _ in prompts]
    for row, value in zip(owners, nats.tolist(), strict=True):
        by_prompt[row].append(value)
    completions = written or [None] * len(prompts)
    return [Reading(completion, tuple(values)) for completion, values in zip(completions, by_prompt, strict=True)]


def _from_cache(
    model: Any,
    ids: Sequence[Int[Tensor, " _"]],
    owners: Sequence[int],
    answers: Sequence[Int[Tensor, " _"]],
    max_new_tokens: int,
    stop: Sequence[str],
) -> tuple[list[Completion], Float[Tensor, " answer"]]:
    cache = new_cache(model, len(ids))
    tokens, mask = left_padded(ids, next(model.parameters()).device)
    options = {"stop_at_layer": model.cfg.n_layers, "attention_mask": mask}
    last = model(tokens, past_kv_cache=cache, **options)[:, -1]
    if not torch.isfinite(last).all():
        raise ValueError(f"The residual stream of {model.cfg.model_name} is not finite.")
    nats = _answer_nats(model, cache, last, owners, answers)
    if not max_new_tokens:
        return [], nats
    ends, pick = Ends.of(model.tokenizer, stop), picker(0.0, 1.0, 0)
    names = range(len(ids))
    return write_on(Cached(model, cache), next_logits(model, last), ids, names, max_new_tokens, ends, pick), nats


def _answer_nats(
    model: Any, cache: Any, last: Tensor, owners: Sequence[int], answers: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, " answer"]:
    """Each answer goes on from its prompt's row of the cache, which stays as it is."""
    longest = max(map(len, answers))
    targets = torch.zeros(len(answers), longest, dtype=torch.long)
    there = torch.zeros(targets.shape, dtype=torch.bool)
    for row, answer in enumerate(answers):
        targets[row, : len(answer)] = answer
        there[row, : len(answer)] = True
    rows = torch.tensor(owners, device=last.device)
    targets, there, streams = targets.to(last.device), there.to(last.device), last[rows][:, None]
    if longest > 1:
        new = model(
            targets[:, :-1],
            stop_at_layer=model.cfg.n_layers,
            past_kv_cache=cache_rows(cache, rows, frozen=True),
            attention_mask=torch.ones_like(targets[:, :-1]),
        )
        streams = torch.cat([streams, new.to(last.device)], dim=1)
    by_token = token_nats(model, streams[there], targets[there]).double().cpu()
    return torch.zeros(len(answers), dtype=torch.float64).index_add(0, there.nonzero()[:, 0].cpu(), by_token)
