"""A corpus as token ids, its batches planned before any of them runs, and one streamed forward pass over them."""

import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..store.processes import hidden
from ..text import Corpus, Document, as_corpus, warn_of_unknown
from .architecture import (
    HookedModel,
    device_of,
    rope_boundaries,
    run_wrapped,
    special_ids,
    stream_hook,
    wrapped_model,
)
from .budget import Budget
from .encoding import encode
from .hooks import ForwardHook, hooked
from .memory import peak_memory, readable
from .state import settled
from .unembedding import require_same_readout

MAX_TOKENS = 512
"""Where documents are cut by default."""


@dataclass(frozen=True)
class TokenBatch:
    """Some documents of one language as tokens, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    content: Bool[Tensor, "batch pos"]
    """Ordinary tokens: neither special nor padding. Only these positions are scored."""
    lengths: tuple[int, ...]
    """Tokens of each document without the padding."""
    rows: tuple[int, ...]
    """Which of the language's documents these are."""
    language: str = ""
    number: int = 0
    """The place of the batch in its plan."""

    @cached_property
    def ends(self) -> Int[Tensor, " batch"]:
        """The lengths, beside the tokens."""
        return torch.tensor(self.lengths, dtype=torch.int32).to(self.content.device, non_blocking=True)

    @cached_property
    def scored(self) -> Int[Tensor, "batch 1"]:
        """Positions of each document that are scored."""
        return self.content.sum(-1, keepdim=True)

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on a device, which nothing waits for."""
        tokens, content = (each.to(device, non_blocking=True) for each in (self.tokens, self.content))
        return replace(self, tokens=tokens, content=content)

    def copies(self, number: int) -> "TokenBatch":
        """A batch of one document, so many times."""
        tokens, content = (each.expand(number, -1) for each in (self.tokens, self.content))
        repeated = {"lengths": self.lengths * number, "rows": self.rows * number}
        return replace(self, tokens=tokens, content=content, **repeated)


@dataclass(frozen=True, eq=False)
class Encoded(Mapping[str, Sequence[Int[Tensor, " _"]]]):
    """Every document of every language as token ids. A mapping, language -> ids of each document."""

    corpus: Corpus
    ids: Mapping[str, Sequence[Int[Tensor, " _"]]]
    """On the CPU, cut at the limit."""
    special: Int[Tensor, " id"]
    """Token ids that are never scored."""
    budget: Budget
    """What fills a batch, decided by where the model is."""
    apart: tuple[int, ...] = ()
    """Documents up to and above these lengths are in no batch together: a model rotates the ones otherwise."""

    @classmethod
    def of(
        cls, model: HookedModel, corpus: Mapping[str, Sequence[Document]], max_tokens: int | None = MAX_TOKENS
    ) -> "Encoded":
        """The documents of a corpus, or of any dict of lists; refused where :func:`encode` refuses.

        A warning says by language what of them the tokenizer does not know.
        """
        corpus, ids = as_corpus(corpus), {}
        for language, documents in corpus.items():
            ids[language] = encode(model, documents, corpus.ids[language], max_tokens)
        warn_of_unknown(model.tokenizer, ids)
        return cls(corpus, ids, special_ids(model), Budget.of(model), rope_boundaries(model))

    def __getitem__(self, language: str) -> Sequence[Int[Tensor, " _"]]:
        return self.ids[language]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> dict[str, int]:
        """How many documents each language has."""
        return {language: len(ids) for language, ids in self.items()}

    @cached_property
    def ordinary(self) -> dict[str, Int[Tensor, " document"]]:
        """The ordinary tokens of each document, by language."""
        return {
            language: torch.tensor([int((~torch.isin(row, self.special)).sum()) for row in ids])
            for language, ids in self.items()
        }

    @property
    def tokens(self) -> dict[str, int]:
        """How many ordinary tokens each language has."""
        return {language: int(numbers.sum()) for language, numbers in self.ordinary.items()}

    def first(self, documents: Mapping[str, int]) -> "Encoded":
        """So many of the first documents of each language."""
        rows = {language: range(number) for language, number in documents.items()}
        ids = {language: self.ids[language][:number] for language, number in documents.items()}
        return replace(self, corpus=self.corpus.select(rows), ids=ids)

    @cached_property
    def hashes(self) -> dict[str, tuple[str, ...]]:
        """The identity of each document's token ids (SHA-256, shortened), by language."""
        return {
            language: tuple(hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in ids)
            for language, ids in self.items()
        }

    def plan(self, batch_size: int | None = None) -> "Plan":
        """Batches of documents of like length: ``batch_size`` documents, or as many as fit the budget.

        Raises:
            ValueError: for a batch size below 1.
        """
        groups = {language: _groups(ids, self.budget, batch_size, self.apart) for language, ids in self.items()}
        return Plan(self, tuple((language, rows) for language, group in groups.items() for rows in group))


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a whole corpus, fixed before any of them runs."""

    encoded: Encoded
    groups: Sequence[tuple[str, Sequence[int]]]
    """Language and documents of each batch."""
    done: frozenset[int] = frozenset()
    """Numbers of batches that ran before, and are not to run again."""
    elsewhere: frozenset[int] = frozenset()
    """Numbers of batches that run in other processes."""

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[TokenBatch]:
        return (self.batch(number) for number in self.left)

    @property
    def left(self) -> list[int]:
        """The numbers of the batches that are to run in this process."""
        others = self.done | self.elsewhere
        return [number for number in range(len(self)) if number not in others]

    def cost(self, number: int) -> int:
        """The tokens of a batch, with its padding."""
        language, rows = self.groups[number]
        return len(rows) * len(self.encoded[language][rows[-1]])  # the last is the longest

    def without(self, numbers: Iterable[int]) -> "Plan":
        """The same plan, of which these batches ran before."""
        return replace(self, done=self.done | frozenset(numbers))

    @property
    def documents(self) -> int:
        """How many documents are in the batches of this process."""
        return sum(len(rows) for number, (_, rows) in enumerate(self.groups) if number not in self.elsewhere)

    @property
    def documents_done(self) -> int:
        """How many of them are in batches that ran before."""
        return sum(len(self.groups[number][1]) for number in self.done - self.elsewhere)

    def batch(self, number: int) -> TokenBatch:
        """One of the batches, on the CPU."""
        language, rows = self.groups[number]
        return _batch(self.encoded[language], rows, self.encoded.special, language=language, number=number)

    @cached_property
    def hash(self) -> str:
        """The identity of the documents, of what is special in them, and of their batches (SHA-256, shortened)."""
        content = [self.encoded.hashes, self.encoded.special.tolist(), self.groups]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def batches(
    model: HookedModel, encoded: Sequence[Int[Tensor, " _"]], batch_size: int | None = None
) -> Iterator[TokenBatch]:
    """Batches, on the model's device, of documents that belong to no corpus; divided as by :meth:`Encoded.plan`."""
    special, device = special_ids(model), device_of(model)
    for rows in _groups(encoded, Budget.of(model), batch_size, rope_boundaries(model)):
        yield _batch(encoded, rows, special).to(device)


