"""Step-by-step decoding with a key-value cache; finished prompts leave the batch."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from .architecture import HookedModel, device_of, rope_boundaries, wrapped_model
from .checkpoints import lacks_memory
from .forward import renew_tables
from .unembedding import all_logits


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
        renew_tables(self.model)
        depth = self.model.cfg.n_layers
        stream = self.model(tokens, past_kv_cache=self.cache, stop_at_layer=depth, attention_mask=mask)
        return all_logits(self.model, stream[:, -1]).to(tokens.device)

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these prompts only."""
        self.cache = cache_rows(self.cache, rows)


_without_cache: WeakSet[HookedModel] = WeakSet()
"""Bridges whose key-value cache does not fill, of which a warning was given."""


@dataclass
class _Bridge:
    """A raw bridge, which goes on without a cache where that does not hold what was read."""

    model: HookedModel
    use_cache: bool
    tokens: Tensor | None = None
    mask: Tensor | None = None
    past: Any = None
    turns: tuple[int, ...] = ()
    """Numbers of tokens above which all of them are rotated by other angles: they are read again then."""

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        """Logits of what follows new tokens (0 in the mask is padding)."""
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        read_before = 0 if self.mask is None else int(self.mask.sum(1).max())
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        if any(read_before <= length < int(self.mask.sum(1).max()) for length in self.turns):
            self.past = None  # its keys were rotated by other angles
        out = self._with_cache(self.tokens if self.past is None else tokens) if self.use_cache else None
        if out is None:
            out = self._forward(self.tokens)  # what goes wrong with the cache may have gone into the pass before
        return getattr(out, "logits", out)[:, -1].to(tokens.device)

    def _with_cache(self, tokens: Int[Tensor, "batch new"]) -> Any:
        """One pass; None, and no cache from now on, where it does not hold what was read, or stops the first pass."""
        begins = self.past is None
        try:
            out = self._forward(tokens)
        except RuntimeError as error:  # layers that share one place in it, as in a model stacked from copies
            if not begins or lacks_memory(error):
                raise
            out = None
        self.past = getattr(out, "past_key_values", None)
        if self._holds_everything():
            return out
        self._do_without_cache()
        return None

    def _forward(self, tokens: Int[Tensor, "batch new"]) -> Any:
        hf_model = wrapped_model(self.model)
        assert self.mask is not None
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1, "use_cache": self.use_cache}
        options |= {} if self.past is None else {"past_key_values": self.past}
        accepted = inspect.signature(hf_model.forward).parameters
        options = {name: value for name, value in options.items() if name in accepted}
        return hf_model(tokens, attention_mask=self.mask, **options)

    def _holds_everything(self) -> bool:
        """Whether the cache says, in every layer that can, that it holds all tokens that were read."""
        assert self.tokens is not None
        layers = [layer for layer in getattr(self.past, "layers", ()) if hasattr(layer, "get_seq_length")]
        return bool(layers) and all(int(layer.get_seq_length()) == self.tokens.shape[1] for layer in layers)

    def _do_without_cache(self) -> None:
        self.past, self.use_cache = None, False
        if self.model not in _without_cache:
            _without_cache.add(self.model)
            warnings.warn(
                f"The key-value cache of {self.model.cfg.model_name} does not hold the tokens that were read: it "
                "writes without one, every token after a new pass over all of them, which is slower.",
                stacklevel=2,
            )

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these prompts only."""
        assert self.tokens is not None
        assert self.mask is not None
        self.tokens, self.mask = self.tokens[rows], self.mask[rows]
        if self.past is not None:
            self.past.reorder_cache(rows)  # for a choice of rows too, and in every kind of layer


@dataclass
class _NoCache:
    """A HookedTransformer of which every step runs the whole sequence again."""

    model: HookedModel
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def advance(self, tokens: Int[Tensor, "batch new"], mask: Int[Tensor, "batch new"]) -> Float[Tensor, "batch token"]:
        self.seen.append((tokens, mask))
        tokens, mask = (torch.cat(parts, 1) for parts in zip(*self.seen, strict=True))
        renew_tables(self.model)
        stream = self.model(tokens, stop_at_layer=self.model.cfg.n_layers, attention_mask=mask)
        return all_logits(self.model, stream[:, -1]).to(tokens.device)

    def select_rows(self, rows: Int[Tensor, " row"]) -> None:
        self.seen = [(tokens[rows], mask[rows]) for tokens, mask in self.seen]


Decoder = Cached | _Bridge | _NoCache


def decoder(model: HookedModel, batch: int, *, use_cache: bool = True) -> Decoder:
    """For ``batch`` prompts of which nothing is read yet."""
    if wrapped_model(model):
        return _Bridge(model, use_cache and model not in _without_cache, turns=rope_boundaries(model))
    # whose keys and values are wider than the cache that TransformerLens makes
    ungrouped = getattr(model.cfg, "ungroup_grouped_query_attention", False)
    return Cached(model, new_cache(model, batch)) if use_cache and not ungrouped else _NoCache(model)
