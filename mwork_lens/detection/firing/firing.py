"""How often, and how strongly, each feed-forward neuron's gate fires in each language, and whose neurons that makes."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...model.reducers import ExactSum
from ...neurons import GateValues, NeuronSet, NeuronSpace
from ...store import Result, digest
from ...text import SeenDocuments, check_arguments
from ...text.choices import listed
from ..merging import in_corpus_order, languages_of, merged_record, ordered
from .distributions import distribution_overlap
from .lape import lape
from .ranking import Ends, select_by_average_precision, select_by_mean_difference
from .reducers import Bins

Population = Literal["any", "single", "several"]


@dataclass(frozen=True)
class Firing(Result, kind="firing"):
    """What the gate's activation a does on the ordinary tokens of each language.

    a = act(x·W_gate), of a feed-forward without gate act(x·W_in), which is the neuron's own activation. A neuron fires
    on a token if a > 0.
    """

    space: NeuronSpace
    counts: Mapping[str, Int[Tensor, "layer neuron"]]
    """By language: tokens on which a neuron fires."""
    tokens: Mapping[str, int]
    """Ordinary tokens by language."""
    sums: Mapping[str, ExactSum]
    """By language: a summed over tokens, ``[layer, neuron]``."""
    squares: Mapping[str, ExactSum]
    """The same of a²."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    documents_of: Mapping[str, Sequence[str]]
    """By language: the hash of each document's token ids, in the order of the corpus."""
    gated: Sequence[bool]
    """By layer: whether a is multiplied with x·W_in."""
    biases: Float[Tensor, "layer neuron"] | None = None
    """What is added to the product; None where nothing is."""
    document_means: Mapping[str, Float[Tensor, "document layer neuron"]] = field(default_factory=dict)
    """By language: the mean of a over each document; empty unless it was asked for."""
    histograms: Mapping[str, Int[Tensor, "some neuron bin"]] = field(default_factory=dict)
    """By language: tokens by a, in the layers of ``bins``; empty unless they were asked for."""
    bins: Bins | None = None
    """Of the histograms."""
    seen: SeenDocuments | None = None
    """The documents, to be recognised wherever they are read again."""

    def _require_whole(self) -> None:
        shape = self.space.n_layers, self.space.d_mlp
        for language in self.tokens:
            arrays = self.counts[language], self.sums[language].high, self.squares[language].high
            if any(tuple(each.shape) != shape for each in arrays):
                raise ValueError(f"Firing of {language}: not of {self.space.described_sizes}.")

    @property
    def languages(self) -> list[str]:
        """The languages, in the order of the corpus."""
        return list(self.tokens)

    def means(self, language: str) -> Float[Tensor, "layer neuron"]:
        """The mean of a over a language's tokens; ValueError for one that was not collected."""
        if language not in self.tokens:
            raise ValueError(f"No firing was collected for {language!r}; there are {listed(self.tokens, language)}.")
        return self.sums[language].value() / self.tokens[language]

    def gate_values(self, language: str, *, against: str | Sequence[str] | None = None) -> GateValues:
        """The means of a in a language, for ``mode="add"`` and ``"replace"`` (:meth:`NeuronSet.hooks`).

        Args:
            language: whose means.
            against: take off the mean of these languages' means (codes, or ``"others"``): a direction to add.

        Raises:
            ValueError: for a language that was not collected, is against itself or, with ``against="others"``, alone.

        Example:
            >>> values = firing.gate_values("fr", against="en")
            >>> hooks = neurons["fr"].hooks("add", values=values, factor=2.0)
        """
        check_arguments(Firing.gate_values, locals())
        self._require_languages(1)
        values = self.means(language)
        if against is not None:
            others = [against] if isinstance(against, str) else list(against)
            if against == "others":
                others = [each for each in self.tokens if each != language]
            if language in others or not others:
                raise ValueError(f"against={against!r}: name other languages than {language!r} that were collected.")
            values = values - torch.stack([self.means(each) for each in others]).mean(0)
        return GateValues(self.space, values, self.gated, self.biases)

    @classmethod
    def merge(cls, parts: Iterable["Firing"]) -> "Firing":
        """One out of several, the same to the last bit in whatever order they are given; see :meth:`Detection.merge`.

        Raises:
            ValueError: as there; for histograms of other bins (``HistogramOptions(like=...)`` takes those of another),
                or in some parts only.
        """
        named = ordered({f"firing {number}": part for number, part in enumerate(parts)})
        _require_same_bins(named)
        several = list(named.values())
        _require_same_gates(several)
        languages, first = languages_of(several), several[0]
        names = [name for name in ("document_means", "histograms") if getattr(first, name)]
        of = {tag: [part for part in several if tag in part.tokens] for tag in languages}
        added = {
            name: {tag: _added([getattr(part, name)[tag] for part in of[tag]]) for tag in languages} for name in _SUMS
        }
        if "histograms" in names:  # a part may have a language's histograms and none of its other documents
            added["histograms"] = {
                tag: _added([part.histograms[tag] for part in several if tag in part.histograms]) for tag in languages
            }
        if "document_means" in names:
            rows = {tag: in_corpus_order(several, tag, "document_means") for tag in languages}
            added["document_means"] = {tag: torch.stack([*each]) for tag, each in rows.items()}
        tokens = {tag: sum(part.tokens[tag] for part in of[tag]) for tag in languages}
        gates = {"gated": first.gated, "biases": first.biases}
        return cls(tokens=tokens, bins=first.bins, **gates, **added, **merged_record(several))

    def lape(self, *, top: float = 0.01) -> dict[str, NeuronSet]:
        """Each language's neurons by LAPE (Tang et al., ACL 2024); a neuron can be several languages'.

        Of the neurons that in some language fire on a larger share of tokens than 95 % of all neurons and languages do,
        the share ``top`` of all neurons with the lowest entropy over languages; each is of those languages.

        Example:
            >>> neurons = firing.lape(top=0.01)
            >>> neurons["fr"].origin["kind"], neurons["fr"].masks["mlp"].shape
            ('LAPE', torch.Size([18, 2048]))
        """
        check_arguments(Firing.lape, locals())
        self._require_languages(2)
        masks = lape(self._stacked(self.counts), self._numbers(), top=float(top))
        return self._sets(masks, kind="LAPE", top=top)

    def mean_difference(self, *, size: int | float = 0.01) -> dict[str, NeuronSet]:
        """For each language, the ``size`` neurons whose mean of a is highest above the mean of the others' means.

        In units of the pooled standard deviation within languages. ``size`` is a number of neurons or, as a float up to
        1.0, a share of those of the feed-forward.
        """
        check_arguments(Firing.mean_difference, locals())
        self._require_languages(2)
        sums, squares = (torch.stack([each[tag].value() for tag in self.tokens]) for each in (self.sums, self.squares))
        masks = select_by_mean_difference(sums, squares, self._numbers(), size=size)
        return self._sets(masks, kind="mean difference", size=size)

    def average_precision(self, *, size: int | float = 0.01, ends: Ends = "both") -> dict[str, NeuronSet]:
        """For each language, the neurons whose document means classify documents as its own best (Kojima et al. 2024).

        Args:
            size: as for :meth:`mean_difference`.
            ends: the highest average precision, the lowest, or half of each, as in the source.

        Raises:
            ValueError: where no document means were collected.
        """
        check_arguments(Firing.average_precision, locals())
        self._require_languages(2)
        if not self.document_means:
            raise ValueError("There are no document means: collect_firing(..., document_means=True) keeps them.")
        means = [self.document_means[language] for language in self.tokens]
        languages = torch.arange(len(means)).repeat_interleave(torch.tensor([len(each) for each in means]))
        masks = select_by_average_precision(torch.cat(means), languages, size=size, ends=ends)
        return self._sets(masks, kind="average precision", size=size, ends=ends)

    def distribution_overlap(self, *, percentile: float = 1.0, population: Population = "any") -> dict[str, NeuronSet]:
        """Each language's neurons by how little the distributions of a overlap between two parts of the languages.

        A neuron is of the languages in the smaller part, if the largest overlap between the parts is at most the
        ``percentile`` of all overlaps between two languages. With few tokens few or none are. The origin says for how
        many the order of the languages has decided between parts as good (``tied``).

        Args:
            percentile: in percent, of all neurons and pairs of languages.
            population: neurons of a single language, of several, or any.

        Raises:
            ValueError: for fewer than three languages, or where no histograms were collected.
        """
        check_arguments(Firing.distribution_overlap, locals())
        self._require_languages(3)
        if self.bins is None:
            raise ValueError("There are no histograms: collect_firing(..., histograms=HistogramOptions()) keeps them.")
        found = distribution_overlap(self._stacked(self.histograms), percentile=float(percentile))
        number = found.masks.sum(0)
        wanted = {"any": number > 0, "single": number == 1, "several": number > 1}[population]
        masks = torch.zeros(len(self.tokens), self.space.n_layers, self.space.d_mlp, dtype=torch.bool)
        masks[:, list(self.bins.layers)] = found.masks & wanted
        rule = {"percentile": percentile, "population": population, "threshold": found.threshold}
        rule |= {"languages": self.languages, "tied": int((found.tied & wanted).sum()), **self.settings["histograms"]}
        return self._sets(masks, kind="distribution overlap", **rule)

    def _sets(self, masks: Bool[Tensor, "language layer neuron"], **rule: Any) -> dict[str, NeuronSet]:
        corpus = {"corpus": self.settings["corpus"]["hash"], "seen": self.seen}
        return {
            language: NeuronSet(self.space, {"mlp": mask}, {"language": language, **rule, **corpus})
            for language, mask in zip(self.tokens, masks, strict=True)
        }

    def _stacked(self, of: Mapping[str, Int[Tensor, "..."]]) -> Int[Tensor, "language ..."]:
        return torch.stack([of[language] for language in self.tokens])

    def _numbers(self) -> Int[Tensor, " language"]:
        return torch.tensor(list(self.tokens.values()))

    def _require_languages(self, number: int) -> None:
        if "part" in self.settings:
            raise ValueError("This is a part of a corpus: merge all parts first (Firing.merge).")
        if len(self.tokens) < number:
            raise ValueError(f"There are {len(self.tokens)} languages ({', '.join(self.tokens)}), and {number} needed.")

    def to_frame(self) -> pd.DataFrame:
        """One row per language and layer: means over neurons of the share of tokens on which one fires, and of a."""
        return pd.DataFrame(
            {
                "language": language,
                "layer": layer,
                "tokens": tokens,
                "firing": float(counts.double().mean() / tokens),
                "mean": float(means.mean()),
            }
            for language, tokens in self.tokens.items()
            for layer, (counts, means) in enumerate(zip(self.counts[language], self.means(language), strict=True))
        )

    def __repr__(self) -> str:
        kept = [name for name in ("document_means", "histograms") if getattr(self, name)]
        more = f"; {', '.join(kept).replace('_', ' ')}" if kept else ""
        tokens = ", ".join(f"{language} {number:,}" for language, number in self.tokens.items())
        return f"Firing({self.space.shown}: tokens {tokens}{more})"


_SUMS = ("counts", "sums", "squares")


def _added(values: Sequence[Any]) -> Any:
    """The sum of tensors or of exact sums, as a new one."""
    if isinstance(values[0], Tensor):
        return reduce(operator.add, values)
    total = ExactSum.zeros(*values[0].high.shape)
    for each in values:
        total.add(each)
    return total


def _require_same_gates(parts: Sequence[Firing]) -> None:
    if len({digest({"gated": list(part.gated), "biases": part.biases}) for part in parts}) > 1:
        raise ValueError(
            f"The parts are of models {parts[0].space.model} whose gates differ, or what is added to them."
        )


def _require_same_bins(named: Mapping[str, Firing]) -> None:
    first, *others = named.items()
    for name, part in others:
        if (part.bins and part.bins.identity) != (first[1].bins and first[1].bins.identity):
            raise ValueError(
                f"The histograms of {first[0]} and {name} have other bins: collect each with "
                "HistogramOptions(like=...) of one Firing, e.g. of what the parts merge to without histograms."
            )
