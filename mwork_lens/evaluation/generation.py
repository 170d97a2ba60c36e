"""Our own decoding loop: batched, with a key-value cache, and only the last position is unembedded."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..batches import encode
from ..corpora import Document
from ..lens.readout import final_norm, logit_parts, soft_cap
from ..sites import HookedModel

BATCH_SIZE = 16

Advance = Callable[[Int[Tensor, "batch new"], Int[Tensor, "batch new"]], Float[Tensor, "batch token"]]
"""New tokens and their mask (0 is padding) in, logits of what follows out."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    """Up to a stop string; without special tokens. Empty for a model without a tokenizer."""
    tokens: tuple[int, ...]
    """The new token ids, without the end token; with those of a stop string."""
    stopped: Literal["end", "stop", "length"]
    """By the end token, a stop string, or ``max_new_tokens``."""


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
    batch_size: int = BATCH_SIZE,
    use_cache: bool = True,
    progress: bool = False,
) -> list[Completion]:
    """Continue every prompt, greedily or by seeded sampling; hooks that are in place act on every step.

    Args:
        model: a hooked model.
        prompts: texts, or 1-D tensors of token ids.
        max_new_tokens: after which a completion ends.
        stop: strings before which a completion is cut; one that is a special token ends it as the end token does.
        temperature: 0 takes the likeliest token; otherwise tokens are sampled at this temperature.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling; each prompt has its own draws, whatever it is batched with.
        batch_size: prompts at a time, of like length, padded on the left and masked.
        use_cache: whether keys and values are kept; results do not depend on it (up to rounding).
        progress: whether to show a bar.

    Raises:
        ValueError: for options out of range, or a prompt that leaves no room in the model's context.
    """
    _require_options(max_new_tokens, temperature, top_p, batch_size)
    names = [f"prompt {i}" for i in range(len(prompts))]
    encoded = encode(model, prompts, names, None) if prompts else []
    for ids, name in zip(encoded, names, strict=True):
        if len(ids) + max_new_tokens > model.cfg.n_ctx:
            raise ValueError(
                f"{name} has {len(ids)} tokens; with {max_new_tokens=} that is more than the context of "
                f"{model.cfg.model_name}, {model.cfg.n_ctx}."
            )
    ends = Ends.of(model.tokenizer, stop)
    pick = picker(temperature, top_p, seed)
    by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    done: dict[int, Completion] = {}
    for start in tqdm(range(0, len(by_length), batch_size), desc="generating", unit="batch", disable=not progress):
        rows = by_length[start : start + batch_size]
        written = _continue(model, [encoded[i] for i in rows], rows, max_new_tokens, ends, pick, use_cache)
        done |= dict(zip(rows, written, strict=True))
    return [done[i] for i in range(len(prompts))]


def _require_options(max_new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"{max_new_tokens=} and {batch_size=} must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"{temperature=} must be 0 or more, and {top_p=} in (0, 1].")


# --- where a completion ends ---


@dataclass(frozen=True)
class Ends:
    """What ends a completion."""

    tokenizer: Any
    strings: tuple[str, ...]
    ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, stop: Sequence[str]) -> "Ends":
        """Of a tokenizer and stop strings, which need one."""
        if isinstance(stop, str):
            raise ValueError(f"stop={stop!r} must be a list of strings.")
        if tokenizer is None:
            if stop:
                raise ValueError("Stop strings need a tokenizer, which the model does not have.")
            return cls(None, (), frozenset())
        special = [word for word in stop if word in tokenizer.all_special_tokens]
        ids = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(word) for word in special)} - {None}
        return cls(tokenizer, tuple(word for word in stop if word and word not in special), frozenset(ids))

    def text(self, last: int, new: Sequence[int]) -> str:
        """The new tokens as text; the prompt's last one decides whether a space stands before them."""
        if self.tokenizer is None:
            return ""
        before = self.tokenizer.decode([last], skip_special_tokens=True)
        return self.tokenizer.decode([last, *new], skip_special_tokens=True).removeprefix(before)

    def cut(self, text: str) -> str:
        """``text`` up to the first stop string."""
        return text[: min((at for word in self.strings if (at := text.find(word)) >= 0), default=len(text))]


def _continue(
    model: HookedModel,
    prompts: Sequence[Int[Tensor, " _"]],
    names: Sequence[int],
    max_new_tokens: int,
    ends: Ends,
    pick: "Pick",
    use_cache: bool,
) -> list[Completion]:
    tokens, mask = left_padded(prompts, next(model.parameters()).device)  # pyright: ignore
    advance = _advance(model, len(prompts), use_cache)
    return write_on(advance, advance(tokens, mask), prompts, names, max_new_tokens, ends, pick)


