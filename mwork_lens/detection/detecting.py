"""Any measure streamed over documents: on how many documents each neuron is active, and its mean score."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..measures import FORMULATIONS, Measure, Selection, SiteMasks, SiteScores, Where, score_hooks
from ..measures.plnd.backend import backend_of
from ..measures.plnd.queries_keys import require_told
from ..model.architecture import HookedModel, at_least_float32, device_of, dtype_of, wide_dtype
from ..model.budget import Budget
from ..model.forward import MAX_TOKENS, Encoded, Plan, Progress, Running, TokenBatch, require_finite, stream
from ..model.memory import readable
from ..model.post_norms import stream_before
from ..model.reading import read_text
from ..model.reducers import ExactSum, Reducer, fixed_point, on_cpu
from ..model.sites import SITES
from ..model.tally import Tally
from ..neurons import NeuronSpace
from ..text import Document, StreamedCorpus, check_arguments
from ..text.choices import listed
from .checking import bound_to, require_exact, require_layers
from .detection import Detection, result_bytes
from .merging import mean_scores

Scope = Literal["layer", "model"]
Scores = Literal["screened", "exact"]

RELATIVE = ("v", "mlp")
"""Sites whose scores compare over layers relative to the rms of the stream that they add to. Scores of other sites are
changes of an attention pattern, which compare as they are."""

LayerCounts = tuple[Int[Tensor, " neuron"], Int[Tensor, " neuron"], ExactSum]
"""Of one batch, layer and site: documents on which a neuron is active, those whose score is an estimate, the sums."""


@dataclass(frozen=True)
class DetectionCounts(Reducer, kind="detection_counts"):
    """What one language's documents add up to, by site, as ``[layer, neuron]``."""

    counts: dict[str, Int[Tensor, "layer _"]]
    """Documents on which a neuron was active."""
    screened: dict[str, Int[Tensor, "layer _"]]
    """Documents whose score is an estimate."""
    sums: dict[str, ExactSum]
    """Scores, summed over documents."""

    @classmethod
    def empty(cls, space: NeuronSpace, plan: Plan, language: str, made_with: str = "") -> "DetectionCounts":
        """Of no documents."""
        sums = {site: ExactSum.zeros(space.n_layers, width) for site, width in space.widths.items()}
        counts, screened = ({site: total.high.int() for site, total in sums.items()} for _ in range(2))
        return cls(**Reducer.start(plan, language, made_with), counts=counts, screened=screened, sums=sums)

    def update(self, batch: TokenBatch, layers: Mapping[tuple[str, int], LayerCounts]) -> None:
        """Add a batch, by site and layer; refused where :meth:`claim` or :meth:`ExactSum.add` refuses."""
        self.claim(batch)
        for (site, layer), (counts, screened, sums) in layers.items():
            self.counts[site][layer] += counts
            self.screened[site][layer] += screened
            self.sums[site].add(sums, layer)


