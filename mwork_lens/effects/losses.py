"""Next-token loss by language, of the model as it is and with sets of neurons off; no passage's logits are held."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..detection import Detection, detect
from ..model import (
    MAX_TOKENS,
    Encoded,
    HookedModel,
    Mode,
    Plan,
    Reducer,
    Tally,
    TokenBatch,
    batches,
    model_record,
    pass_record,
    settled,
    stream,
    tallied,
    token_losses,
)
from ..model.shards import part_of
from ..neurons import NeuronSet, ablate, warn_of_other_weights
from ..settings import Overlap
from ..store import digest, user_path
from ..store.processes import hidden
from ..text import Document, SeenDocuments, as_corpus, check_arguments, standard_tag, unknown_words_said
from .joining import concat_passages
from .matrix import BASELINE, TUNED, EffectMatrix
from .overlap import DETECTION, TUNING, check_overlap, statuses_of

PIECES = "detection", "effects"
"""Of a fold, each with a checkpoint of its own."""
Sets = Mapping[str, NeuronSet | Sequence[NeuronSet]]
"""What to switch off, by name: a set, or several draws of a control whose mean effect counts."""


@dataclass(frozen=True)
class PassageLosses(Reducer, kind="passage_losses"):
    """Loss of each passage of a plan. A passage is in one batch, so that merging adds zeros."""

    nats: dict[str, Float[Tensor, " _"]]
    """By language: summed negative log-likelihood of each passage."""
    tokens: dict[str, Int[Tensor, " _"]]
    """By language: the tokens of each passage that count."""

    @classmethod
    def empty(cls, plan: Plan) -> "PassageLosses":
        """Of no batch."""
        passages = plan.encoded.documents.items()
        nats = {language: torch.zeros(number, dtype=torch.float64) for language, number in passages}
        tokens = {language: torch.zeros(number, dtype=torch.int64) for language, number in passages}
        return cls(**Reducer.start(plan), nats=nats, tokens=tokens)

    @classmethod
    def of(cls, model: HookedModel, plan: Plan, *, progress: tqdm | None = None) -> "PassageLosses":
        """Of all batches of a plan."""
        losses = cls.empty(plan)
        for batch, states in stream(model, plan, progress=progress):
            losses.update(model, batch, states)
        return losses

    def update(self, model: HookedModel, batch: TokenBatch, states: Float[Tensor, "batch pos d_model"]) -> None:
        """Add a batch, whose residual stream after the last block is ``states``; a ValueError if it is in already."""
        self.claim(batch)
        rows = list(batch.rows)
        self.nats[batch.language][rows], self.tokens[batch.language][rows] = batch_nats(model, batch, states)


def language_losses(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, max_tokens: int = MAX_TOKENS
) -> pd.DataFrame:
    """Loss of the model as it is, one row per language: passages, documents, tokens that count, nats_per_token.

    Raises:
        ValueError: for empty documents, before the work.
    """
    check_arguments(language_losses, locals())
    encoded = encode_counted(model, corpus, max_tokens)
    losses, rows = PassageLosses.of(model, encoded.plan()), {}
    for language, nats in losses.nats.items():
        tokens, documents = int(losses.tokens[language].sum()), len(set(encoded.corpus.documents[language]))
        rows[language] = len(nats), documents, tokens, float(nats.sum()) / tokens
    columns = ["passages", "documents", "tokens", "nats_per_token"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("language")


def encode_counted(model: HookedModel, corpus: Mapping[str, Sequence[Document]], max_tokens: int) -> Encoded:
    """The documents of a corpus; a ValueError for a language of which no token counts, before the work."""
    encoded = Encoded.of(model, corpus, max_tokens)
    require_counted(encoded)
    return encoded


def require_counted(encoded: Encoded) -> None:
    """A ValueError for a language of which no token counts."""
    for language, documents in encoded.items():
        if not any((~torch.isin(ids[1:], encoded.special)).any() for ids in documents):
            raise ValueError(
                f"No token of {language!r} counts: in none of its documents an ordinary one follows another."
            )


def passage_nats(
    model: HookedModel,
    encoded: Sequence[Int[Tensor, " _"]],
    *,
    skip: Sequence[int] | None = None,
    special: bool = False,
) -> tuple[Float[Tensor, " passage"], Int[Tensor, " passage"]]:
    """Summed negative log-likelihood of each passage's ordinary tokens, and how many these are.

    A token counts if it is neither special (but with ``special``, that of a given answer too) nor the passage's first
    (which nothing predicts), nor among the first ``skip`` tokens of its passage, e.g. those of a prompt.
    """
    nats = torch.zeros(len(encoded), dtype=torch.float64)
    tokens = torch.zeros(len(encoded), dtype=torch.int64)
    for batch, states in stream(model, batches(model, encoded)):
        rows = list(batch.rows)
        if special:
            positions = torch.arange(batch.tokens.shape[1], device=batch.content.device)
            lengths = torch.tensor(batch.lengths, device=batch.content.device)
            batch = replace(batch, content=positions < lengths[:, None])
        nats[rows], tokens[rows] = batch_nats(model, batch, states, [skip[row] for row in rows] if skip else None)
    return nats, tokens


@torch.inference_mode()
def batch_nats(
    model: HookedModel, batch: TokenBatch, states: Float[Tensor, "batch pos d_model"], skip: Sequence[int] | None = None
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Summed negative log-likelihood of each passage of a batch, and the tokens of each that count."""
    counts = batch.content[:, 1:]
    if skip is not None:
        positions = torch.arange(1, batch.tokens.shape[1], device=counts.device)
        counts = counts & (positions >= torch.tensor(skip, device=counts.device)[:, None])
    by_token = token_losses(model, states[:, :-1][counts], batch.tokens[:, 1:][counts]).double().cpu()
    nats = torch.zeros(len(counts), dtype=torch.float64)
    return nats.index_add_(0, counts.nonzero()[:, 0].cpu(), by_token), counts.sum(1).cpu()