def _groups(
    encoded: Sequence[Tensor], budget: Budget, batch_size: int | None, apart: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    groups = []
    for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row])):
        size = len(groups[-1]) if groups else 0
        full = size == batch_size if batch_size else not budget.holds(size + 1, len(encoded[row]))
        ends = size and any(len(encoded[groups[-1][0]]) <= length < len(encoded[row]) for length in apart)
        if not size or full or ends:
            groups.append([])
        groups[-1].append(row)
    return [tuple(rows) for rows in groups]


def _batch(encoded: Sequence[Tensor], rows: Sequence[int], special: Int[Tensor, " id"], **place: Any) -> TokenBatch:
    ids = [encoded[row] for row in rows]
    content = pad_sequence([~torch.isin(each, special) for each in ids], batch_first=True)
    return TokenBatch(pad_sequence(ids, batch_first=True), content, tuple(map(len, ids)), tuple(rows), **place)


class Running:
    """The forward pass that is running: what hooks read."""

    batch: TokenBatch

    def beside(self, activation: Tensor) -> TokenBatch:
        """The batch on the device of a layer, to which it goes on where a model lies over several."""
        if self.batch.content.device != activation.device:
            self.batch = self.batch.to(activation.device)
        return self.batch


Progress = tqdm | str | None
"""A bar to move on, or what a new one says of the pass; None shows nothing."""


