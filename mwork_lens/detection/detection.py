"""How often each neuron was active on each language's documents, and the sets of neurons that this defines."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from html import escape
from itertools import product
from typing import Any, NotRequired, TypedDict

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..model import SITES, ExactSum
from ..model.shards import Part, by_name, shown_part
from ..neurons import NeuronSet, NeuronSpace
from ..store import Result, require_record
from ..text import SeenDocuments, check_arguments
from ..text.choices import listed
from .merging import merged_fields


class _Read(TypedDict):
    """What the corpus says of itself."""

    hash: str
    documents: NotRequired[Mapping[str, int]]


class _Settings(TypedDict):
    """What results are computed from, of all that the settings hold."""

    corpus: _Read
    layers: NotRequired[Sequence[int]]
    part: NotRequired[Part]


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
    """Passages by language, each scored as a text of its own; a document is cut into one or several."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    documents_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By language: the hash of each document's token ids, in the order of the corpus."""
    sums: Mapping[str, Mapping[str, ExactSum]] = field(default_factory=dict)
    """By language and site: the scores summed over documents, which add up exactly to those of further documents;
    empty where they were not recorded."""
    seen: SeenDocuments | None = None
    """The documents, to be recognised wherever they are read again; None in files of older versions."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Ordinary tokens by language, those that were scored; empty in files of older versions."""

    def _require_whole(self) -> None:
        sizes = {site: (self.space.n_layers, width) for site, width in self.space.widths.items()}
        for name in ("counts", "mean_scores", "screened"):
            values = getattr(self, name)
            if values.keys() != self.documents.keys():
                raise ValueError(f"{name}: of {list(values)}, not of {self.languages}.")
            for language, by_site in values.items():
                if any(tuple(each.shape) != sizes.get(site) for site, each in by_site.items()) or not by_site:
                    raise ValueError(f"{name} of {language}: not of {self.space.described_sizes}.")
                if by_site.keys() != next(iter(self.counts.values())).keys():
                    raise ValueError(f"{name} of {language}: of {list(by_site)} only.")
        require_record(self.settings, _Settings, "the settings")
        if beyond := [layer for layer in self.layers if not 0 <= layer < self.space.n_layers]:
            raise ValueError(f"There is no layer {beyond[0]} of {self.space.n_layers}.")

    @property
    def layers(self) -> list[int]:
        """The layers that were scored: all, unless :func:`detect` was given some."""
        return list(self.settings.get("layers", range(self.space.n_layers)))

    @property
    def languages(self) -> list[str]:
        """The languages, in the order of the corpus."""
        return list(self.documents)

    @classmethod
    def merge(cls, parts: Iterable["Detection"] | Mapping[str, "Detection"]) -> "Detection":
        """One detection out of several, the same to the last bit in whatever order they are given (messages call them
        by the names of a mapping).

        Parts of one corpus (``detect(..., shard=(0, 2))`` and ``(1, 2)``) make what detecting it at once makes. Others
        make a detection of all their documents, which must be different ones.

        Raises:
            ValueError: for parts of other models or settings, or from versions that did not record sums; for parts of
                one corpus that are missing, there twice or of another plan; for a document that is in two parts.

        Example:
            >>> parts = [mw.detect(model, train, max_tokens=32, shard=(i, 2), progress=False) for i in (1, 0)]
            >>> mw.Detection.merge(parts).documents == {language: len(texts) for language, texts in train.items()}
            True
        """
        return cls(**merged_fields(by_name(parts, "detection")))

    def active(self, language: str, *, quorum: float = 1.0) -> NeuronSet:
        """Neurons active on at least this share of the language's documents (the paper: on all of them)."""
        check_arguments(Detection.active, locals())
        origin = {"language": language, "kind": "active", "quorum": quorum, **self._rule()}
        return NeuronSet(self.space, self._active_masks(language, quorum), origin)

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

        Example:
            >>> french = detection.specific("fr", quorum=0.9)
            >>> french.masks["mlp"].shape, french.origin["against"]
            (torch.Size([18, 2048]), ['en'])
        """
        check_arguments(Detection.specific, locals())
        against_quorum = quorum if against_quorum is None else against_quorum
        others = self._against(language, against)
        theirs = self._active_masks_of(against, others, language, against_quorum)
        masks = {site: mask & ~theirs[site] for site, mask in self._active_masks(language, quorum).items()}
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
        if against in ("others", "shared") and len(self.languages) < 2:
            raise ValueError(
                f"{language!r} is the only language that was detected, so nothing is specific to it: detect with other "
                f"languages, or use active({language!r})."
            )
        if against == "others":
            return [other for other in self.languages if other != language]
        if against == "shared":
            return self.languages
        others = [against] if isinstance(against, str) else list(against)
        if language in others or not others:
            raise ValueError(f"against={others} must name languages other than {language!r}.")
        if unknown := [other for other in others if other not in self.documents]:
            choices = listed(["others", "shared", *self.languages], unknown[0])
            raise ValueError(f"against={unknown[0]!r}: nothing was detected for it; there are {choices}.")
        return others

    def _active_masks_of(
        self, against: str | Iterable[str], others: Sequence[str], language: str, quorum: float
    ) -> dict[str, Bool[Tensor, "layer _"]]:
        """Neurons that count as those of other languages."""
        if against == "shared":
            return {site: numbers == len(self.languages) for site, numbers in languages_active(self, quorum).items()}
        if against == "others":
            own = self._active_masks(language, quorum)
            return {site: numbers > own[site] for site, numbers in languages_active(self, quorum).items()}
        masks = [self._active_masks(other, quorum) for other in others]
        return {site: reduce(operator.or_, [mask[site] for mask in masks]) for site in masks[0]}

    @cached_property
    def _numbers(self) -> dict[float, dict[str, Int[Tensor, "layer _"]]]:
        return {}

    def _active_masks(self, language: str, quorum: float) -> dict[str, Bool[Tensor, "layer _"]]:
        require_language(self, language)
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum={quorum} is outside (0, 1].")
        needed = math.ceil(quorum * self.documents[language] - 1e-9)
        return {site: counts >= needed for site, counts in self.counts[language].items()}

    def _rule(self) -> dict[str, Any]:
        """What made neurons active, for the origin of sets."""
        names = ("top", "threshold", "scope", "formulation", "measure", "layers")
        rule = {name: self.settings[name] for name in names if name in self.settings}
        return {**rule, "corpus": self.settings["corpus"]["hash"], "seen": self.seen}

    def to_frame(self) -> pd.DataFrame:
        """One row per language, scored layer and site: active neurons at quorum 0.9, mean score, passages, documents,
        tokens.

        Neurons are active on passages; documents and tokens are NA in files of older versions.
        """
        return pd.DataFrame(
            {
                "language": language,
                "layer": layer,
                "site": site,
                "structure": SITES[site].structure,
                "width": mask.shape[1],
                "active": int(mask[layer].sum()),
                "mean_score": self.mean_scores[language][site][layer].mean().item(),
                **text_of(self, language),
            }
            for language in self.languages
            for site, mask in self._active_masks(language, 0.9).items()
            for layer in self.layers
        )

    def __repr__(self) -> str:
        read = [(language, *text_of(self, language).values()) for language in self.languages]
        texts = ", ".join(
            f"{language} {n}" + ("" if of is pd.NA else f" of {of}") + ("" if tokens is pd.NA else f" ({tokens:,})")
            for language, n, of, tokens in read
        )
        rule = ", ".join(f"{key}={value!r}" for key, value in self._rule().items() if key not in ("corpus", "seen"))
        return (
            f"Detection({self.space.shown}: {shown_part(self.settings)}passages of documents (tokens): {texts}; {rule})"
        )

    def _repr_html_(self) -> str:
        sums = self.to_frame().groupby(["language", "site"], sort=False)[["active", "width"]].sum()
        table = (sums["active"] / sums["width"]).unstack().reindex(self.languages)  # pyright: ignore
        caption = "Share of neurons that are active on at least nine in ten documents, by language and site"
        return f"<p>{escape(repr(self))}</p><p>{caption}:</p>{table.to_html(float_format='{:.1%}'.format)}"


def languages_active(detection: Detection, quorum: float) -> dict[str, Int[Tensor, "layer _"]]:
    """By site: in how many languages each neuron is active; counted once per quorum."""
    numbers = detection._numbers
    if quorum not in numbers:
        first, *others = (detection._active_masks(language, quorum) for language in detection.languages)
        numbers[quorum] = {site: mask.short() for site, mask in first.items()}
        for (site, number), masks in product(numbers[quorum].items(), others):
            number += masks[site]
    return numbers[quorum]


def result_bytes(neurons: int, languages: int) -> int:
    """How large the file of a detection becomes: counts, estimated scores, sums in two words and means of each."""
    return (2 + 1 + 16 + 4) * neurons * languages


def text_of(detection: Detection, language: str) -> dict[str, Any]:
    """How much was read of a language, for tables: ``passages``, ``documents`` (NA in parts and in older files) and
    ordinary ``tokens`` (NA in older files)."""
    whole = {} if "part" in detection.settings else detection.settings["corpus"]
    documents = whole.get("documents", {}).get(language, pd.NA)
    tokens = detection.tokens.get(language, pd.NA)
    return {"passages": detection.documents[language], "documents": documents, "tokens": tokens}


def require_language(detection: Detection, language: str) -> None:
    """Refuse a language that was not detected."""
    if language not in detection.documents:
        raise ValueError(f"Nothing was detected for {language!r}; there are {listed(detection.languages, language)}.")