def write_on(
    advance: Advance,
    logits: Float[Tensor, "batch token"],
    prompts: Sequence[Int[Tensor, " _"]],
    names: Sequence[int],
    max_new_tokens: int,
    ends: Ends,
    pick: "Pick",
) -> list[Completion]:
    """Completions of prompts that were read already: ``logits`` are of what follows them."""
    new: list[list[int]] = [[] for _ in prompts]
    stopped: list[Any] = [None] * len(prompts)
    for step in range(max_new_tokens):
        chosen = pick(logits, names)
        for row, token in enumerate(chosen):
            if stopped[row]:
                continue
            if token in ends.ids:
                stopped[row] = "end"
                continue
            new[row].append(token)
            text = ends.text(int(prompts[row][-1]), new[row]) if ends.strings else ""
            stopped[row] = "stop" if ends.cut(text) != text else None
        if all(stopped) or step == max_new_tokens - 1:
            break
        tokens = torch.tensor(chosen, device=logits.device)[:, None]
        logits = advance(tokens, torch.ones_like(tokens))
    return [
        Completion(ends.cut(ends.text(int(ids[-1]), made)), tuple(made), why or "length")
        for ids, made, why in zip(prompts, new, stopped, strict=True)
    ]


def left_padded(
    prompts: Sequence[Int[Tensor, " _"]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens and their mask, so that every prompt ends at the last position."""
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, longest - len(ids) :] = ids
        mask[row, longest - len(ids) :] = 1
    return tokens.to(device), mask.to(device)


# --- one step of the model ---


def _advance(model: HookedModel, batch: int, use_cache: bool) -> Advance:
    step = _bridge_step if hasattr(model, "original_model") else _hooked_step
    return step(model, batch) if use_cache else _whole(lambda: step(model, batch))


def _whole(fresh: Callable[[], Advance]) -> Advance:
    """Without a cache that lives on: every step runs all tokens again."""
    seen: list[tuple[Tensor, Tensor]] = []

    def advance(tokens: Tensor, mask: Tensor) -> Tensor:
        seen.append((tokens, mask))
        return fresh()(*(torch.cat(parts, 1) for parts in zip(*seen, strict=True)))

    return advance


def _hooked_step(model: Any, batch: int) -> Advance:
    return hooked_step(model, new_cache(model, batch))


def new_cache(model: Any, batch: int) -> Any:
    """An empty key-value cache of a HookedTransformer."""
    from transformer_lens import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, next(model.parameters()).device, batch)


def hooked_step(model: Any, cache: Any) -> Advance:
    """A step of a HookedTransformer that goes on from what ``cache`` holds."""

    def advance(tokens: Tensor, mask: Tensor) -> Tensor:
        stream = model(tokens, stop_at_layer=model.cfg.n_layers, past_kv_cache=cache, attention_mask=mask)
        return next_logits(model, stream[:, -1])

    return advance


def next_logits(model: HookedModel, hidden: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch token"]:
    """Logits of what follows, from the residual stream after the last block."""
    parts = [logits for _, logits in logit_parts(model, final_norm(model, hidden))]
    return soft_cap(model, torch.cat(parts).t())


def _bridge_step(model: Any, batch: int) -> Advance:
    theirs = model.original_model
    accepted = inspect.signature(theirs.forward).parameters
    kept: dict[str, Any] = {"past_key_values": None, "mask": None}

    def advance(tokens: Tensor, mask: Tensor) -> Tensor:
        whole = mask if kept["mask"] is None else torch.cat([kept["mask"], mask], 1)
        positions = (whole.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        options = {name: value for name, value in options.items() if name in accepted}
        past = kept["past_key_values"]
        out = theirs(tokens, attention_mask=whole, past_key_values=past, use_cache=True, **options)
        kept.update(past_key_values=out.past_key_values, mask=whole)
        return out.logits[:, -1]

    return advance


# --- choosing a token ---

Pick = Callable[[Float[Tensor, "batch token"], Sequence[int]], list[int]]


def picker(temperature: float, top_p: float, seed: int) -> Pick:
    """The likeliest token, or a seeded draw."""
    if temperature == 0:
        return lambda logits, names: logits.argmax(-1).tolist()
    generators: dict[int, torch.Generator] = {}

    def sample(logits: Tensor, names: Sequence[int]) -> list[int]:
        probabilities = _nucleus((logits.double().cpu() / temperature).softmax(-1), top_p)
        for name in names:
            if name not in generators:
                generators[name] = torch.Generator().manual_seed(seed * 1_000_003 + name)
        return [
            int(torch.multinomial(row, 1, generator=generators[name]))
            for row, name in zip(probabilities, names, strict=True)
        ]

    return sample


def _nucleus(probabilities: Float[Tensor, "batch token"], top_p: float) -> Float[Tensor, "batch token"]:
    """Zero where likelier tokens already have ``top_p`` together."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    left_out = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.masked_fill(left_out.gather(-1, order.argsort(-1)), 0)