class BatchCounts:
    """Counts of the running batch by layer and site, taken after its last layer; the scores are dropped then.

    With scope ``model`` the cut of a document is known only there, and every score is exact.
    """

    def __init__(self, selection: Selection, scope: Scope = "layer", *, screen: bool = False) -> None:
        if scope == "model" and selection.threshold is not None:
            raise ValueError(
                f"threshold={selection.threshold} is the same for every layer: scope='model' takes top instead."
            )
        self.selection, self.scope, self.running = selection, scope, Running()
        self.screen = selection if screen and scope == "layer" and selection.top != 1 else None
        self.scores: dict[str, dict[int, Float[Tensor, "batch _"]]] = {}
        self.exact: dict[str, dict[int, Bool[Tensor, "batch _"] | None]] = {}
        self.rms: dict[str, dict[int, Float[Tensor, " batch"]]] = {}

    def over(
        self,
        model: HookedModel,
        measure: Measure,
        batches: Plan | Iterable[TokenBatch],
        *,
        layers: Sequence[int] | None = None,
        progress: Progress = None,
    ) -> Iterator[tuple[TokenBatch, Mapping[tuple[str, int], LayerCounts]]]:
        """Each batch with its counts, of some layers or of all."""
        layers = require_layers(model, layers)
        hooks = score_hooks(bound_to(model, measure, layers), self.running, self._receive, self.screen)
        for site, layer in product(RELATIVE if self.scope == "model" else (), layers):
            hooks.append((stream_before(model, layer, SITES[site].structure), partial(self._read, site, layer)))
        for batch, states in stream(model, batches, hooks, self.running, progress=progress, checked=False):
            finite, counts = self._counts(torch.isfinite(states).all())
            require_finite(model, finite, states.dtype)
            self.scores, self.exact, self.rms = {}, {}, {}
            yield batch, counts

    def _read(self, site: str, layer: int, activation: Tensor, hook: object = None) -> Tensor:
        content = self.running.beside(activation).content
        squares = at_least_float32(activation).square().mean(-1) * content
        self.rms.setdefault(site, {})[layer] = (squares.sum(-1) / content.sum(-1)).sqrt()
        return activation

    def _receive(self, layer: int, scores: SiteScores, exact: SiteMasks | None) -> None:
        for site, values in scores.items():
            self.scores.setdefault(site, {})[layer] = values
            self.exact.setdefault(site, {})[layer] = exact[site] if exact else None

    def _counts(self, finite: Bool[Tensor, ""]) -> tuple[bool, dict[tuple[str, int], LayerCounts]]:
        """In one transfer from the device, with whether the residual stream is finite."""
        parts = {site: self._of_site(site) for site in self.scores}
        told, *rest = on_cpu([finite, *(part for of_site in parts.values() for part in of_site)])
        numbers = iter(rest)
        counts: dict[tuple[str, int], LayerCounts] = {}
        for site in parts if told else ():
            active, screened, *sums = (next(numbers) for _ in parts[site])
            require_told(site, sums[-1].view(torch.float64))
            exact = ExactSum.checked(*sums)
            for i, layer in enumerate(self.scores[site]):
                counts[site, layer] = active[i].int(), screened[i].int(), ExactSum(exact.high[i], exact.low[i])
        return bool(told), counts

    def _of_site(self, site: str) -> tuple[Tensor, ...]:
        scores, exact = _stacked_layers(self.scores[site]), self.exact[site]
        comparable = scores
        if self.scope == "model" and site in RELATIVE:
            comparable = (
                scores / _stacked_layers({layer: self.rms[site][layer] for layer in self.scores[site]})[..., None]
            )
        rows = comparable.flatten(1) if self.scope == "model" else comparable.flatten(0, 1)
        active = self.selection.active(rows).view_as(scores)
        counts = active.sum(0)
        screened = torch.zeros_like(counts)
        for row, mask in zip(screened, exact.values(), strict=True):
            if mask is not None:
                row += (~mask).sum(0).to(row.device)
        return counts, screened, *fixed_point(scores)


def _stacked_layers(by_layer: Mapping[int, Tensor]) -> Tensor:
    """[batch, layer, …], on the device of the first."""
    parts = list(by_layer.values())
    return torch.stack([part.to(parts[0].device) for part in parts], 1)


