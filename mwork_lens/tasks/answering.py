"""A batch of prompts read once: the likelihood of reference answers, and what the model writes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..effects import passage_nats
from ..generation.completions import Completion, StopRule, continue_from, generate, left_padded, picker
from ..generation.decoding import Cached, cache_rows, concat_caches, new_cache
from ..model import HookedModel, all_logits, device_of, token_losses, wrapped_model
from .prompts import Prompt

SHORTEST = 0.75
"""Prompts of a HookedTransformer are read together with none shorter than this share of the longest: what is padded
costs as much as what is read. They are continued all at once, where padding costs little."""


@torch.inference_mode()
def read_prompts(
    model: HookedModel, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Sequence[str] = ()
) -> tuple[list[list[float]], list[Completion | None]]:
    """By prompt: −log p of each continuation given it, in nats; and, with ``max_new_tokens`` above 0, a greedy answer.

    On a HookedTransformer the prompts run once, and everything else goes on from their key-value cache; on a raw
    bridge prompts run again with each continuation.
    """
    nothing: list[Completion | None] = [None] * len(prompts)
    if wrapped_model(model):
        ids = [prompt.ids for prompt in prompts]
        options = {"max_new_tokens": max_new_tokens, "stop": stop, "batch_size": len(ids)}
        whole = [torch.cat([prompt.ids, answer]) for prompt in prompts for answer in prompt.continuations]
        skip = [len(prompt.ids) for prompt in prompts for _ in prompt.continuations]
        nats = _by_prompt(passage_nats(model, whole, skip=skip)[0], prompts)
        return nats, [*generate(model, ids, **options)] if max_new_tokens else nothing
    groups = _groups([len(prompt.ids) for prompt in prompts])
    caches, last, by_group = zip(*(_read(model, [prompts[row] for row in rows]) for rows in groups), strict=True)
    order = [row for rows in groups for row in rows]
    places = sorted(range(len(order)), key=lambda place: order[place])
    answered = [values for group in by_group for values in group]
    nats = [answered[place] for place in places]
    if not max_new_tokens:
        return nats, nothing
    reader, logits = Cached(model, concat_caches(caches)), all_logits(model, torch.cat(last))
    del caches  # as large as their copy
    rule, pick = StopRule.of(model.tokenizer, stop, max_new_tokens), picker(0.0, 1.0, 0)
    written = continue_from(reader, logits, [prompts[row].ids for row in order], order, rule, pick)
    return nats, [written[place] for place in places]


def _read(model: Any, prompts: Sequence[Prompt]) -> tuple[Any, Float[Tensor, "prompt d_model"], list[list[float]]]:
    """Cache and last states of prompts of similar length, and the nats of their continuations."""
    cache = new_cache(model, len(prompts))
    tokens, mask = left_padded([prompt.ids for prompt in prompts], device_of(model))
    states = model(tokens, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers, attention_mask=mask)[:, -1]
    if not torch.isfinite(states).all():
        raise ValueError(f"The residual stream of {model.cfg.model_name} is not finite.")
    return cache, states, _by_prompt(_answer_nats(model, cache, states, prompts), prompts)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of similar length together, the longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and lengths[row] >= SHORTEST * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _by_prompt(nats: Float[Tensor, " answer"], prompts: Sequence[Prompt]) -> list[list[float]]:
    return [part.tolist() for part in nats.split([len(prompt.continuations) for prompt in prompts])]


def _answer_nats(model: Any, cache: Any, last: Tensor, prompts: Sequence[Prompt]) -> Float[Tensor, " answer"]:
    """Each answer goes on from its prompt's row of the cache, which stays as it is."""
    owners = [row for row, prompt in enumerate(prompts) for _ in prompt.continuations]
    answers = [answer for prompt in prompts for answer in prompt.continuations]
    lengths = torch.tensor([len(answer) for answer in answers])
    targets = pad_sequence(answers, batch_first=True)
    real = (torch.arange(targets.shape[1]) < lengths[:, None]).to(last.device)
    rows, targets = torch.tensor(owners, device=last.device), targets.to(last.device)
    streams = last[rows][:, None]
    if targets.shape[1] > 1:
        new = model(
            targets[:, :-1],
            stop_at_layer=model.cfg.n_layers,
            past_kv_cache=cache_rows(cache, rows, frozen=True),
            attention_mask=torch.ones_like(targets[:, :-1]),
        )
        streams = torch.cat([streams, new.to(last.device)], dim=1)
    by_token = token_losses(model, streams[real], targets[real]).double().cpu()
    return torch.zeros(len(answers), dtype=torch.float64).index_add(0, real.nonzero()[:, 0].cpu(), by_token)
