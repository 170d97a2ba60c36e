"""Questions asked under conditions (which neurons are off), each prompt read once; a killed run goes on."""

import contextlib
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..effects import passage_nats
from ..generation.completions import Completion, StopRule, continue_from, generate, left_padded, picker
from ..model import (
    HookedModel,
    all_logits,
    device_of,
    model_record,
    settled,
    token_losses,
    wrapped_model,
)
from ..model.dealing import dealt
from ..model.decoding import Cached, cache_rows, concat_caches, new_cache
from ..neurons import NeuronSet, ablate, edit_weights, silencing_entries, warn_of_other_weights
from ..store import only_writer, processes, user_path
from ..store.processes import hidden
from ..text import ONE_TOKEN, warn_of_unknown
from .answers import KEY, Key, append, by_key, gather, own_file, read_answers
from .prompts import Prompt
from .task import Answer, Task

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
        nats = _by_prompt(passage_nats(model, whole, skip=skip, special=True)[0], prompts)
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
    rule, pick = StopRule.of(model, stop, max_new_tokens), picker(0.0, 1.0, 0)
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


logger = logging.getLogger("mwork_lens")


@dataclass(frozen=True)
class Condition:
    """Which neurons are off, and in which languages questions are asked then."""

    arm: str
    """How the neurons were chosen; ``original`` where none are off."""
    part: str
    """In which part of the model they lie; empty for ``original``."""
    off: str | None
    """Whose neurons they are (or stand for)."""
    neurons: NeuronSet | None
    reads: tuple[str, ...]


Work = list[tuple[Condition, list[Sequence[Prompt]]]]
"""Batches of questions, by the condition under which they are asked."""