def detect(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]] | StreamedCorpus,
    *,
    top: float = 0.2,
    threshold: float | None = None,
    formulation: str | Measure = "exact",
    scope: Scope = "layer",
    measure: Where = "stream",
    scores: Scores = "screened",
    layers: Sequence[int] | None = None,
    verify: bool = True,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Detection:
    """On how many documents of each language each neuron is active, and its mean score.

    Args:
        model: a hooked model.
        corpus: documents by language: a :class:`Corpus`, any dict of lists, or text of any length
            (``load_corpus(..., streaming=True)``), whose windows are read as corpora: the result is what merging the
            detections of all windows gives, and memory does not grow with the text but for hashes of its documents.
        top: a neuron is active on a document if its score is among the ⌊top · width⌋ highest of its layer and site
            (at least one).
        threshold: instead of ``top``: active if the score is at least this (the paper's ε).
        formulation: ``"exact"``, ``"paper"`` (query and key neurons after rotation), ``"released"`` (what the authors'
            code computes, but for the root of a sum of squares, the BOS, which they count, and sets of ``k`` and ``v``,
            which they cut by query heads; ``measure`` does not matter) or a :class:`Measure`.
        scope: ``"layer"``, or ``"model"``: the top fraction of a site over all layers, so that how many neurons a
            layer has is a result and not a setting. There ``v`` and ``mlp`` are compared as shares of the residual
            stream (score over its rms at that layer), and every score is computed exactly.
        measure: for ``v`` and ``mlp``, the change in the residual stream or in the structure's own output.
        scores: ``"exact"`` computes every score exactly. ``"screened"`` does so on a CPU in single or half precision,
            where it costs least; elsewhere it computes exactly what decides which neurons are active, up to a margin
            from experience (``measures/measure.py``), while mean scores of neurons far from the cut may rest on a
            second-order estimate (``Detection.screened`` tells on how many documents).
        layers: score these only; in others no neuron is active, and mean scores are NaN.
        verify: whether to compare closed forms with ablation first (only for ``"exact"``), once per process, model and
            setting: a few neurons in every kind of layer, as :func:`check_scores` does. The result records False.
        batch_size: documents at a time; None fills a token budget. Results do not depend on it.
        max_tokens: longer documents are cut there, with a warning.
        shard: one of several parts of the corpus, ``(0, 8)`` to ``(7, 8)``, for processes that know nothing of each
            other; :meth:`Detection.merge` makes one detection of all parts, to the bits of detecting at once. Of a
            stream a part is every so many windows.
        checkpoint: a folder; after a kill, Ctrl-C or SIGTERM the same call goes on from what was written there, to the
            same bits (at least every ``MWORK_LENS_CHECKPOINT_SECONDS``, 30 by default). It stays, for you to remove.
        progress: whether to show a bar.

    Raises:
        ValueError: for options out of range, empty documents or closed forms that differ from ablation, before the
            work; for weights that are not finite; for a checkpoint of another model, corpus or setting, naming it.

    Example:
        >>> detection = mw.detect(model, train, max_tokens=32, progress=False)
        >>> detection.counts["fr"]["mlp"].shape  # layer, neuron
        torch.Size([18, 2048])
    """
    check_arguments(detect, locals())
    selection = Selection(top=top) if threshold is None else Selection(threshold=threshold)
    counts = BatchCounts(selection, scope, screen=scores == "screened")
    space, detector = NeuronSpace.of(model, fingerprint=True), detector_of(formulation, measure)
    text = corpus if isinstance(corpus, StreamedCorpus) else Encoded.of(model, corpus, max_tokens)
    scored, budget = require_layers(model, layers), Budget.of(model)
    given = {"layers": layers and scored, "verify": None if verify else False, "max_tokens": max_tokens}
    if batch_size is None and budget.memory is not None:
        given["batches"] = asdict(budget)
    record = (text.corpus if isinstance(text, Encoded) else text).describe()
    settings = _settings(model, record, counts, formulation, measure, given)

    def empty(plan: Plan) -> dict[str, DetectionCounts]:
        return {tag: DetectionCounts.empty(space, plan, tag, f"{space} {settings}") for tag in plan.encoded}

    def add(tally: Tally[DetectionCounts], left: Plan, bar: Progress) -> None:
        if verify and formulation == "exact":
            streamed = isinstance(text, StreamedCorpus)  # whose later windows may have longer ones
            longest = max_tokens if streamed else max(len(ids) for each in text.values() for ids in each)
            require_exact(model, measure, counts.screen, scored, longest)
        for batch, by_layer in counts.over(model, detector, left, layers=scored, progress=bar):
            tally.add(batch.language, batch, by_layer)

    asked = {**asdict(space), "settings": settings, "batch_size": batch_size}
    size = readable(result_bytes(space.total, len(text)))
    bar = f"detecting ({size} of results)" if progress else None
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "shard": shard, "checkpoint": checkpoint}
    read = read_text("detection", model, text, empty, add, asked, bar=bar, **reading)
    documents = {tag: len(hashes) for tag, hashes in read.documents_of.items()}
    dtype = wide_dtype(dtype_of(model))
    sums = {tag: read.parts[tag].sums for tag in documents}
    return Detection(
        space=space,
        counts={tag: read.parts[tag].counts for tag in documents},
        mean_scores={tag: mean_scores(sums[tag], number, scored, dtype) for tag, number in documents.items()},
        screened={tag: read.parts[tag].screened for tag in documents},
        documents=documents,
        settings={**settings, **read.settings},
        documents_of=read.documents_of,
        sums=sums,
        seen=read.seen,
        tokens=read.tokens,
    )


def _settings(
    model: HookedModel,
    corpus: Mapping[str, Any],
    counts: BatchCounts,
    formulation: str | Measure,
    measure: Where,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The record that a detection keeps of how it was made; of options, those that are not None."""
    selection, given = (
        {key: value for key, value in options.items() if value is not None}
        for options in (asdict(counts.selection), given)
    )
    numbers = torch.empty(0, dtype=wide_dtype(dtype_of(model)), device=device_of(model))
    return {
        **selection,
        "scope": counts.scope,
        "scores": "screened" if counts.screen else "exact",
        "formulation": formulation if isinstance(formulation, str) else getattr(formulation, "__name__", "custom"),
        **({"measure": measure, "backend": backend_of(numbers)} if formulation in ("exact", "paper") else {}),
        **given,
        "dtype": str(dtype_of(model)),
        "tokenizer": Path(getattr(model.tokenizer, "name_or_path", None) or "none").name,
        "corpus": corpus,
    }


def detector_of(formulation: str | Measure, measure: Where) -> Measure:
    """The measure of a formulation; a ValueError for one that does not exist."""
    if not isinstance(formulation, str):
        return formulation
    if formulation not in FORMULATIONS:
        known = listed(FORMULATIONS, formulation)
        raise ValueError(f"formulation={formulation!r}: it must be one of {known}, or a Measure.")
    return FORMULATIONS[formulation](measure)
