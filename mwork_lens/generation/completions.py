"""A decoding loop: batched, with a key-value cache, and only the last position is unembedded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..model import HookedModel, device_of, dtype_of, encode, end_ids, settled, wrapped_model
from ..model.architecture import rope_boundaries
from ..model.decoding import Decoder, decoder
from ..model.unembedding import require_numbers
from ..store.processes import hidden
from ..text import ONE_TOKEN, Document, as_documents, check_arguments, warn_of_unknown
from .own_settings import own_stop_strings, warn_of_settings

Pick = Callable[[Float[Tensor, "batch token"], Sequence[int]], list[int]]
"""From logits and the prompts' numbers to the next token of each."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    """Up to a stop string; without special tokens. Empty for a model without a tokenizer."""
    tokens: tuple[int, ...]
    """The new token ids, without an end token; with those of a stop string."""
    stopped: Literal["end", "stop", "length"]
    """By an end token, a stop string, or ``max_new_tokens``."""


@torch.inference_mode()
def generate(
    model: HookedModel,
    prompts: Sequence[Document],
    *,
    max_new_tokens: int = 32,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    use_cache: bool = True,
    progress: bool = False,
) -> list[Completion]:
    """Continue every prompt, greedily or by seeded sampling.

    Hooks that are in place act on every step, on the prompts that are not finished yet. The tokenizer's end token, and
    the end tokens and stop strings of the model's ``generation_config``, end a completion. Settings there that ask for
    something else than the likeliest tokens (a repetition penalty, beams, ...) are not applied, and warn.

    Args:
        model: a hooked model.
        prompts: texts, or 1-D tensors of token ids.
        max_new_tokens: after which a completion ends.
        stop: strings before which a completion is cut; white space as one (a new line) counts from the first other
            character on, and one that is a special token ends a completion as the end token does.
        temperature: 0 takes the likeliest token; otherwise tokens that the tokenizer has are sampled at it.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling; each prompt has its own draws, whatever it is batched with.
        batch_size: prompts at a time, of like length, padded on the left and masked.
        use_cache: whether keys and values are kept; results do not depend on it (up to rounding).
        progress: whether to show a bar.

    Raises:
        ValueError: for options out of range, or a prompt that leaves no room in the model's context.
    """
    check_arguments(generate, locals())
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"{max_new_tokens=} and {batch_size=} must be at least 1.")
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(f"{temperature=} must be 0 or more, and {top_p=} in (0, 1].")
    prompts = as_documents(prompts, "prompts")
    names = [f"prompt {i}" for i in range(len(prompts))]
    encoded = encode(model, prompts, names, None)
    texts = [ids for ids, prompt in zip(encoded, prompts, strict=True) if isinstance(prompt, str)]
    warn_of_unknown(model.tokenizer, {"prompts": texts}, effect=ONE_TOKEN, stacklevel=3)
    for ids, name in zip(encoded, names, strict=True):
        if len(ids) + max_new_tokens > model.cfg.n_ctx:
            raise ValueError(
                f"{name} has {len(ids)} tokens; with {max_new_tokens=} that is more than the context of "
                f"{model.cfg.model_name}, {model.cfg.n_ctx}."
            )
    rule = StopRule.of(model, stop, max_new_tokens)
    pick = picker(temperature, top_p, seed, _decodable(model) if temperature else None)
    lengths = [len(ids) for ids in encoded]
    # transformers' softmax in float32 makes masks of float64 infinite, and padding NaN
    turns = (
        range(max(lengths, default=0))
        if dtype_of(model) == torch.float64 and wrapped_model(model)
        else rope_boundaries(model)
    )
    groups = _groups(lengths, batch_size, max_new_tokens, turns)
    completions: dict[int, Completion] = {}
    with settled(model), tqdm(groups, desc="generating", unit="batch", disable=hidden(progress)) as bar:
        for rows in bar:
            batch, reader = [encoded[i] for i in rows], decoder(model, len(rows), use_cache=use_cache)
            logits = reader.advance(*left_padded(batch, device_of(model)))
            completions |= dict(zip(rows, continue_from(reader, logits, batch, rows, rule, pick), strict=True))
    return [completions[i] for i in range(len(prompts))]


