"""The result of :func:`language_ratio`: counts of each prompt; shares, lifts over chance and the verdict follow."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from itertools import product
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..model import ExactSum, HookedModel, ModelRecord, shown_model
from ..model.shards import by_name, shown_part
from ..statistics import Estimate, Jackknife, Values, adjusted_verdict, benjamini_hochberg, counted, not_measurable
from ..store import Result, require_record, storable
from ..text import OTHER, SHARED, check_arguments
from ..text.choices import listed
from .merging import merged_fields
from .vocabulary import TokenLanguages

NOT_MEASURABLE = "not measurable"


class _Read(TypedDict):
    """What the prompts say of themselves."""

    parallel: bool


class _Settings(ModelRecord):
    """What results are computed from and say, of all that the settings hold."""

    n_layers: int
    top_k: int | None
    by: str
    normalize: bool
    identifier: NotRequired[str]
    corpus: _Read


@storable
@dataclass(frozen=True, eq=False)
class Baseline:
    """What a part of the prompts adds to the random directions, and what these are decoded to once they are whole."""

    sums: Mapping[str, ExactSum]
    """See :attr:`mwork_lens.lens.directions.Reading.sums`."""
    labels: TokenLanguages


@dataclass(frozen=True, eq=False)
class LanguageRatio(Result, kind="language_ratio"):
    """Languages of the tokens that each prompt's hidden states decode to, by layer, and of what chance decodes to."""

    counts: Mapping[str, Float[Tensor, "prompt layer label"]]
    """By prompt language: decoded tokens (or probability) under each label, summed up over positions."""
    chance: Float[Tensor, "layer direction label"]
    """The same for random directions; no direction where the baseline was left out."""
    vocabulary: Float[Tensor, " label"]
    """Each label's share of the whole vocabulary."""
    layers: tuple[int, ...]
    """0 is the embedding, the last one what the model's own logits are computed from."""
    names: tuple[str, ...]
    """The labels: all languages that tokens were identified over, then ``shared`` and ``other``."""
    languages: tuple[str, ...]
    """The languages reported; the rest of ``names`` is ``other``."""
    documents: Mapping[str, Sequence[str]]
    """By prompt language: the document of each prompt; intervals are by the jackknife over documents."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""
    baseline: Baseline | None = None
    """In a part only (``language_ratio(..., shard=)``), which has no ``chance`` yet."""

    def _require_whole(self) -> None:
        shapes = {language: tuple(counts.shape) for language, counts in self.counts.items()}
        sizes = len(self.layers), len(self.names)
        if shapes != {language: (len(documents), *sizes) for language, documents in self.documents.items()}:
            raise ValueError(f"The counts have shapes {shapes}, for {sizes[0]} layers and {sizes[1]} labels.")
        if (
            self.chance.shape[::2] != sizes
            or self.vocabulary.shape != sizes[1:]
            or not {*self.languages} <= {*self.names}
        ):
            raise ValueError(f"Labels {self.names}, of which {self.languages} are reported, do not fit the shares.")
        if self.names[-2:] != (SHARED, OTHER):
            raise ValueError(f"Labels {self.names} do not end with {SHARED!r} and {OTHER!r}.")
        require_record(self.settings, _Settings, "the settings")

    @classmethod
    def merge(
        cls, parts: Iterable["LanguageRatio"] | Mapping[str, "LanguageRatio"], model: HookedModel | None = None
    ) -> "LanguageRatio":
        """The result of all prompts out of those of all parts, in any order, to the last bit.

        Args:
            parts: made with ``shard=``; messages call them by the names of a mapping.
            model: the model that was read, which decodes the random directions; not needed with ``directions=0``.

        Raises:
            ValueError: for parts of other models or settings, that are missing, there twice or of another plan; and for
                no model, or one with other weights.

        Example:
            >>> options = {"directions": 4, "batch_size": 1, "progress": False}
            >>> prompts = {"fr": ["Bonjour le monde", "Il pleut"]}
            >>> parts = [mw.language_ratio(model, prompts, shard=(i, 2), **options) for i in (1, 0)]
            >>> mw.LanguageRatio.merge(parts, model).counts["fr"].shape[:2]  # prompt, layer
            torch.Size([2, 19])
        """
        return cls(**merged_fields(by_name(parts, "ratio"), model))

    def only_part(self, rows: Mapping[str, Sequence[int]], baseline: Baseline) -> "LanguageRatio":
        """Some prompts of some languages, with what they add to the baseline."""
        counts = {label: self.counts[label][list(places)] for label, places in rows.items()}
        documents = {label: [self.documents[label][row] for row in places] for label, places in rows.items()}
        return replace(self, counts=counts, documents=documents, baseline=baseline)

    @property
    def labels(self) -> tuple[str, ...]:
        """What shares are reported for: ``languages``, ``shared``, ``other``; they add up to one."""
        return (*self.languages, SHARED, OTHER)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt language, layer and label.

        Columns: prompt_language, layer (0 is the embedding), language (with ``shared`` and ``other``), share with its
        95 % interval low and high (mean over prompts, jackknife over documents), chance (share in random directions),
        vocabulary (share of the vocabulary), lift (share − chance) with lift_low and lift_high, passages (prompts) and
        documents.
        """
        frames = {}
        for prompts, share in self._shares.items():
            lift = share - self._chance
            (low, high), (lift_low, lift_high) = share.share_interval, lift.interval
            shares = {"share": share.value, "low": low, "high": high, "chance": self._chance.value}
            lifts = {"lift": lift.value, "lift_low": lift_low, "lift_high": lift_high}
            counts = {"passages": share.passages, "documents": share.documents}
            columns = {**shares, "vocabulary": self._reported.vocabulary.numpy(), **lifts}
            frames[prompts] = by_layer(self.layers, self.labels, {**columns, **counts})
        return pd.concat(frames, names=["prompt_language"]).droplevel(1).reset_index()

    def only(self, prompt_language: str) -> "LanguageRatio":
        """The same result for the prompts of one language.

        Raises:
            KeyError: if there are none.
        """
        check_arguments(LanguageRatio.only, locals())
        if prompt_language not in self.counts:
            raise KeyError(
                f"There are no prompts in {prompt_language!r}; there are {listed(self.counts, prompt_language)}."
            )
        counts, documents = self.counts[prompt_language], self.documents[prompt_language]
        return replace(self, counts={prompt_language: counts}, documents={prompt_language: documents})

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> "LanguageRatio":
        """The same result for groups of languages, e.g. ``{"Romance": ["fr", "es"], "Germanic": ["en", "de"]}``.

        Raises:
            ValueError: for a language that tokens were not identified over, or one in two groups.
        """
        check_arguments(LanguageRatio.grouped, locals())
        listed = [language for group in groups.values() for language in group]
        once = listed and len(set(listed)) == len(listed) and set(listed) <= set(self.names[:-2])
        if not once or groups.keys() & {SHARED, OTHER}:
            raise ValueError(
                f"Groups {dict(groups)} must hold, once each, some of {', '.join(self.names[:-2])}, the languages that "
                f"tokens were identified over, and not be called {SHARED} or {OTHER}."
            )
        group_of = {language: group for group, members in groups.items() for language in members} | {SHARED: SHARED}
        names, targets = (*groups, SHARED, OTHER), [group_of.get(name, OTHER) for name in self.names]
        fold = torch.tensor([[target == name for name in names] for target in targets], dtype=torch.float64)
        counts = {label: counts @ fold for label, counts in self.counts.items()}
        folded = {"counts": counts, "chance": self.chance @ fold, "vocabulary": self.vocabulary @ fold}
        return replace(self, **folded, names=names, languages=tuple(groups))

    def two_way(self, language: str = "en") -> "LanguageRatio":
        """Two rows, as in the paper's figure: one language, and all others that tokens were identified over.

        Raises:
            ValueError: for a language that tokens were not identified over.
        """
        check_arguments(LanguageRatio.two_way, locals())
        if language not in self.names[:-2]:
            over = listed(self.names[:-2], language)
            raise ValueError(f"Tokens were not identified as {language!r}; they were over {over}.")
        rest = [other for other in self.names[:-2] if other != language]
        return self.grouped({language: [language], f"non-{language}": rest})

    def verdict(self, language: str = "en", layers: Sequence[int] | None = None) -> pd.DataFrame:
        """Whether the layers decode to ``language`` more than chance does, for prompts in other languages.

        Args:
            language: e.g. English, the pivot that the paper proposes.
            layers: averaged over; by default the middle third.

        Returns:
            One row per prompt language other than ``language``, and their mean: share, chance, lift (share − chance)
            with its 95 % interval low and high (over documents and random directions), p, passages, documents,
            p_adjusted (over the prompt languages; the mean is a test of its own), and the verdict by it: above, below
            or at chance, or not measurable on fewer than six documents.

        Raises:
            ValueError: for a language that is not reported, layers that were not read, or no baseline.
        """
        check_arguments(LanguageRatio.verdict, locals())
        if language not in self.languages:
            raise ValueError(f"{language!r} is not reported; there are {listed(self.languages, language)}.")
        rows = [self.layers.index(layer) for layer in self._middle(layers)]
        if not self.chance.shape[1]:
            raise ValueError("Without a baseline (directions=0) there is no verdict: nothing says what chance gives.")
        others = [prompts for prompts in self.counts if prompts != language]
        if not others:
            raise ValueError(f"All prompts are in {language!r}: a verdict needs prompts in another language.")
        column = self.labels.index(language)

        def middle(estimate: Estimate) -> Estimate:
            return estimate.map(lambda values: values[..., rows, column].mean(-1))

        shares, chance = {prompts: middle(self._shares[prompts]) for prompts in others}, middle(self._chance)
        shares["mean"] = Estimate.mean(list(shares.values()))
        table = []
        for prompts, share in shares.items():
            lift = share - chance
            numbers = {"share": share.value, "chance": chance.value, **lift.tested("lift")}
            table.append({"prompt_language": prompts, **numbers})
        frame = pd.DataFrame(table).set_index("prompt_language")
        frame["p_adjusted"] = [*benjamini_hochberg(frame["p"].to_numpy()[:-1]), frame["p"].iloc[-1]]
        return frame.assign(verdict=[_words(row) for row in frame.to_dict("records")])

    def finding(self, language: str = "en") -> str:
        """The verdict as a sentence with its numbers."""
        check_arguments(LanguageRatio.finding, locals())
        table, layers = self.verdict(language), self._middle(None)
        mean, single = table.loc["mean"], table.drop(index="mean")
        groups = {kind: list(rows.index) for kind, rows in single.groupby("verdict", sort=False)}
        listed = "; ".join(f"{kind} for {', '.join(prompts)}" for kind, prompts in groups.items())
        points = f"{100 * mean['lift']:+.1f} points"
        if mean["verdict"] == NOT_MEASURABLE:
            lift = f"{points}, {not_measurable(int(mean['documents']), passages=int(mean['passages']))}."
        else:
            lift = f"{points} ({100 * mean['low']:+.1f} to {100 * mean['high']:+.1f}), {mean['verdict']} ({listed})."
        vocabulary = float(self.vocabulary[self.names.index(language)])
        documents = [names for prompts, names in self.documents.items() if prompts != language]
        read = counted(map(len, documents), (len(set(names)) for names in documents), "prompts")
        middle = f"layers {layers[0]} to {layers[-1]} of {self.settings['n_layers']}"
        return (
            f"In {middle}, prompts in other languages ({read} per language) decode to {mean['share']:.1%} {language} "
            f"tokens where random directions give {mean['chance']:.1%} and the vocabulary holds {vocabulary:.1%}: a "
            f"lift over random directions of {lift}"
        )

    def _middle(self, layers: Sequence[int] | None) -> list[int]:
        total = self.settings["n_layers"]
        wanted = [layer for layer in self.layers if total < 3 * layer <= 2 * total] if layers is None else list(layers)
        unread = [layer for layer in wanted if layer not in self.layers]
        if unread or not wanted:
            raise ValueError(f"Layers {unread or 'of the middle third'} were not read; there are {list(self.layers)}.")
        return wanted

    @cached_property
    def _reported(self) -> "LanguageRatio":
        """The same result without the languages that are not reported."""
        return self.grouped({language: [language] for language in self.languages})

    @cached_property
    def _shares(self) -> dict[str, Estimate]:
        """By prompt language, ``[layer, reported]``: the mean share over prompts."""
        jackknife = Jackknife.of(self.documents, paired=bool(self.settings["corpus"]["parallel"]))
        return {label: jackknife.mean(label, _shares(counts)) for label, counts in self._reported.counts.items()}

    @cached_property
    def _chance(self) -> Estimate:
        """``[layer, reported]``: the mean share over random directions, which are its units; NaN without directions."""
        if not self.chance.shape[1]:
            return Estimate.nan()
        chance = Estimate.of_mean(_shares(self._reported.chance).transpose(1, 0, 2), units="directions")
        return replace(
            chance, documents=sys.maxsize, effective=np.inf, passages=sys.maxsize
        )  # it does not rest on documents

    def __repr__(self) -> str:
        prompts = ", ".join(f"{label} {len(counts)}" for label, counts in self.counts.items())
        options = {key: self.settings.get(key) for key in ("top_k", "by", "normalize", "identifier")}
        read = f"{shown_part(self.settings)}prompts {prompts}; layers {list(self.layers)}"
        return f"LanguageRatio({shown_model(self.settings)}: {read}; {options})"

    def _repr_html_(self) -> str:
        shares = self.to_frame().pivot(index=["prompt_language", "language"], columns="layer", values="share")
        return f"<p>{escape(repr(self))}</p>{shares.to_html(float_format='{:.0%}'.format)}"


def _words(row: Mapping[Any, Any]) -> str:
    side = adjusted_verdict(row["lift"], row["p_adjusted"])
    return side if side == NOT_MEASURABLE else f"{side} chance"


def _shares(counts: Float[Tensor, "*shape label"]) -> Float[np.ndarray, "*shape label"]:
    return (counts / counts.sum(-1, keepdim=True)).numpy()


def by_layer(layers: Sequence[int], languages: Sequence[str], columns: Mapping[str, Values]) -> pd.DataFrame:
    """One row per layer and language, of columns that broadcast to ``[layer, language]``."""
    cells = pd.DataFrame(product(layers, languages), columns=["layer", "language"])
    shape = len(layers), len(languages)
    return cells.assign(**{name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()})
