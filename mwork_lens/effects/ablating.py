"""Switching sets of neurons off, and what that does to the loss of every language."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..detection import Detection, detect
from ..model import MAX_TOKENS, Encoded, HookedModel, Mode
from ..neurons import NeuronSet, ablate
from ..text import Document, as_corpus
from .loss import PassageLosses
from .matrix import BASELINE, EffectMatrix, pool

Sets = Mapping[str, NeuronSet | Sequence[NeuronSet]]
"""What to switch off, by name: a set, or several draws of a control whose mean effect counts."""


def effect_matrix(
    model: HookedModel,
    sets: Sets,
    corpus: Mapping[str, Sequence[Document]],
    *,
    mode: Mode = "zero",
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
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
        mode: how neurons are switched off; ``options`` are those of :meth:`NeuronSet.hooks`, e.g. ``values=``.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        progress: whether to show a bar.
        options: see ``mode``.

    Raises:
        ValueError: for no sets, a set of a model with other sizes, or empty documents, before the work.
    """
    changes = {
        name: [Change(ablate(model, one, mode, **options), _described(one)) for one in draws]
        for name, draws in _rows(sets).items()
    }
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "progress": progress}
    return losses_under(model, changes, corpus, mode=mode, **reading)


@dataclass(frozen=True)
class Change:
    """Something that is done to a model for a while."""

    context: AbstractContextManager[Any]
    """In it the model is changed; afterwards it is as before."""
    made_of: Mapping[str, Any]
    """What is recorded of it: neurons (their number), fraction, model, and the origin of the set."""


def losses_under(
    model: HookedModel,
    changes: Mapping[str, Sequence[Change]],
    corpus: Mapping[str, Sequence[Document]],
    *,
    mode: str,
    batch_size: int | None,
    max_tokens: int,
    progress: bool,
) -> EffectMatrix:
    """Loss of every language without a change and under each; several changes of one name are its draws."""
    encoded = Encoded.of(model, corpus, max_tokens)
    plan, corpus = encoded.plan(batch_size), encoded.corpus
    total = (1 + sum(map(len, changes.values()))) * sum(encoded.documents.values())
    with tqdm(total=total, unit="doc", disable=not progress) as bar:

        def measure(name: str, context: AbstractContextManager[Any]) -> PassageLosses:
            bar.set_description(f"{mode}: {name}")
            with context:
                return PassageLosses.of(model, plan, progress=bar)

        baseline = measure(BASELINE, nullcontext())
        losses = {name: [measure(name, change.context) for change in draws] for name, draws in changes.items()}
    made_of = {name: [dict(change.made_of) for change in draws] for name, draws in changes.items()}
    return EffectMatrix(
        nats={
            name: {read: torch.stack([each.nats[read] for each in draws]) for read in corpus}
            for name, draws in {BASELINE: [baseline], **losses}.items()
        },
        tokens=baseline.tokens,
        utf8_bytes={read: _utf8_bytes(model, corpus[read], encoded[read], max_tokens) for read in corpus},
        documents=corpus.documents,
        folds={read: [0] * len(corpus[read]) for read in corpus},
        languages={
            name: name if name in corpus else draws[0]["origin"].get("language") for name, draws in made_of.items()
        },
        settings={
            "model": str(model.cfg.model_name),
            "mode": mode,
            "max_tokens": max_tokens,
            "corpus": corpus.describe(),
            "sets": made_of,
        },
    )


def folded_effects(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    build: Callable[[Detection], Sets],
    *,
    folds: int = 2,
    passages: int | None = None,
    seed: int = 0,
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
        detection: options for :func:`detect`.
        options: passed on to :func:`effect_matrix`.

    Raises:
        ValueError: as :func:`detect` and :func:`effect_matrix`; for too few documents; if ``build`` names other sets
            for another fold.
    """
    progress = {"progress": options.get("progress", True)}
    matrices = []
    for train, held_out in as_corpus(corpus).folds(folds, seed=seed):
        sets = build(detect(model, train, **{**progress, **(detection or {})}))
        matrices.append(
            effect_matrix(model, sets, held_out if passages is None else held_out.limit(passages), **options)
        )
    return pool(matrices)


def _rows(sets: Sets) -> dict[str, list[NeuronSet]]:
    if not sets:
        raise ValueError("sets is empty: name at least one set of neurons to switch off.")
    if BASELINE in sets:
        raise ValueError(f"{BASELINE!r} is the row with nothing off: give that set another name.")
    rows = {name: [draws] if isinstance(draws, NeuronSet) else list(draws) for name, draws in sets.items()}
    for name, draws in rows.items():
        if not draws:
            raise ValueError(f"The row {name!r} has no set to switch off.")
    return rows


def _utf8_bytes(
    model: HookedModel, texts: Sequence[Document], encoded: Sequence[Int[Tensor, " _"]], max_tokens: int
) -> Int[Tensor, " passage"]:
    """The length of what was read: of the whole text, or of the tokens that were left of it."""
    limit = min(max_tokens, model.cfg.n_ctx)

    def length(text: Document, ids: Tensor) -> int:
        if not isinstance(text, str):
            return 0
        read = text if len(ids) < limit else model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return len(read.encode())

    return torch.tensor([length(text, ids) for text, ids in zip(texts, encoded, strict=True)])


def _described(one: NeuronSet) -> dict[str, Any]:
    return {"neurons": len(one), "fraction": one.fraction, "model": one.space.model, "origin": dict(one.origin)}
