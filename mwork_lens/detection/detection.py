"""Any measure streamed over documents into counts and means; the sets of neurons that these define."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..measures import FORMULATIONS, Measure, Selection, SiteMasks, SiteScores, Where, score_hooks
from ..model import (
    MAX_TOKENS,
    SITES,
    Encoded,
    HookedModel,
    Running,
    batches,
    dtype_of,
    encode,
    stream,
    wide_dtype,
)
from ..neurons import NeuronSet, NeuronSpace
from ..store import Result
from ..text import Document
from .accumulate import CountsByLayer, CountsOverModel, DetectionCounts, Scope, accumulate

Scores = Literal["screened", "exact"]


def importance(
    model: HookedModel,
    document: Document,
    *,
    formulation: str | Measure = "exact",
    measure: Where = "stream",
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Float[Tensor, "layer _"]]:
    """How much each neuron matters for one document: every neuron, exactly.

    Args:
        model: a hooked model.
        document: a text, or its token ids as a 1-D tensor.
        formulation: as for :func:`detect`.
        measure: as for :func:`detect`.
        max_tokens: a longer document is cut there, with a warning.

    Returns:
        By site, ``[layer, neuron]``: ‖change‖_F / √positions over the positions of ordinary tokens, in the model's
        dtype or float32 if that is wider.
    """
    space, detector, running = NeuronSpace.of(model), _detector(formulation, measure), Running()
    encoded = encode(model, [document], ["given"], max_tokens)
    by_layer: list[dict[str, Tensor]] = [{} for _ in range(space.n_layers)]

    def receive(layer: int, scores: SiteScores, _: SiteMasks | None) -> None:
        by_layer[layer].update({site: values[0].cpu() for site, values in scores.items()})

    hooks = score_hooks([detector(model, layer) for layer in range(space.n_layers)], running, receive)
    for _ in stream(model, batches(model, encoded), hooks, running):
        pass
    return {site: torch.stack([scores[site] for scores in by_layer]) for site in space.widths if site in by_layer[0]}


def detect(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    top: float = 0.2,
    threshold: float | None = None,
    formulation: str | Measure = "exact",
    scope: Scope = "layer",
    measure: Where = "stream",
    scores: Scores = "screened",
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> "Detection":
    """On how many documents of each language each neuron is active, and its mean score.

    Args:
        model: a hooked model.
        corpus: documents by language: a :class:`Corpus` or any dict of lists.
        top: a neuron is active on a document if its score is among the ⌊top · width⌋ highest of its layer and site
            (at least one).
        threshold: instead of ``top``: active if the score is at least this (the paper's ε).
        formulation: ``"exact"``, ``"paper"`` (query and key neurons after rotation), ``"released"`` (what the authors'
            code computes; ``measure`` does not matter) or a :class:`Measure`.
        scope: ``"layer"``, or ``"model"``: the top fraction of a site over all layers, so that how many neurons a
            layer has is a result and not a setting. There ``v`` and ``mlp`` are compared as shares of the residual
            stream (score over its rms at that layer), and every score is computed exactly.
        measure: for ``v`` and ``mlp``, the change in the residual stream or in the structure's own output.
        scores: ``"exact"`` computes every score exactly. ``"screened"`` does so on a CPU in single or half precision,
            where it costs least; elsewhere it computes exactly what decides which neurons are active, up to a margin
            from experience (``measures/selection.py``), while mean scores of neurons far from the cut may rest on a
            second-order estimate (``Detection.screened`` tells on how many documents).
        batch_size: documents at a time; None fills a token budget. Results do not depend on it.
        max_tokens: longer documents are cut there, with a warning.
        progress: whether to show a bar.

    Raises:
        ValueError: for options out of range, empty documents or weights that are not finite, before the work.
    """
    for name, value, values in (("scores", scores, Scores), ("scope", scope, Scope)):
        if value not in get_args(values):
            raise ValueError(f"{name}={value!r}: it must be one of {', '.join(get_args(values))}.")
    counting = _counting(selection_rule(top, threshold), scope, scores)
    space, detector = NeuronSpace.of(model, fingerprint=True), _detector(formulation, measure)
    encoded = Encoded.of(model, corpus, max_tokens)
    plan = encoded.plan(batch_size)
    counts = {language: DetectionCounts.empty(space, plan, language) for language in encoded}
    accumulate(model, detector, plan, counts, counting, progress="detecting" if progress else None)
    dtype, documents = dtype_of(model), encoded.documents
    settings = {
        **{key: value for key, value in asdict(counting.selection).items() if value is not None},
        "scope": scope,
        "scores": "screened" if counting.screen else "exact",
        "formulation": formulation if isinstance(formulation, str) else getattr(formulation, "__name__", "custom"),
        **({"measure": measure} if formulation in ("exact", "paper") else {}),
        "max_tokens": max_tokens,
        "dtype": str(dtype),
        "tokenizer": Path(getattr(model.tokenizer, "name_or_path", None) or "none").name,
        "corpus": encoded.corpus.describe(),
    }
    return Detection(
        space=space,
        counts={language: part.counts for language, part in counts.items()},
        mean_scores={language: part.means(documents[language], wide_dtype(dtype)) for language, part in counts.items()},
        screened={language: part.screened for language, part in counts.items()},
        documents=documents,
        settings=settings,
        documents_of=encoded.hashes,
    )


def _detector(formulation: str | Measure, measure: Where) -> Measure:
    if not isinstance(formulation, str):
        return formulation
    if formulation not in FORMULATIONS:
        raise ValueError(f"formulation={formulation!r}: it must be {', '.join(map(repr, FORMULATIONS))} or a Measure.")
    return FORMULATIONS[formulation](measure)


def selection_rule(top: float, threshold: float | None) -> Selection:
    """``threshold`` if given, else ``top``; refuses values out of range."""
    return Selection(top=top) if threshold is None else Selection(threshold=threshold)


def _counting(selection: Selection, scope: Scope, scores: Scores) -> CountsByLayer | CountsOverModel:
    if scope == "layer":
        return CountsByLayer(selection, screen=scores == "screened" and selection.top != 1)
    if selection.threshold is not None:
        raise ValueError(
            f"threshold={selection.threshold} is the same for every layer: scope='model' takes top instead."
        )
    return CountsOverModel(selection)


@dataclass(frozen=True)
class Detection(Result, kind="detection"):
    """How often, and how strongly, each neuron mattered in each language."""

    space: NeuronSpace
    counts: Mapping[str, Mapping[str, Int[Tensor, "layer _"]]]
    """By language and site: on how many documents the neuron was active."""
    mean_scores: Mapping[str, Mapping[str, Float[Tensor, "layer _"]]]
    """By language and site: mean over documents of ‖change‖_F / √positions."""
    screened: Mapping[str, Mapping[str, Int[Tensor, "layer _"]]]
    """By language and site: on how many documents the score behind the mean is a second-order estimate only."""
    documents: Mapping[str, int]
    """Documents by language."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    documents_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By language: the hash of each document's token ids, in the order of the corpus."""

    @property
    def languages(self) -> list[str]:
        """The languages, in the order of the corpus."""
        return list(self.documents)

    def active(self, language: str, *, quorum: float = 1.0) -> NeuronSet:
        """Neurons active on at least this share of the language's documents (the paper: on all of them)."""
        return NeuronSet(
            self.space,
            self._active_masks(language, quorum),
            {"language": language, "kind": "active", "quorum": quorum, **self._rule()},
        )

    def specific(
        self,
        language: str,
        *,
        against: str | Iterable[str] = "others",
        quorum: float = 0.9,
        against_quorum: float | None = None,
    ) -> NeuronSet:
        """The language's active neurons minus those of other languages.

        Args:
            language: whose neurons.
            against: ``"others"`` (active in any other language), ``"shared"`` (active in every language), or one or
                several languages, e.g. ``"en"``. These are different sets; the result records which.
            quorum: share of the language's documents on which a neuron must be active.
            against_quorum: share of the other languages' documents that makes a neuron theirs; ``quorum`` if None.
                Lower is stricter: at 0.5, a neuron active on half of the English documents counts as English.
        """
        against_quorum = quorum if against_quorum is None else against_quorum
        others = self._against(language, against)
        active = [self._active_masks(other, against_quorum) for other in others]
        combine = operator.and_ if against == "shared" else operator.or_
        masks = {
            site: mask & ~reduce(combine, [other[site] for other in active], torch.full_like(mask, against == "shared"))
            for site, mask in self._active_masks(language, quorum).items()
        }
        origin = {
            "language": language,
            "kind": "specific",
            "against": others,
            "against_kind": against if against in ("others", "shared") else "listed",
            "quorum": quorum,
            "against_quorum": against_quorum,
            **self._rule(),
        }
        return NeuronSet(self.space, masks, origin)

    def _against(self, language: str, against: str | Iterable[str]) -> list[str]:
        self._require(language)
        if against == "others":
            return [other for other in self.languages if other != language]
        if against == "shared":
            return self.languages
        others = [against] if isinstance(against, str) else list(against)
        for other in others:
            self._require(other)
        if language in others or not others:
            raise ValueError(f"against={others} must name languages other than {language!r}.")
        return others

    def _active_masks(self, language: str, quorum: float) -> dict[str, Bool[Tensor, "layer _"]]:
        self._require(language)
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum={quorum} is outside (0, 1].")
        needed = math.ceil(quorum * self.documents[language] - 1e-9)
        return {site: counts >= needed for site, counts in self.counts[language].items()}

    def _require(self, language: str) -> None:
        if language not in self.documents:
            raise ValueError(f"Nothing was detected for {language!r}; there are {', '.join(self.languages)}.")

    def _rule(self) -> dict[str, Any]:
        """What made neurons active, for the origin of sets."""
        keys = ("top", "threshold", "scope", "formulation", "measure")
        rule = {key: self.settings[key] for key in keys if key in self.settings}
        return {**rule, "corpus": self.settings["corpus"]["hash"]}

    def to_frame(self) -> pd.DataFrame:
        """One row per language, layer and site: active neurons at quorum 0.9, mean score, documents."""
        rows = []
        for language, number in self.documents.items():
            masks = self._active_masks(language, 0.9)
            rows += [
                {
                    "language": language,
                    "layer": layer,
                    "site": site,
                    "structure": SITES[site].structure,
                    "width": mask.shape[1],
                    "active": int(mask[layer].sum()),
                    "mean_score": self.mean_scores[language][site][layer].mean().item(),
                    "documents": number,
                }
                for site, mask in masks.items()
                for layer in range(self.space.n_layers)
            ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        documents = ", ".join(f"{language} {number}" for language, number in self.documents.items())
        rule = ", ".join(f"{key}={value!r}" for key, value in self._rule().items() if key != "corpus")
        return f"Detection({self.space.model}: documents {documents}; {rule})"

    def _repr_html_(self) -> str:
        from html import escape

        sums = self.to_frame().groupby(["language", "site"], sort=False)[["active", "width"]].sum()
        table = (sums["active"] / sums["width"]).unstack().reindex(self.languages)  # pyright: ignore
        caption = "Share of neurons that are active on at least nine in ten documents, by language and site"
        return f"<p>{escape(repr(self))}</p><p>{caption}:</p>{table.to_html(float_format='{:.1%}'.format)}"