def _groups(lengths: Sequence[int], size: int, new: int, turns: Sequence[int]) -> list[list[int]]:
    """At most ``size`` rows of like length together, which pass every length in ``turns`` at the same step or never."""

    def together(row: int) -> tuple[int, int]:
        length = lengths[row]
        return sum(length > turn for turn in turns), length if any(
            length <= turn < length + new for turn in turns
        ) else 0

    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    parts = [list(rows) for _, rows in groupby(by_length, key=together)]
    return [rows[start : start + size] for rows in parts for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class StopRule:
    """What ends a completion."""

    tokenizer: Any
    strings: tuple[str, ...]
    ids: frozenset[int]
    max_new_tokens: int

    @classmethod
    def of(cls, model: HookedModel, stop: Sequence[str], max_new_tokens: int) -> "StopRule":
        """Of a model, which knows its end tokens, and stop strings, which need its tokenizer."""
        tokenizer, ids = model.tokenizer, end_ids(model)
        if isinstance(stop, str):
            raise ValueError(f"stop={stop!r} must be a list of strings.")
        warn_of_settings(model)
        if tokenizer is None:
            if stop:
                raise ValueError("Stop strings need a tokenizer, which the model does not have.")
            return cls(None, (), ids, max_new_tokens)
        stop = [*stop, *own_stop_strings(model)]
        special = [word for word in stop if word in tokenizer.all_special_tokens]
        strings = tuple(word for word in stop if word and word not in special)
        return cls(tokenizer, strings, ids.union(map(tokenizer.convert_tokens_to_ids, special)), max_new_tokens)

    def text(self, last: int, new: Sequence[int]) -> str:
        """The new tokens as text; the prompt's last one decides whether a space stands before them."""
        if self.tokenizer is None:
            return ""
        before = self.tokenizer.decode([last], skip_special_tokens=True)
        return self.tokenizer.decode([last, *new], skip_special_tokens=True).removeprefix(before)

    def cut(self, text: str) -> str:
        """``text`` up to the first stop string; what begins on a new line is not over there."""
        begun = len(text) - len(text.lstrip())
        places = (text.find(word, 0 if word.strip() else begun) for word in self.strings)
        return text[: min((place for place in places if place >= 0), default=len(text))]


def continue_from(
    reader: Decoder,
    logits: Float[Tensor, "batch token"],
    prompts: Sequence[Int[Tensor, " _"]],
    names: Sequence[int],
    rule: StopRule,
    pick: Pick,
) -> list[Completion]:
    """Completions of prompts that ``reader`` has read: ``logits`` are of what follows them."""
    new: list[list[int]] = [[] for _ in prompts]
    stopped: list[Any] = [None] * len(prompts)
    unfinished = list(range(len(prompts)))
    for step in range(rule.max_new_tokens):
        picked = pick(require_numbers(reader.model, logits), [names[row] for row in unfinished])
        tokens = dict(zip(unfinished, picked, strict=True))
        for row, token in tokens.items():
            if token in rule.ids:
                stopped[row] = "end"
                continue
            new[row].append(token)
            text = rule.text(int(prompts[row][-1]), new[row]) if rule.strings else ""
            stopped[row] = "stop" if rule.cut(text) != text else None
        places = [place for place, row in enumerate(unfinished) if not stopped[row]]
        if not places or step == rule.max_new_tokens - 1:
            break
        if len(places) < len(unfinished):
            reader.select_rows(torch.tensor(places, device=logits.device))
        unfinished = [unfinished[place] for place in places]
        column = torch.tensor([tokens[row] for row in unfinished], device=logits.device)[:, None]
        logits = reader.advance(column, torch.ones_like(column))
    return [
        Completion(rule.cut(rule.text(int(ids[-1]), written)), tuple(written), reason or "length")
        for ids, written, reason in zip(prompts, new, stopped, strict=True)
    ]


def left_padded(prompts: Sequence[Int[Tensor, " _"]], device: torch.device) -> Int[Tensor, "2 batch pos"]:
    """Tokens and their mask, so that every prompt ends at the last position."""
    pairs = [torch.stack([ids, torch.ones_like(ids)], dim=1) for ids in prompts]
    return pad_sequence(pairs, batch_first=True, padding_side="left").movedim(-1, 0).to(device)


def _decodable(model: HookedModel) -> Bool[Tensor, " token"] | None:
    """Ids that the tokenizer has: a vocabulary may be padded with others. None without a tokenizer."""
    if model.tokenizer is None:
        return None
    ids = torch.tensor([*model.tokenizer.get_vocab().values()])
    return torch.zeros(int(max(ids.max() + 1, model.cfg.d_vocab)), dtype=torch.bool).index_fill(0, ids, True)


def picker(temperature: float, top_p: float, seed: int, among: Bool[Tensor, " token"] | None = None) -> Pick:
    """The likeliest token, or a seeded draw among some tokens (all if None)."""
    if temperature == 0:
        return lambda logits, names: logits.argmax(-1).tolist()

    @cache
    def generator(name: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(seed) * 1_000_003 + name)

    def sample(logits: Tensor, names: Sequence[int]) -> list[int]:
        logits = logits.double().cpu()
        if among is not None:
            logits = logits.masked_fill(~among[: logits.shape[-1]], -torch.inf)
        probabilities = _nucleus((logits / temperature).softmax(-1), top_p)
        draws = zip(probabilities, names, strict=True)
        return [int(torch.multinomial(row, 1, generator=generator(name))) for row, name in draws]

    return sample


def _nucleus(probabilities: Float[Tensor, "batch token"], top_p: float) -> Float[Tensor, "batch token"]:
    """Zero where likelier tokens already have ``top_p`` together."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    left_out = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.masked_fill(left_out.gather(-1, order.argsort(-1)), 0)