def stream(
    model: HookedModel,
    batches: Plan | Iterable[TokenBatch],
    hooks: Sequence[ForwardHook] = (),
    running: Running | None = None,
    *,
    progress: Progress = None,
    checked: bool = True,
) -> Iterator[tuple[TokenBatch, Float[Tensor, "batch pos d_model"]]]:
    """One forward pass over batches, through the blocks alone: each batch, and the stream after the last block.

    The model is settled until the last batch is taken. The hooks are in place only while one runs, so that nothing
    remains of them whatever happens between two. They read the batch from ``running``. Who takes the batches has the
    device say with other numbers whether the stream is finite (:func:`require_finite`) if it is not ``checked`` here.
    """
    device, running = device_of(model), running or Running()
    if wrapped_model(model) is not None:  # a HookedTransformer has no other readout than ours
        require_same_readout(model)
    total, done = (batches.documents, batches.documents_done) if isinstance(batches, Plan) else (None, 0)
    description = progress if isinstance(progress, str) else None
    new_bar = tqdm(total=total, initial=done, unit="doc", desc=description, disable=hidden(description))
    with settled(model), nullcontext(progress) if isinstance(progress, tqdm) else new_bar as bar:
        for batch in batches:
            running.batch = batch = batch.to(device)
            if description:
                bar.set_description(f"{description} {batch.language}", refresh=False)
            with torch.inference_mode():
                try:
                    with hooked(model, hooks):
                        states = run_blocks(model, batch.tokens, checked=checked)
                except (ValueError, OverflowError) as error:
                    traceback.clear_frames(error.__traceback__)  # which hold what the pass has computed
                    run_blocks(model, batch.tokens)  # says it better where a hook met a stream that is not finite
                    raise
            yield running.beside(states), states
            bar.set_postfix_str(f"peak memory {readable(peak_memory(device))}", refresh=False)
            bar.update(len(batch.rows))


def run_blocks(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], *, checked: bool = True
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, for right-padded tokens.

    Raises:
        ValueError: if it is not finite (where that is ``checked``), or there are more tokens than the model's context.
    """
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"A text has {tokens.shape[1]} tokens, more than the context of {model.cfg.n_ctx} of "
            f"{model.cfg.model_name}."
        )
    wrapped, states, last = wrapped_model(model), [], stream_hook(model.cfg.n_layers)
    if wrapped:
        # a raw bridge takes stop_at_layer=n_layers for the whole model, so run what is below the unembedding
        with hooked(model, [(last, lambda activation, hook: states.append(activation) or activation)]):
            run_wrapped(model, tokens)
    else:
        renew_tables(model)
        states.append(model(tokens, stop_at_layer=model.cfg.n_layers, padding_side="right"))
    if not states:
        raise ValueError(f"{model.cfg.model_name} does not show its last layer's residual stream ({last} never runs).")
    if checked:
        require_finite(model, bool(torch.isfinite(states[-1]).all()), states[-1].dtype)
    return states[-1]


def require_finite(model: HookedModel, finite: bool, dtype: torch.dtype) -> None:
    """Refuse a model whose residual stream, in this dtype, is not finite."""
    if not finite:
        raise ValueError(
            f"The residual stream of {model.cfg.model_name} is not finite: its weights hold NaN or infinite values, "
            f"or {dtype} overflows."
        )


def renew_tables(model: HookedModel) -> None:
    """Before a pass of a HookedTransformer: its tables of ALiBi are made for the texts of this pass.

    They grow with the longest text yet, and then are sums of larger numbers, which round otherwise.
    """
    if model.cfg.positional_embedding_type == "alibi":
        for block in model.blocks:
            block.attn.alibi = None


@torch.inference_mode()
def stream_states(model: HookedModel, ids: Int[Tensor, " pos"]) -> list[Float[Tensor, "pos d_model"]]:
    """The residual stream of one text at the embedding and after every layer, all on the embedding's device."""
    seen: list[Tensor] = []
    device = device_of(model)
    if wrapped_model(model) is not None:
        require_same_readout(model)

    def keep(activation: Tensor, hook: object = None) -> Tensor:
        seen.append(activation[0].to(device, copy=True))
        return activation

    with settled(model), hooked(model, [(stream_hook(layer), keep) for layer in range(model.cfg.n_layers + 1)]):
        run_blocks(model, ids[None].to(device))
    return seen