Intervention = tuple[AbstractContextManager[Any], Mapping[str, Any]]
"""In what context a model is changed, after which it is as before; and what is recorded of that: neurons (their
number), fraction, model, and the origin of the set."""


def effect_matrix(
    model: HookedModel,
    sets: Sets,
    corpus: Mapping[str, Sequence[Document]],
    *,
    mode: Mode = "zero",
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    overlap: Overlap = "warn",
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> EffectMatrix:
    """Loss of every language with each set of neurons off, and with none off.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: what to switch off, by a name of your choice; a list of sets is one row, e.g. a control drawn with
            several seeds, whose mean effect counts. A row's language is its name where that is a language of the
            corpus, else the one recorded in the set.
        corpus: held-out documents by language.
        mode: how neurons are switched off.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        overlap: what to do where documents, or translations of them, were read when the sets were found: their share
            is said in a warning, or in an error before the work. ``EffectMatrix.documents_read`` has the numbers.
        shard: one of several parts of the corpus, ``(0, 8)`` to ``(7, 8)``, for processes that know nothing of each
            other; :meth:`EffectMatrix.merge` makes one matrix of all parts, to the bits of measuring at once.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.
        options: those of :meth:`NeuronSet.hooks` for the mode, e.g. ``values=``.

    Raises:
        ValueError: for no sets, a set of a model with other sizes, empty documents, or a checkpoint of something else,
            before the work. A set of another model (its name, or the fingerprint of its weights) warns.

    Example:
        >>> effects = mw.effect_matrix(model, {"fr": french}, held_out, max_tokens=32, progress=False)
        >>> effects.to_frame().shape  # one row per set, one column per language: rise of loss, nats per token
        (1, 2)
    """
    check_arguments(effect_matrix, locals())
    if not isinstance(sets, Mapping):
        raise ValueError(
            f"sets must be a dict of neuron sets by name, e.g. {{'fr': french}}, not {type(sets).__name__}."
        )
    rows = {name: [draws] if isinstance(draws, NeuronSet) else list(draws) for name, draws in sets.items()}
    if not rows:
        raise ValueError("sets is empty: name at least one set of neurons to switch off.")
    if BASELINE in rows:
        raise ValueError(f"{BASELINE!r} is the row with nothing off: give that set another name.")
    if empty := [name for name, draws in rows.items() if not draws]:
        raise ValueError(f"The row {empty[0]!r} has no set to switch off.")

    def ablation(one: NeuronSet) -> Intervention:
        record = {"neurons": len(one), "fraction": one.fraction, "model": one.space.model, "origin": dict(one.origin)}
        return ablate(model, one, mode, **options), record

    interventions = {name: [*map(ablation, draws)] for name, draws in rows.items()}
    seen = [one.origin.seen for one in chain(*rows.values())]
    warn_of_other_weights(model, chain(*rows.values()))
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "progress": progress}

    def identity() -> dict[str, Any]:
        return {"sets": {name: [*map(digest, draws)] for name, draws in rows.items()}, "options": digest(options)}

    kept = {"shard": shard, "checkpoint": checkpoint, "identity": identity}
    return losses_with(model, interventions, corpus, mode=mode, seen=seen, overlap=overlap, **reading, **kept)


