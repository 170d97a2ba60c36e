"""Step-by-step decoding with a key-value cache; finished prompts leave the batch."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..model import HookedModel, all_logits, device_of, wrapped_model


def new_cache(model: Any, batch: int) -> Any:
    """An empty key-value cache of a HookedTransformer."""
    from transformer_lens import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), batch)


def cache_rows(cache: Any, rows: Int[Tensor, " row"], *, frozen: bool = False) -> Any:
    """A cache with these rows of ``cache``, one of them as often as it is named; a frozen one does not grow."""
    return _combined([cache], lambda tensors: tensors[0][rows.to(tensors[0].device)], frozen=frozen)


def concat_caches(caches: Sequence[Any]) -> Any:
    """One cache with the rows of several, the shorter ones padded on the left."""
    longest = max(cache.previous_attention_mask.shape[1] for cache in caches)

    def padded(tensor: Tensor) -> Tensor:
        # positions are the second axis
        return pad(tensor, (*[0] * (2 * tensor.ndim - 4), longest - tensor.shape[1], 0))

    return caches[0] if len(caches) == 1 else _combined(caches, lambda tensors: torch.cat([*map(padded, tensors)]))


def _combined(caches: Sequence[Any], combine: Callable[[list[Tensor]], Tensor], **options: Any) -> Any:
    """One cache, of whose tensors each is combined from those of several caches."""

    def one(parts: Sequence[Any], *names: str, **others: Any) -> Any:
        tensors = {name: combine([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **tensors, **others, **options)

    layers = zip(*(cache.entries for cache in caches), strict=True)
    entries = [one(same, "past_keys", "past_values") for same in layers]
    return one(caches, "previous_attention_mask", entries=entries)


@dataclass
class Cached:
    """A HookedTransformer that has read a batch of prompts into its cache and goes on from there."""

    model: Any
    cache: Any

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        """Logits of what follows new tokens (0 in the mask is padding)."""
        depth = self.model.cfg.n_layers
        stream = self.model(tokens, past_kv_cache=self.cache, stop_at_layer=depth, attention_mask=mask)
        return all_logits(self.model, stream[:, -1])

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these prompts only."""
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


Decoder = Cached | _Bridge | _NoCache


def decoder(model: HookedModel, batch: int, *, use_cache: bool = True) -> Decoder:
    """For ``batch`` prompts of which nothing is read yet."""
    if not use_cache:
        return _NoCache(model)
    return _Bridge(model) if wrapped_model(model) else Cached(model, new_cache(model, batch))
