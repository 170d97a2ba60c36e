"""Cards of single neurons: what each reads and writes, and in which languages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import MAX_TOKENS, encode
from ..corpora import Corpus, Document, as_corpus
from ..languages import Identifier
from ..neurons import NeuronSet, NeuronSpace
from ..sites import SITES, HookedModel
from ..statistics import RESAMPLES, intervals
from ..store import read_result, write_result
from .reading import Followed, fires, follow
from .vocabulary import TokenLanguages, label_vocabulary, token_texts
from .writing import WRITES, directions, written

Neuron = tuple[int, str, int]
NEURONS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class NeuronCards:
    """What each of some neurons reads and writes."""

    neurons: tuple[Neuron, ...]
    """(layer, site, neuron), by layer and site."""
    firing_rate: Float[Tensor, "neuron language"]
    """Share of positions where the feed-forward's nonlinearity lets the neuron through; missing in attention."""
    mean: Float[Tensor, "neuron language"]
    """Mean activation over positions."""
    magnitude: Float[Tensor, "neuron language"]
    """Mean absolute activation."""
    strongest: Float[Tensor, "neuron rank"]
    """The activations of largest absolute value."""
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

    @property
    def sign(self) -> Int[Tensor, " neuron"]:
        """1 or -1: the sign of each neuron's activation where it is strongest, and so of what it promotes."""
        return _sign(self.strongest)

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron: where it is, where it is strongest, and the tokens it promotes and suppresses."""
        rows = []
        for i, (layer, site, neuron) in enumerate(self.neurons):
            row: dict[str, Any] = {"layer": layer, "site": site, "neuron": neuron}
            row |= {f"firing_{tag}": float(self.firing_rate[i, j]) for j, tag in enumerate(self.languages)}
            row |= {f"mean_{tag}": float(self.mean[i, j]) for j, tag in enumerate(self.languages)}
            row |= {f"magnitude_{tag}": float(self.magnitude[i, j]) for j, tag in enumerate(self.languages)}
            row["strongest_on"] = [context["token"] for context in self.contexts[i]]
            for name, ids in (("promotes", self.promoted[i]), ("suppresses", self.suppressed[i])):
                found = self._known(ids)
                row[name] = [text for text, _ in found]
                row[f"{name}_languages"] = [language for _, language in found]
            rows.append(row)
        return pd.DataFrame(rows)

    def _known(self, ids: Int[Tensor, " k"]) -> list[tuple[str, str]]:
        return [self.tokens[i] for i in ids.tolist() if i >= 0]

    def written(self) -> pd.DataFrame:
        """The languages of what the neurons promote, by layer: one row a layer and label.

        Columns: layer, language, neurons (those that write to the residual stream), share of their promoted tokens with
        its 95 % interval low and high (bootstrap over neurons), and the label's share of the vocabulary.
        """
        writing = [i for i, (_, site, _) in enumerate(self.neurons) if site in WRITES]
        labels = list(self.vocabulary)
        shares = np.zeros((len(writing), len(labels)))
        for row, i in enumerate(writing):
            for _, language in self._known(self.promoted[i]):
                shares[row, labels.index(language)] += 1 / self.promoted.shape[1]
        layers = np.array([self.neurons[i][0] for i in writing], dtype=int)
        rows = []
        for layer in np.unique(layers):
            here = shares[layers == layer]
            drawn = np.random.default_rng(0).multinomial(len(here), np.full(len(here), 1 / len(here)), size=RESAMPLES)
            low, high = intervals(drawn @ here / len(here))
            rows += [
                {
                    "layer": int(layer),
                    "language": label,
                    "neurons": len(here),
                    "share": here[:, j].mean(),
                    "low": low[j],
                    "high": high[j],
                    "vocabulary": self.vocabulary[label],
                }
                for j, label in enumerate(labels)
            ]
        columns = ["layer", "language", "neurons", "share", "low", "high", "vocabulary"]
        return pd.DataFrame(rows, columns=columns)

    def summary(self, language: str) -> dict[str, float]:
        """How much of what the whole set promotes is in one language: share, vocabulary's share, neurons that write.

        Raises:
            ValueError: for a language that tokens were not identified over.
        """
        if language not in self.vocabulary:
            raise ValueError(f"Tokens were not identified as {language!r}, but as {', '.join(self.vocabulary)}.")
        rows = self.written()
        own = rows[rows["language"] == language]
        shares, counts = own["share"].to_numpy(), own["neurons"].to_numpy()
        neurons = int(counts.sum())
        share = float((shares * counts).sum() / neurons) if neurons else float("nan")
        return {"share": share, "vocabulary": self.vocabulary[language], "neurons": neurons}

    def __len__(self) -> int:
        return len(self.neurons)

    def __repr__(self) -> str:
        by_site = ", ".join(f"{site} {sum(s == site for _, s, _ in self.neurons)}" for site in SITES)
        return f"NeuronCards({self.settings['model']}: {len(self)} neurons ({by_site}), read on {self.languages})"

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
        rows = "".join(
            f"<tr><td>{escape(tag)}</td><td>{_percent(self.firing_rate[i, j])}</td>"
            f"<td>{float(self.mean[i, j]):+.3g}</td><td>{float(self.magnitude[i, j]):.3g}</td></tr>"
            for j, tag in enumerate(self.languages)
        )
        contexts = "".join(
            f"<li><b>{value:+.2f}</b> <i>{escape(c['language'])}</i> <bdi>{escape(c['before'])}"
            f"<mark>{escape(c['token'])}</mark>{escape(c['after'])}</bdi></li>"
            for value, c in zip(self.strongest[i].tolist(), self.contexts[i], strict=False)
        )
        write = "".join(
            f"<p>{name}: {''.join(_chip(*found) for found in self._known(ids))}</p>"
            for name, ids in (("Promotes", self.promoted[i]), ("Suppresses", self.suppressed[i]))
            if site in WRITES
        )
        head = "<tr><th></th><th>fires</th><th>mean</th><th>|mean|</th></tr>"
        return (
            f"<div class='card'><h4>layer {layer} · {escape(site)} · {neuron}</h4><table>{head}{rows}</table>"
            f"<ol>{contexts}</ol>{write}</div>"
        )

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""
        cfg = {
            "neurons": [list(neuron) for neuron in self.neurons],
            "contexts": [list(found) for found in self.contexts],
            "tokens": {str(i): list(found) for i, found in self.tokens.items()},
            "vocabulary": dict(self.vocabulary),
            "languages": list(self.languages),
            "settings": dict(self.settings),
        }
        write_result(path, "neuron_cards", cfg, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, path: str | Path) -> "NeuronCards":
        """Read what :meth:`save` wrote."""
        cfg, tensors = read_result(path, "neuron_cards")
        return cls(
            neurons=tuple((layer, site, neuron) for layer, site, neuron in cfg["neurons"]),
            contexts=tuple(tuple(found) for found in cfg["contexts"]),
            tokens={int(i): (text, language) for i, (text, language) in cfg["tokens"].items()},
            vocabulary=cfg["vocabulary"],
            languages=tuple(cfg["languages"]),
            settings=cfg["settings"],
            **tensors,
        )


_TENSORS = ("firing_rate", "mean", "magnitude", "strongest", "promoted", "suppressed")

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


def _percent(value: Tensor) -> str:
    return "–" if value.isnan() else f"{float(value):.0%}"


def _sign(strongest: Float[Tensor, "neuron rank"]) -> Int[Tensor, " neuron"]:
    return torch.where(strongest.sum(1) < 0, -1, 1)


def inspect(
    model: HookedModel,
    neurons: NeuronSet | Iterable[Neuron],
    corpus: Mapping[str, Sequence[Document]],
    *,
    contexts: int = 5,
    top_k: int = 10,
    window: int = 8,
    identifier: str | Identifier = "lingua",
    identify_over: Sequence[str] | None = None,
    token_languages: TokenLanguages | None = None,
    max_tokens: int = MAX_TOKENS,
    batch_size: int | None = None,
    progress: bool = True,
) -> NeuronCards:
    """What neurons read (on a corpus) and write (through the unembedding).

    Reading is streamed: where in the corpus each neuron's activation is largest in absolute value, how often it fires
    and its mean by language, over ordinary tokens. Writing is the direct path only, final norm's gain included: the
    tokens whose logits the neuron's output raises or lowers, with the sign of its activation where it is strongest.
    ``q`` and ``k`` neurons write nothing; for ``v`` the query heads of the group are taken to attend alike.

    Args:
        model: a hooked model.
        neurons: a set, or ``(layer, site, neuron)`` triples.
        corpus: documents by language.
        contexts: strongest places to keep of each neuron.
        top_k: promoted and suppressed tokens to keep.
        window: tokens of text to show before and after each place.
        identifier: see :func:`label_vocabulary`.
        identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of the two options above.
        max_tokens: longer documents are cut there, with a warning.
        batch_size: documents at a time; None fills a token budget.
        progress: whether to show a bar.

    Raises:
        ValueError: for no neurons, ones of a model with other sizes, or options out of range, before the work.
    """
    chosen = _as_set(model, neurons)
    given = as_corpus(corpus)
    if contexts < 1 or window < 0 or not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(f"{contexts=}, {window=} or {top_k=} (of {model.cfg.d_vocab} tokens) is out of range.")
    encoded = {language: encode(model, given[language], given.ids[language], max_tokens) for language in given}
    labels = token_languages or label_vocabulary(model, list(given), identifier=identifier, identify_over=identify_over)
    places = {
        (layer, site): chosen.masks[site][layer].nonzero().flatten()
        for layer in range(chosen.space.n_layers)
        for site in chosen.masks
        if chosen.masks[site][layer].any()
    }
    found, positions = follow(model, places, encoded, contexts=contexts, batch_size=batch_size, progress=progress)
    per_position = torch.tensor([positions[language] for language in given], dtype=torch.float64)
    wrote = [_written(model, place, followed, top_k) for place, followed in found.items()]
    promoted, suppressed = (torch.cat(parts) for parts in zip(*wrote, strict=True))
    frame = labels.to_frame()
    return NeuronCards(
        neurons=tuple((layer, site, int(i)) for (layer, site), f in found.items() for i in f.neurons),
        firing_rate=torch.cat([_fired(model, site, f) for (_, site), f in found.items()]) / per_position,
        mean=torch.cat([f.total for f in found.values()]) / per_position,
        magnitude=torch.cat([f.magnitude for f in found.values()]) / per_position,
        strongest=torch.cat([f.strongest for f in found.values()]),
        contexts=tuple(_contexts(model, row, encoded, given, window) for f in found.values() for row in f.where),
        promoted=promoted,
        suppressed=suppressed,
        tokens=_named(model, labels, torch.cat([promoted, suppressed])),
        vocabulary=dict(zip(frame["language"], frame["share"], strict=True)),
        languages=tuple(given),
        settings={
            "model": chosen.space.model,
            "processing": chosen.space.processing,
            "origin": dict(chosen.origin),
            "max_tokens": max_tokens,
            "corpus": given.describe(),
            **labels.settings,
        },
    )


def _fired(model: HookedModel, site: str, followed: Followed) -> Float[Tensor, "neuron language"]:
    return followed.fired if fires(model, site) else torch.full_like(followed.fired, torch.nan)


def _named(model: HookedModel, labels: TokenLanguages, tokens: Int[Tensor, "neuron k"]) -> dict[int, tuple[str, str]]:
    ids = [i for i in tokens.unique().tolist() if i >= 0]
    return dict(zip(ids, zip(_texts(model, ids), labels.of(ids), strict=True), strict=True))


def _as_set(model: HookedModel, neurons: NeuronSet | Iterable[Neuron]) -> NeuronSet:
    space = NeuronSpace.of(model)
    chosen = neurons if isinstance(neurons, NeuronSet) else NeuronSet.from_list(space, neurons)
    chosen.space.require_compatible(space)
    if not len(chosen):
        raise ValueError(f"{chosen!r} holds no neuron to inspect.")
    return chosen


def _written(
    model: HookedModel, place: tuple[int, str], followed: Followed, k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """Promoted and suppressed tokens where the neurons are strongest; -1 for what writes nothing."""
    layer, site = place
    if site not in WRITES:
        nothing = torch.full((len(followed.neurons), k), -1)
        return nothing, nothing
    added = directions(model, layer, site, followed.neurons)
    sign = _sign(followed.strongest).to(added)
    return written(model, added * sign[:, None], k)


def _contexts(
    model: HookedModel,
    places: Int[Tensor, "rank 3"],
    encoded: Mapping[str, Sequence[Tensor]],
    given: Corpus,
    window: int,
) -> tuple[dict[str, Any], ...]:
    found = []
    for number, passage, position in places.tolist():
        if number < 0:
            continue
        language = list(encoded)[number]
        ids = encoded[language][passage].tolist()
        parts = {
            "before": ids[max(0, position - window) : position],
            "token": ids[position : position + 1],
            "after": ids[position + 1 : position + 1 + window],
        }
        text = {name: _joined(model, some) for name, some in parts.items()}
        found.append({"language": language, "passage": given.ids[language][passage], "position": position, **text})
    return tuple(found)


def _joined(model: HookedModel, ids: Sequence[int]) -> str:
    return (
        "".join(_texts(model, ids))
        if model.tokenizer is None
        else model.tokenizer.decode(ids, skip_special_tokens=True)
    )


def _texts(model: HookedModel, ids: Sequence[int]) -> list[str]:
    return [f"<{i}>" for i in ids] if model.tokenizer is None else token_texts(model, ids)