def losses_with(
    model: HookedModel,
    interventions: Mapping[str, Sequence[Intervention]],
    corpus: Mapping[str, Sequence[Document]],
    *,
    mode: str,
    seen: Sequence[SeenDocuments | None] = (None,),
    overlap: Overlap = "warn",
    batch_size: int | None,
    max_tokens: int,
    progress: bool,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    identity: Callable[[], Mapping[str, Any]] = dict,
) -> EffectMatrix:
    """Loss of every language without an intervention and with each; several of one name are its draws.

    ``identity`` is what tells these interventions from others, for a checkpoint or a part.
    """
    encoded = encode_counted(model, corpus, max_tokens)
    plan, corpus = encoded.plan(batch_size), encoded.corpus
    part = None
    if shard is not None:
        plan, part = part_of(plan, shard)
        part["made_of"] = digest(identity())
    statuses = statuses_of(corpus, seen)
    check_overlap(corpus, statuses, overlap, stacklevel=4, by=TUNING if mode == TUNED else DETECTION)
    rows = {BASELINE: [(nullcontext(), {})], **interventions}
    settings = {**model_record(model), "mode": mode, "max_tokens": max_tokens}
    asked = {**settings, "corpus": corpus.describe(), "batch_size": batch_size, "shard": shard}
    losses = {name: [PassageLosses.empty(plan) for _ in draws] for name, draws in rows.items()}
    reducers = {f"{i} {name}": each for name, draws in losses.items() for i, each in enumerate(draws)}
    with tallied(reducers, checkpoint, lambda: pass_record("effects", model, plan, {**asked, **identity()})) as tally:
        _add_losses(model, plan, rows, tally, mode, progress)
    sets = {name: [dict(record) for _, record in draws] for name, draws in interventions.items()}
    matrix = EffectMatrix(
        nats={
            name: {read: torch.stack([each.nats[read] for each in draws]) for read in corpus}
            for name, draws in losses.items()
        },
        tokens=losses[BASELINE][0].tokens,
        utf8_bytes={read: _utf8_bytes(model, corpus[read], encoded[read], max_tokens) for read in corpus},
        documents=corpus.documents,
        folds={read: [0] * len(corpus[read]) for read in corpus},
        documents_of=encoded.hashes,
        seen=statuses,
        languages={
            n: standard_tag(n) if standard_tag(n) in corpus else draws[0]["origin"].get("language")
            for n, draws in sets.items()
        },
        settings={**settings, "corpus": corpus.describe(), "sets": sets},
    )
    return matrix if part is None else matrix.only_part(part)


def _add_losses(
    model: HookedModel,
    plan: Plan,
    rows: Mapping[str, Sequence[Intervention]],
    tally: Tally[PassageLosses],
    mode: str,
    progress: bool,
) -> None:
    """Read what is left of the plan for every row and draw, of which the tally has a reducer each."""
    lefts = {name: tally.left(plan, name) for name in tally.parts}
    total = sum(left.documents for left in lefts.values())
    with settled(model), tqdm(total=total, unit="doc", disable=hidden(progress)) as bar:
        for name, draws in rows.items():
            bar.set_description(f"{mode}: {name}")
            for i, (context, _) in enumerate(draws):
                left = lefts[reducer := f"{i} {name}"]
                bar.update(left.documents_done)
                with context if left.documents_done < left.documents else nullcontext():
                    for batch, states in stream(model, left, progress=bar):
                        tally.add(reducer, model, batch, states)


def _utf8_bytes(
    model: HookedModel, texts: Sequence[Document], encoded: Sequence[Int[Tensor, " _"]], max_tokens: int
) -> Int[Tensor, " passage"]:
    """The length of what was read: of the whole text, or of the tokens that were left of it; 0 for token ids."""
    lengths = []
    for text, ids in zip(texts, encoded, strict=True):
        if isinstance(text, str) and len(ids) >= min(max_tokens, model.cfg.n_ctx):
            text = model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        lengths.append(len(text.encode()) if isinstance(text, str) else 0)
    return torch.tensor(lengths)


def folded_effects(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    build: Callable[[Detection], Sets],
    *,
    folds: int = 2,
    passages: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    detection: Mapping[str, Any] | None = None,
    **options: Any,
) -> EffectMatrix:
    """The effect matrix for a claim about languages' sets, and not about one set each: detection is run again.

    The documents are divided into folds. For each fold, sets come from a detection on all other folds' documents and
    are switched off on those of the fold. :meth:`EffectMatrix.by_fold` shows the folds apart.

    Args:
        model: a hooked model; it is as before afterwards.
        corpus: documents by language.
        build: from a detection, the sets to switch off; the same names each time.
        folds: how many, at least two.
        passages: at most this many held-out passages per language in each fold; all if None.
        seed: of the division.
        checkpoint: a folder in which a stopped call goes on, with a folder for each fold.
        detection: options for :func:`detect`.
        options: passed on to :func:`effect_matrix`.

    Raises:
        ValueError: as :func:`detect` and :func:`effect_matrix`; for too few documents; if ``build`` names other sets
            for another fold.
    """
    check_arguments(folded_effects, locals())
    detecting = {"progress": options.get("progress", True), **(detection or {})}
    corpus, matrices = as_corpus(corpus), []
    parts = corpus.folds(folds, seed=seed)
    Encoded.of(model, corpus, options.get("max_tokens", MAX_TOKENS))  # says what the tokenizer does not know
    with unknown_words_said():
        for number, (train, held_out) in enumerate(parts):
            places = [
                None if checkpoint is None else user_path(checkpoint) / f"fold-{number}" / name for name in PIECES
            ]
            sets = build(detect(model, train, checkpoint=places[0], **detecting))
            evaluated = held_out if passages is None else held_out.limit(passages)
            matrices.append(effect_matrix(model, sets, evaluated, checkpoint=places[1], **options))
    return concat_passages(matrices)
