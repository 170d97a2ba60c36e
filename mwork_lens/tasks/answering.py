"""A batch of prompts read once: the likelihood of reference answers, and what the model writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
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


@dataclass(frozen=True)
class Reading:
    """What one prompt gave."""

    completion: Completion | None
    """None where nothing was to be written."""
    nats: tuple[float, ...]
    """Negative log-likelihood of each continuation, given the prompt."""


SHORTEST = 0.75
"""Prompts of a HookedTransformer are read together with none shorter than this share of the longest: what is padded
costs as much as what is read. They are continued all at once, where padding costs little."""


@torch.inference_mode()
def read_prompts(
    model: HookedModel, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Sequence[str] = ()
) -> list[Reading]:
    """Weigh every prompt's continuations and, with ``max_new_tokens`` above 0, continue it greedily.

    On a HookedTransformer the prompts run once, and everything else goes on from their key-value cache; on a raw
    bridge prompts run again with each continuation.
    """
    if wrapped_model(model):
        ids = [prompt.ids for prompt in prompts]
        options = {"max_new_tokens": max_new_tokens, "stop": stop, "batch_size": len(ids)}
        written = generate(model, ids, **options) if max_new_tokens else []
        whole = [torch.cat([prompt.ids, answer]) for prompt in prompts for answer in prompt.continuations]
        skip = [len(prompt.ids) for prompt in prompts for _ in prompt.continuations]
        nats = _by_prompt(passage_nats(model, whole, skip=skip)[0], prompts)
    else:
        nats, written = _from_cache(model, prompts, max_new_tokens, stop)
    completions = written or [None] * len(prompts)
    return [Reading(completion, tuple(values)) for completion, values in zip(completions, nats, strict=True)]


def _from_cache(
    model: Any, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
) -> tuple[list[list[float]], list[Completion]]:
    """By prompt: nats of its continuations, and what was written where anything was to be."""
    order, nats, caches, last = _read(model, prompts)
    weighed = [values for _, values in sorted(zip(order, nats, strict=True))]
    if not max_new_tokens:
        return weighed, []
    reading, logits = Cached(model, concat_caches(caches)), all_logits(model, last)
    del caches  # as large as their copy
    rule, pick = StopRule.of(model.tokenizer, stop, max_new_tokens), picker(0.0, 1.0, 0)
    texts = continue_from(reading, logits, [prompts[row].ids for row in order], order, rule, pick)
    return weighed, [text for _, text in sorted(zip(order, texts, strict=True), key=itemgetter(0))]


def _read(
    model: Any, prompts: Sequence[Prompt]
) -> tuple[list[int], list[list[float]], list[Any], Float[Tensor, "row d_model"]]:
    """Prompts in the order of their length: which, nats of their continuations, caches, and their last states."""
    order, nats, caches, last = [], [], [], []
    for rows in _groups([len(prompt.ids) for prompt in prompts]):
        some, cache = [prompts[row] for row in rows], new_cache(model, len(rows))
        tokens, mask = left_padded([prompt.ids for prompt in some], device_of(model))
        options = {"stop_at_layer": model.cfg.n_layers, "attention_mask": mask}
        states = model(tokens, past_kv_cache=cache, **options)[:, -1]
        if not torch.isfinite(states).all():
            raise ValueError(f"The residual stream of {model.cfg.model_name} is not finite.")
        order, nats = [*order, *rows], [*nats, *_by_prompt(_answer_nats(model, cache, states, some), some)]
        caches, last = [*caches, cache], [*last, states]
    return order, nats, caches, torch.cat(last)


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