def run_task(
    model: HookedModel,
    task: Task,
    prompts: Mapping[str, Sequence[Prompt]],
    conditions: Sequence[Condition],
    path: str | Path,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    in_full: int | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Ask every condition's questions; each answer is a line of ``path``, and those that are there are not asked again.

    Batches, and so the rows that are returned (those of :class:`TaskResult`), are the same whatever was asked before.
    An answer ends after ``max_new_tokens``, by default the task's own limit. ``in_full`` is how many answers a run
    without a limit would take, for the estimate of its time. Answers of another model or dtype are refused. Several
    processes deal out the batches.
    """
    max_new_tokens = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    require_room(model, prompts, max_new_tokens)
    every = {language: [ids for p in some for ids in (p.ids, *p.continuations)] for language, some in prompts.items()}
    warn_of_unknown(model.tokenizer, every, effect=ONE_TOKEN)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    warn_of_other_weights(model, [condition.neurons for condition in conditions if condition.neurons is not None])
    record = model_record(model)
    work = [(condition, _batches(prompts, condition.reads, batch_size)) for condition in conditions]
    with only_writer(path.parent), settled(model):
        rows = read_answers(path, record)
        left = [(c, [batch for batch in every if not all(_key(c, p) in rows for p in batch)]) for c, every in work]
        done, file = _answers(work) - _answers(left), own_file(path)
        left = _share(left, max_new_tokens)
        start, logged = time.perf_counter(), False
        with tqdm(total=done + _answers(left), initial=done, disable=hidden(progress)) as bar:
            for condition, batches in left:
                bar.set_description(" ".join(filter(None, (condition.arm, condition.part, condition.off))))
                with _switched_off(model, condition.neurons if batches else None):
                    for batch in batches:
                        length = _to_write(batch, max_new_tokens)
                        read = read_prompts(model, batch, max_new_tokens=length, stop=(*task.stop, *batch[0].stop))
                        answered = [_row(task, condition, *each) for each in zip(batch, *read, strict=True)]
                        answered = [{**row, "fingerprint": record["fingerprint"]} for row in answered]
                        append(file, answered)
                        rows |= by_key(answered)
                        bar.update(len(batch))
                        if not logged:
                            seconds, logged = time.perf_counter() - start, True
                            _log_estimate(
                                [batch for _, every in left for batch in every], seconds, max_new_tokens, in_full
                            )
        order = [_key(condition, prompt) for condition, batches in work for batch in batches for prompt in batch]
        gather(path, rows, order)
    return [rows[key] for key in order]


def _answers(work: Work) -> int:
    return sum(len(batch) for _, batches in work for batch in batches)


def _share(work: Work, max_new_tokens: int) -> Work:
    """Of several processes this one's batches."""
    costs = [_tokens(batch, max_new_tokens) for _, batches in work for batch in batches]
    mine, places = set(dealt(costs, processes.count())[processes.number()]), itertools.count()
    return [(condition, [batch for batch in batches if next(places) in mine]) for condition, batches in work]


def _batches(prompts: Mapping[str, Sequence[Prompt]], reads: Sequence[str], size: int) -> list[Sequence[Prompt]]:
    """Of one language each, of like length."""
    ordered = [sorted(prompts[read], key=lambda prompt: len(prompt.ids)) for read in reads]
    return [some[start : start + size] for some in ordered for start in range(0, len(some), size)]


def require_room(model: HookedModel, prompts: Mapping[str, Sequence[Prompt]], max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit into the model's context together with its answers."""
    for prompt in itertools.chain(*prompts.values()):
        answer = max(_to_write([prompt], max_new_tokens), *map(len, prompt.continuations))
        if len(prompt.ids) + answer > model.cfg.n_ctx:
            raise ValueError(
                f"Question {prompt.question.id!r} ({prompt.question.language}) has {len(prompt.ids)} tokens; with an "
                f"answer of {answer} that is more than the context of {model.cfg.model_name}, {model.cfg.n_ctx}."
            )


def _key(condition: Condition, prompt: Prompt) -> Key:
    return condition.arm, condition.part, condition.off, prompt.question.language, prompt.question.id


def _tokens(batch: Sequence[Prompt], max_new_tokens: int) -> int:
    """To read and to write."""
    return sum(len(p.ids) + sum(map(len, p.continuations)) + _to_write([p], max_new_tokens) for p in batch)


def _to_write(batch: Sequence[Prompt], max_new_tokens: int) -> int:
    return 0 if batch[0].question.choices else max_new_tokens


def _switched_off(model: HookedModel, neurons: NeuronSet | None) -> contextlib.AbstractContextManager[Any]:
    """By weights, which cost nothing while writing; by hooks where the model's weights are copies."""
    if neurons is None:
        return contextlib.nullcontext()
    try:
        silencing_entries(model, neurons)
    except ValueError:
        return ablate(model, neurons)
    return edit_weights(model, neurons)


def _row(
    task: Task, condition: Condition, prompt: Prompt, nats: Sequence[float], completion: Completion | None
) -> dict[str, Any]:
    question = prompt.question
    lengths = [len(answer) for answer in prompt.continuations]
    if question.choices:
        by_token = [total / n for total, n in zip(nats[1:], lengths[1:], strict=True)]
        answer, stopped = Answer(question.choices[by_token.index(min(by_token))]), "choice"
    else:
        assert completion is not None
        answer, stopped = Answer(completion.text, cut=completion.stopped == "length"), completion.stopped
    options = {"choice_nats": nats[1:], "choice_tokens": lengths[1:]} if question.choices else {}
    return {
        **dict(zip(KEY, _key(condition, prompt), strict=True)),
        "document": question.document,
        "output": answer.output,
        "stopped": stopped,
        "scores": dict(task.score(question, answer)),
        "nats": nats[0],
        "tokens": lengths[0],
        **options,
    }


def _log_estimate(
    batches: Sequence[Sequence[Prompt]], seconds: float, max_new_tokens: int, in_full: int | None
) -> None:
    """What the time of the first batch says of all of them, by their tokens."""
    answers, costs = sum(map(len, batches)), [_tokens(batch, max_new_tokens) for batch in batches]
    whole = seconds * sum(costs) / costs[0]
    all_of_them, unlimited = map(tqdm.format_interval, (whole, whole * (in_full or 0) / answers))
    full = f"; without a limit, {in_full:,} answers, about {unlimited}" if in_full else ""
    first = f"The first {len(batches[0])} of {answers} answers took {seconds:.1f} s"
    logger.info("%s: about %s (hours:minutes:seconds) for all%s.", first, all_of_them, full)
