"""Step-by-step decoding with a key-value cache; finished prompts leave the batch."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..model import HookedModel, all_logits, device_of, wrapped_model


@runtime_checkable
class Decoder(Protocol):
    """A model that has read a batch of prompts and goes on from there."""

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        """Logits of what follows new tokens (0 in the mask is padding)."""
        ...

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these prompts only."""
        ...


def decoder(model: HookedModel, batch: int, *, use_cache: bool = True) -> Decoder:
    """For ``batch`` prompts of which nothing is read yet."""
    if not use_cache:
        return _NoCache(model)
    return _Bridge(model) if wrapped_model(model) else Cached(model, new_cache(model, batch))


def new_cache(model: Any, batch: int) -> Any:
    """An empty key-value cache of a HookedTransformer."""
    from transformer_lens import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), batch)


def cache_rows(cache: Any, rows: Int[Tensor, " row"], *, frozen: bool = False) -> Any:
    """A cache with these rows of ``cache``, one of them as often as it is named; a frozen one does not grow."""
    entries = [
        replace(
            entry,
            past_keys=entry.past_keys[rows.to(entry.past_keys.device)],
            past_values=entry.past_values[rows.to(entry.past_values.device)],
            frozen=frozen,
        )
        for entry in cache.entries
    ]
    mask = cache.previous_attention_mask
    return replace(cache, entries=entries, previous_attention_mask=mask[rows.to(mask.device)], frozen=frozen)


def concat_caches(caches: Sequence[Any]) -> Any:
    """One cache with the rows of several, the shorter ones padded on the left."""
    if len(caches) == 1:
        return caches[0]
    longest = max(cache.previous_attention_mask.shape[1] for cache in caches)

    def padded(tensor: Tensor) -> Tensor:
        # positions are the second axis
        return pad(tensor, (*[0] * (2 * tensor.ndim - 4), longest - tensor.shape[1], 0))

    entries = [
        replace(
            same[0],
            past_keys=torch.cat([padded(entry.past_keys) for entry in same]),
            past_values=torch.cat([padded(entry.past_values) for entry in same]),
        )
        for same in zip(*(cache.entries for cache in caches), strict=True)
    ]
    mask = torch.cat([padded(cache.previous_attention_mask) for cache in caches])
    return replace(caches[0], entries=entries, previous_attention_mask=mask)


@dataclass
class Cached:
    """A HookedTransformer with its cache."""

    model: Any
    cache: Any

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        """See :class:`Decoder`."""
        options = {"stop_at_layer": self.model.cfg.n_layers, "attention_mask": mask}
        stream = self.model(tokens, past_kv_cache=self.cache, **options)
        return all_logits(self.model, stream[:, -1])

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        """See :class:`Decoder`."""
        self.cache = cache_rows(self.cache, rows)


@dataclass
class _Bridge:
    model: Any
    past: Any = None
    mask: Tensor | None = None

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        hf_model = wrapped_model(self.model)
        accepted = inspect.signature(hf_model.forward).parameters
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        options = {name: value for name, value in options.items() if name in accepted}
        out = hf_model(tokens, attention_mask=self.mask, past_key_values=self.past, use_cache=True, **options)
        self.past = out.past_key_values
        return out.logits[:, -1]

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        assert self.mask is not None
        self.mask = self.mask[rows]
        self.past.reorder_cache(rows)  # for a choice of rows too, and in every kind of layer


@dataclass
class _NoCache:
    """Every step runs the whole sequence again."""

    model: HookedModel
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        self.seen.append((tokens, mask))
        whole = (torch.cat(parts, 1) for parts in zip(*self.seen, strict=True))
        return decoder(self.model, len(tokens)).advance(*whole)

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        self.seen = [(tokens[rows], mask[rows]) for tokens, mask in self.seen]
