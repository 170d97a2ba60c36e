"""The pass that counts how feed-forward neurons fire, and a second one for histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...model.architecture import HookedModel, dtype_of
from ...model.forward import MAX_TOKENS, Encoded
from ...model.gates import gate_biases, gates_of
from ...model.reducers import ExactSum
from ...model.shards import part_of
from ...model.tally import pass_record, tallied
from ...neurons import NeuronSpace
from ...store import user_path
from ...text import Document, SeenDocuments, check_arguments
from .firing import Firing
from .reducers import Bins, FiringHistograms, FiringSums, firing_of, histograms_of

LEAST, BELOW = -0.4, 3.0
"""Bins begin there (SiLU and GELU give nothing lower) or, if that is higher, so many deviations below the mean."""
NARROW, AROUND = 1e-3, 0.05
"""Where the bins would be narrower than this together, they lie so far around the mean."""


@dataclass(frozen=True)
class HistogramOptions:
    """Which histograms :func:`collect_firing` makes: tokens by the gate's activation a, for every neuron and language.

    They take 1.6 kB per neuron and language with 400 bins; fewer ``layers`` or ``bins`` take less. Bins of a neuron lie
    between max(μ - 3σ, -0.4) and μ + 3σ of its a over the tokens of all languages, with one more on either side.
    """

    bins: int = 400
    """Between the ends."""
    above: float = 3.0
    """Standard deviations above the mean to which they reach."""
    tokens: int | None = None
    """Of each language about so many: its first documents, until they have as many. None: all."""
    layers: Sequence[int] | None = None
    """Of these only; then no others have neurons. None: all."""
    like: Firing | None = None
    """Take mean and deviation from these, e.g. of the whole corpus, so that histograms of its parts can be merged."""

    def __post_init__(self) -> None:
        if self.bins < 1 or not self.above > 0 or (self.tokens is not None and self.tokens < 1):
            raise ValueError(f"bins={self.bins}, above={self.above}, tokens={self.tokens}: each must be above 0.")
        if self.layers is not None and not len(self.layers):
            raise ValueError(f"layers={self.layers!r} names no layer; None takes all.")


def collect_firing(
    model: HookedModel,
    corpus: Mapping[str, Sequence[Document]],
    *,
    document_means: bool = False,
    histograms: HistogramOptions | None = None,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Firing:
    """How feed-forward neurons fire on each language's ordinary tokens: what LAPE and its kin choose neurons by.

    Args:
        model: a hooked model.
        corpus: documents by language.
        document_means: whether to keep every document's mean of each neuron, 4 bytes each
            (:meth:`Firing.average_precision` needs them).
        histograms: which to make in a second pass (:meth:`Firing.distribution_overlap` needs them); None makes none.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        shard: as in :func:`detect`; :meth:`Firing.merge` makes one of all parts.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.

    Raises:
        ValueError: for a model that does not show its gates' activations, empty documents, layers that there are not,
            weights that are not finite, or a checkpoint of something else.

    Example:
        >>> firing = mw.collect_firing(model, train, max_tokens=32, progress=False)
        >>> firing.counts["fr"].shape, sorted(firing.mean_difference(size=100))  # layer, neuron
        (torch.Size([18, 2048]), ['en', 'fr'])
    """
    check_arguments(collect_firing, locals())
    space, encoded = NeuronSpace.of(model, fingerprint=True), Encoded.of(model, corpus, max_tokens)
    _require_gates(model, space)
    if histograms:
        _require_histograms(histograms, space, encoded, batch_size, shard)
    settings = {"max_tokens": max_tokens, "dtype": str(dtype_of(model)), "corpus": encoded.corpus.describe()}
    folder = None if checkpoint is None else user_path(checkpoint)
    run = _Run(model, space, settings, batch_size, shard, folder, progress)
    firing = run.counted(encoded, document_means)
    return run.with_histograms(firing, _first(encoded, histograms.tokens), histograms) if histograms else firing


def _require_gates(model: HookedModel, space: NeuronSpace) -> None:
    for layer, gate in enumerate(gates_of(model)):
        if gate.width != space.d_mlp:
            raise ValueError(
                f"{space.model}: layer {layer} has {gate.width} feed-forward neurons and layer 0 has {space.d_mlp}; "
                "firing is counted where all layers have as many."
            )


def _require_histograms(
    options: HistogramOptions,
    space: NeuronSpace,
    encoded: Encoded,
    batch_size: int | None,
    shard: tuple[int, int] | None,
) -> None:
    """Refuse options that do not fit, before the first pass."""
    if beyond := [layer for layer in options.layers or () if layer not in range(space.n_layers)]:
        raise ValueError(f"HistogramOptions: {space.model} has layers 0 to {space.n_layers - 1}, not {beyond[0]}.")
    if options.like:
        space.require_compatible(options.like.space)
    elif shard is not None:
        raise ValueError(
            f"shard={shard} with histograms: their bins are those of the whole corpus. Collect and merge all parts "
            "without histograms first, then give HistogramOptions(like=...) that."
        )
    if shard is not None:
        part_of(_first(encoded, options.tokens).plan(batch_size), shard)


@dataclass(frozen=True)
class _Run:
    model: HookedModel
    space: NeuronSpace
    settings: Mapping[str, Any]
    batch_size: int | None
    shard: tuple[int, int] | None
    checkpoint: Path | None
    progress: bool

    def counted(self, encoded: Encoded, by_document: bool) -> Firing:
        """The first pass."""
        whole, made_with = encoded.plan(self.batch_size), f"{self.space} {self.settings} {by_document}"
        plan, settings = whole, dict(self.settings)
        rows = {language: range(number) for language, number in encoded.documents.items()}
        if self.shard is not None:
            plan, part = part_of(whole, self.shard)
            rows, settings = part["rows"], {**settings, "part": part}
        kept = {language: len(ids) if by_document else 0 for language, ids in encoded.items()}
        sums = {tag: FiringSums.empty(self.space, whole, tag, made_with, kept[tag]) for tag in encoded}
        asked = {**asdict(self.space), "settings": settings, "by_document": by_document, "batch_size": self.batch_size}
        description = "firing of" if self.progress else None
        with tallied(sums, self._folder("counts"), lambda: pass_record("firing", self.model, whole, asked)) as tally:
            left = tally.left(plan)
            for batch, of_batch in firing_of(self.model, left, by_document=by_document, progress=description):
                tally.add(batch.language, batch, of_batch)
        identities = encoded.corpus.identities
        return Firing(
            space=self.space,
            counts={tag: sums[tag].counts for tag in rows},
            tokens={tag: int(sums[tag].tokens) for tag in rows},
            sums={tag: sums[tag].sums for tag in rows},
            squares={tag: sums[tag].squares for tag in rows},
            settings=settings,
            documents_of={tag: tuple(encoded.hashes[tag][i] for i in rows[tag]) for tag in rows},
            gated=[gate.gated for gate in gates_of(self.model)],
            biases=gate_biases(self.model),
            document_means={tag: sums[tag].means[list(rows[tag])] for tag in rows} if by_document else {},
            seen=SeenDocuments.of({tag: [identities[tag][i] for i in rows[tag]] for tag in rows}),
        )

    def with_histograms(self, firing: Firing, encoded: Encoded, options: HistogramOptions) -> Firing:
        """The second pass."""
        layers = range(self.space.n_layers) if options.layers is None else sorted(set(options.layers))
        bins = _bins(options.like or firing, options, layers)
        whole = encoded.plan(self.batch_size)
        plan = whole if self.shard is None else part_of(whole, self.shard)[0]
        made_with = f"{self.space} {self.settings} {bins.identity}"
        asked = {"settings": firing.settings, "bins": bins.identity, "batch_size": self.batch_size}
        asked |= asdict(self.space)
        made = {tag: FiringHistograms.empty(bins, whole, tag, made_with) for tag in encoded}
        description = "histograms of" if self.progress else None
        with tallied(
            made, self._folder("histograms"), lambda: pass_record("histograms", self.model, whole, asked)
        ) as tally:
            for batch, of_batch in histograms_of(self.model, bins, tally.left(plan), progress=description):
                tally.add(batch.language, batch, of_batch)
        record = {"bins": options.bins, "above": options.above, "tokens": options.tokens, "layers": list(layers)}
        settings = {**firing.settings, "histograms": record}
        return replace(firing, histograms={tag: made[tag].tokens for tag in made}, bins=bins, settings=settings)

    def _folder(self, name: str) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint / name


def _first(encoded: Encoded, tokens: int | None) -> Encoded:
    """The first documents of each language, until they have so many tokens."""
    if tokens is None:
        return encoded
    numbers = {
        language: sum(before < tokens for before in accumulate(map(len, ids[:-1]), initial=0))
        for language, ids in encoded.items()
    }
    return replace(encoded, ids={language: ids[: numbers[language]] for language, ids in encoded.items()})


def _bins(firing: Firing, options: HistogramOptions, layers: Sequence[int]) -> Bins:
    tokens = sum(firing.tokens.values())
    mean, square = (_over_all(of)[list(layers)] / tokens for of in (firing.sums, firing.squares))
    deviation = (square - mean.square()).clamp_(min=0).sqrt_()
    low, high = (mean - BELOW * deviation).clamp_(min=LEAST), mean + options.above * deviation
    narrow = high - low < NARROW
    return Bins(low.where(~narrow, mean - AROUND), high.where(~narrow, mean + AROUND), options.bins, list(layers))


def _over_all(sums: Mapping[str, ExactSum]) -> Float[Tensor, "layer neuron"]:
    first, *others = sums.values()
    total = ExactSum.zeros(*first.high.shape)
    for each in (first, *others):
        total.add(each)
    return total.value()
