"""Cards of single neurons: what each reads and writes, and in which languages."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import SITES, ModelRecord, shown_model
from ..statistics import Estimate
from ..store import Result, fits, require_record
from ..text.choices import listed

Neuron = tuple[int, str, int]
NEURONS_SHOWN = 12


class _Context(TypedDict):
    """A passage where a neuron is strong."""

    language: str
    before: str
    token: str
    after: str


@dataclass(frozen=True, eq=False)
class NeuronCards(Result, kind="neuron_cards"):
    """What each of some neurons reads and writes."""

    neurons: tuple[Neuron, ...]
    """(layer, site, neuron), by layer and site."""
    firing_rate: Float[Tensor, "neuron language"]
    """Share of positions where the feed-forward's nonlinearity lets the neuron through; NaN in attention."""
    mean: Float[Tensor, "neuron language"]
    """Mean activation over positions."""
    magnitude: Float[Tensor, "neuron language"]
    """Mean absolute activation."""
    strongest: Float[Tensor, "neuron rank"]
    """The activations of largest absolute value, with their sign."""
    contexts: tuple[tuple[dict[str, Any], ...], ...]
    """For each of these: language, passage, and the text before, at and after the token."""
    promoted: Int[Tensor, "neuron k"]
    """Tokens that the neuron makes likelier where it is strongest, first one first; -1 for ``q`` and ``k``."""
    suppressed: Int[Tensor, "neuron k"]
    tokens: Mapping[int, tuple[str, str]]
    """Text and language of these tokens."""
    vocabulary: Mapping[str, float]
    """Share of the whole vocabulary under each label."""
    languages: tuple[str, ...]
    """Of the corpus."""
    settings: Mapping[str, Any]

    def _require_whole(self) -> None:
        require_record(self.settings, ModelRecord, "the settings")
        if not fits(self.contexts, tuple[tuple[_Context, ...], ...]):
            raise ValueError(f"The contexts need the texts {', '.join(_Context.__annotations__)}.")
        if unknown := {site for _, site, _ in self.neurons} - SITES.keys():
            raise ValueError(f"There is no site {min(unknown)!r}; there are {', '.join(SITES)}.")
        rates = {tuple(each.shape) for each in (self.firing_rate, self.mean, self.magnitude)}
        rows = {len(each) for each in (self.contexts, self.strongest, self.promoted, self.suppressed)}
        if rates != {(len(self), len(self.languages))} or rows != {len(self)}:
            raise ValueError(f"The cards are not of {len(self)} neurons and the languages {self.languages}.")
        ids = {*self.promoted.flatten().tolist(), *self.suppressed.flatten().tolist()}
        if lacking := {i for i in ids if i >= 0} - self.tokens.keys():
            raise ValueError(f"The text of the token {min(lacking)} is missing.")
        if lacking := {language for _, language in self.tokens.values()} - self.vocabulary.keys():
            raise ValueError(f"The share of {min(lacking)!r} in the vocabulary is missing.")

    @property
    def sign(self) -> Int[Tensor, " neuron"]:
        """1 or -1: the sign of each neuron's activation where it is strongest, and so of what it promotes."""
        return sign_of(self.strongest)

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron: its place, what it is strongest on, and the tokens it promotes and suppresses."""
        frame = pd.DataFrame(self.neurons, columns=["layer", "site", "neuron"])
        for name, values in {"firing": self.firing_rate, "mean": self.mean, "magnitude": self.magnitude}.items():
            frame[[f"{name}_{tag}" for tag in self.languages]] = values.numpy()
        frame["strongest_on"] = [[context["token"] for context in contexts] for contexts in self.contexts]
        for name, ids in {"promotes": self.promoted, "suppresses": self.suppressed}.items():
            tokens = list(map(self._tokens, ids))
            frame[name] = [[text for text, _ in each] for each in tokens]
            frame[f"{name}_languages"] = [[language for _, language in each] for each in tokens]
        return frame

    def _tokens(self, ids: Int[Tensor, " k"]) -> list[tuple[str, str]]:
        return [self.tokens[i] for i in ids.tolist() if i >= 0]

    def written(self) -> pd.DataFrame:
        """The languages of what the neurons promote, by layer: one row per layer and label.

        Columns: layer, language, neurons (those that write to the residual stream), share of their promoted tokens with
        its 95 % interval low and high (jackknife over neurons), and the label's share of the vocabulary.
        """
        columns = ["layer", "language", "neurons", "share", "low", "high", "vocabulary"]
        rows = []
        for layer, shares in self._promoted_shares().groupby(level="layer"):
            mean = Estimate.of_mean(shares.to_numpy())
            numbers = np.stack([mean.value, *mean.share_interval, list(self.vocabulary.values())], axis=1)
            rows += [(layer, label, len(shares), *each) for label, each in zip(shares, numbers, strict=True)]
        return pd.DataFrame(rows, columns=columns)

    def summary(self, language: str) -> dict[str, float]:
        """How much of what the whole set promotes is in one language.

        Returns:
            The share of the promoted tokens with its 95 % interval low and high (jackknife over neurons), the share of
            the vocabulary, and how many neurons write to the residual stream at all.

        Raises:
            ValueError: for a language that tokens were not identified over.
        """
        if language not in self.vocabulary:
            as_others = listed(self.vocabulary, language)
            raise ValueError(f"Tokens were not identified as {language!r}, but as {as_others}.")
        shares = self._promoted_shares()[language].to_numpy()
        share = Estimate.of_mean(shares) if len(shares) else Estimate.nan()
        low, high = map(float, share.share_interval)
        numbers = {"share": float(share.value), "low": low, "high": high}
        return {**numbers, "vocabulary": self.vocabulary[language], "neurons": len(shares)}

    def _promoted_shares(self) -> pd.DataFrame:
        """The languages of promoted tokens: one row per neuron that writes, by layer, one column per label."""
        writing = [i for i, (_, site, _) in enumerate(self.neurons) if SITES[site].writes]
        counts = [Counter(language for _, language in self._tokens(self.promoted[i])) for i in writing]
        layers = pd.Index([self.neurons[i][0] for i in writing], name="layer")
        return pd.DataFrame(counts, layers, list(self.vocabulary), dtype=float).fillna(0) / self.promoted.shape[1]

    def __len__(self) -> int:
        return len(self.neurons)

    def __repr__(self) -> str:
        by_site = ", ".join(f"{site} {sum(s == site for _, s, _ in self.neurons)}" for site in SITES)
        return f"NeuronCards({shown_model(self.settings)}: {len(self)} neurons ({by_site}), read on {self.languages})"

    def _repr_html_(self) -> str:
        return self.to_html(NEURONS_SHOWN)

    def to_html(self, limit: int | None = None) -> str:
        """The cards as HTML, all text escaped; at most ``limit`` of them, evenly over the set."""
        number = len(self) if limit is None else min(limit, len(self))
        shown = sorted({int(i) for i in np.linspace(0, len(self) - 1, number)}) if number else []
        rest = "" if number == len(self) else f"<p>{number} of {len(self):,} neurons.</p>"
        return f"<style>{_STYLE}</style><div class='cards'>{''.join(self._card(i) for i in shown)}</div>{rest}"

    def _card(self, i: int) -> str:
        layer, site, neuron = self.neurons[i]
        rows = ["<tr><th></th><th>fires</th><th>mean</th><th>mean |·|</th></tr>"]
        values = torch.stack([self.firing_rate[i], self.mean[i], self.magnitude[i]], 1).tolist()
        for tag, (fires, mean, magnitude) in zip(self.languages, values, strict=True):
            cells = (escape(tag), "–" if np.isnan(fires) else f"{fires:.0%}", f"{mean:+.3g}", f"{magnitude:.3g}")
            rows.append(f"<tr><td>{'</td><td>'.join(cells)}</td></tr>")
        contexts = "".join(
            f"<li><b>{value:+.2f}</b> <i>{escape(c['language'])}</i> <bdi>{escape(c['before'])}"
            f"<mark>{escape(c['token'])}</mark>{escape(c['after'])}</bdi></li>"
            for value, c in zip(self.strongest[i].tolist(), self.contexts[i], strict=False)
        )
        written = {"Promotes": self.promoted[i], "Suppresses": self.suppressed[i]} if SITES[site].writes else {}
        write = "".join(
            f"<p>{name}: {''.join(_chip(*token) for token in self._tokens(ids))}</p>" for name, ids in written.items()
        )
        head = f"<h4>layer {layer} · {escape(site)} · {neuron}</h4>"
        return f"<div class='card'>{head}<table>{''.join(rows)}</table><ol>{contexts}</ol>{write}</div>"


_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: .8rem; font-size: .85rem; overflow-wrap: anywhere; }
.card h4 { margin: 0 0 .5rem; } .card p { margin: .5rem 0 0; line-height: 1.9; } .card ol { padding-left: 1.2rem; }
.card td, .card th { padding: 0 .7rem 0 0; text-align: right; } .card mark { background: #F0E442; }
.card .chip { background: #eef; border-radius: 4px; padding: .1rem .35rem; margin-right: .3rem; white-space: pre; }
.card .chip sub { color: #555; margin-left: .3rem; }
"""


def _chip(text: str, language: str) -> str:
    return f"<span class='chip'><bdi>{escape(text)}</bdi><sub>{escape(language)}</sub></span>"


def sign_of(strongest: Float[Tensor, "neuron rank"]) -> Int[Tensor, " neuron"]:
    """1 or -1: the sign of each neuron where it is strongest."""
    return torch.where(strongest.sum(1) < 0, -1, 1)
