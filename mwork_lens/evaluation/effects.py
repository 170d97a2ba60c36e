"""What switching sets of neurons off does to the loss of every language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..batches import MAX_TOKENS, encode
from ..corpora import Corpus, Document, as_corpus
from ..hooks import Mode
from ..neurons import NeuronSet, ablate
from ..sites import HookedModel
from ..statistics import bootstrap_weights, interval
from ..store import read_result, write_result
from .loss import passage_nats

BASELINE = "baseline"


@dataclass(frozen=True)
class EffectMatrix:
    """Loss of every passage with nothing off and with each set off; the rises in loss follow from it."""

    nats: Mapping[str, Mapping[str, Float[Tensor, " _"]]]
    """By what is off (``"baseline"`` first) and by language: negative log-likelihood of each passage."""
    tokens: Mapping[str, Int[Tensor, " _"]]
    """By language: the tokens of each passage that count."""
    utf8_bytes: Mapping[str, Int[Tensor, " _"]]
    """By language: each passage's length in UTF-8 (0 for documents given as token ids)."""
    documents: Mapping[str, Sequence[str]]
    """By language: the document of each passage."""
    languages: Mapping[str, str | None]
    """Whose neurons each row switches off, where the row has a language."""
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    @property
    def rows(self) -> list[str]:
        """The names of what was switched off."""
        return [name for name in self.nats if name != BASELINE]

    def to_frame(self) -> pd.DataFrame:
        """Rise of each language's loss (columns) when a set is off (rows), in nats a token."""
        rises = {off: {read: self._rise(off, read, None)[0] for read in self.tokens} for off in self.rows}
        return pd.DataFrame.from_dict(rises, orient="index", columns=list(self.tokens)).rename_axis("off")

    @property
    def baseline(self) -> pd.Series:
        """Loss by language with nothing off, in nats a token."""
        losses = {read: float(self.nats[BASELINE][read].sum() / count.sum()) for read, count in self.tokens.items()}
        return pd.Series(losses, name="nats_per_token")

    @property
    def intervals(self) -> pd.DataFrame:
        """One row a cell: off, read, rise and its 95 % interval by bootstrap over documents (nats a token)."""
        weights = self._weights()
        rows = []
        for off in self.rows:
            for read in self.tokens:
                low, high = interval(self._rise(off, read, weights))
                rows.append(
                    {
                        "off": off,
                        "read": read,
                        "rise": self._rise(off, read, None)[0],
                        "low": low,
                        "high": high,
                    }
                )
        return pd.DataFrame(rows)

    def selectivity(self) -> pd.DataFrame:
        """One row a set that has a language: its own rise against the mean rise of the others, with intervals.

        ``difference`` is own minus others (nats a token). ``ratio`` is own over others, and missing where the interval
        of the others' rise holds zero. Damage alone proves nothing: any important neurons hurt when they are off.
        """
        weights = self._weights()
        rows = [self._selectivity(off, own, weights) for off, own in self.languages.items() if own in self.tokens]
        return pd.DataFrame(rows).set_index("off") if rows else pd.DataFrame()

    def _selectivity(self, off: str, own: str | None, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        others = [read for read in self.tokens if read != own]

        def parts(drawn: Mapping[str, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
            rises = [self._rise(off, read, drawn) for read in others]
            return self._rise(off, str(own), drawn), np.mean(rises, axis=0) if rises else np.array([np.nan])

        (own_rise, mean_others), (own_drawn, others_drawn) = parts(None), parts(weights)
        low, high = interval(own_drawn - others_drawn) if others else (np.nan, np.nan)
        others_low, others_high = interval(others_drawn) if others else (np.nan, np.nan)
        measurable = others_low > 0
        ratio_low, ratio_high = interval(own_drawn / others_drawn) if measurable else (np.nan, np.nan)
        return {
            "off": off,
            "language": own,
            "own": own_rise[0],
            "others": mean_others[0],
            "others_low": others_low,
            "others_high": others_high,
            "difference": own_rise[0] - mean_others[0],
            "low": low,
            "high": high,
            "ratio": own_rise[0] / mean_others[0] if measurable else np.nan,
            "ratio_low": ratio_low,
            "ratio_high": ratio_high,
        }

    def _weights(self) -> dict[str, np.ndarray]:
        return bootstrap_weights(self.documents, paired=bool(self.settings["corpus"]["parallel"]))

    def _rise(self, off: str, read: str, weights: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """Rise in nats a token: of the corpus itself, or of each of its resamples."""
        rise = (self.nats[off][read] - self.nats[BASELINE][read]).numpy()
        count = self.tokens[read].numpy()
        drawn = np.ones((1, len(count))) if weights is None else weights[read]
        return (drawn @ rise) / (drawn @ count)

    def passages(self) -> pd.DataFrame:
        """One row a passage and set: off, read, document, nats, tokens, utf8_bytes."""
        frames = [
            pd.DataFrame(
                {
                    "off": off,
                    "read": read,
                    "document": list(self.documents[read]),
                    "nats": nats.tolist(),
                    "tokens": self.tokens[read].tolist(),
                    "utf8_bytes": self.utf8_bytes[read].tolist(),
                }
            )
            for off, by_language in self.nats.items()
            for read, nats in by_language.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        return f"EffectMatrix(rise in nats a token)\n{self.to_frame().round(3)}"

    def _repr_html_(self) -> str:
        return "<p>Rise of loss, nats a token (off × read)</p>" + self.to_frame().round(3).to_html()

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""
        tensors = {f"nats/{off}/{read}": x for off, by_read in self.nats.items() for read, x in by_read.items()}
        for read in self.tokens:
            tensors |= {f"tokens/{read}": self.tokens[read], f"utf8_bytes/{read}": self.utf8_bytes[read]}
        cfg = {
            "rows": list(self.nats),
            "documents": {read: list(names) for read, names in self.documents.items()},
            "languages": dict(self.languages),
            "settings": dict(self.settings),
        }
        write_result(path, "effect_matrix", cfg, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "EffectMatrix":
        """Read what :meth:`save` wrote."""
        cfg, tensors = read_result(path, "effect_matrix")
        reads = list(cfg["documents"])
        return cls(
            nats={off: {read: tensors[f"nats/{off}/{read}"] for read in reads} for off in cfg["rows"]},
            tokens={read: tensors[f"tokens/{read}"] for read in reads},
            utf8_bytes={read: tensors[f"utf8_bytes/{read}"] for read in reads},
            documents=cfg["documents"],
            languages=cfg["languages"],
            settings=cfg["settings"],
        )


def effect_matrix(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    corpus: Mapping[str, Sequence[Document]],
    *,
    mode: Mode = "zero",
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> EffectMatrix:
    """Loss of every language with each set of neurons off, and with none off.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: what to switch off, by a name of your choice; a set's language is its name where that is a language of
            the corpus, else the one recorded in the set.
        corpus: held-out documents by language.
        mode: how neurons are switched off.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        progress: whether to show a bar.

    Raises:
        ValueError: for no sets, a set of a model with other sizes, or empty documents, before the work.
    """
    given = as_corpus(corpus)
    if not sets:
        raise ValueError("sets is empty: name at least one set of neurons to switch off.")
    if BASELINE in sets:
        raise ValueError(f"{BASELINE!r} is the row with nothing off: give that set another name.")
    switched = {name: ablate(model, neurons, mode) for name, neurons in sets.items()}
    encoded = {read: encode(model, given[read], given.ids[read], max_tokens) for read in given}
    nats: dict[str, dict[str, Tensor]] = {}
    tokens: dict[str, Tensor] = {}
    total = (len(sets) + 1) * sum(map(len, encoded.values()))
    with tqdm(total=total, unit="doc", disable=not progress) as bar:

        def measure(name: str) -> None:
            bar.set_description(f"off: {name}")
            nats[name] = {}
            for read, documents in encoded.items():
                nats[name][read], tokens[read] = passage_nats(
                    model, documents, batch_size=batch_size, after_batch=bar.update
                )

        measure(BASELINE)
        for name, context in switched.items():
            with context:
                measure(name)
    return EffectMatrix(
        nats=nats,
        tokens=tokens,
        utf8_bytes={read: _utf8_bytes(given[read]) for read in given},
        documents=given.documents,
        languages={n: n if n in given else s.origin.get("language") for n, s in sets.items()},
        settings=_settings(model, sets, given, mode, max_tokens),
    )


def _utf8_bytes(texts: Sequence[Document]) -> Int[Tensor, " passage"]:
    return torch.tensor([len(text.encode()) if isinstance(text, str) else 0 for text in texts])


def _settings(
    model: HookedModel, sets: Mapping[str, NeuronSet], corpus: Corpus, mode: Mode, max_tokens: int
) -> dict[str, Any]:
    return {
        "model": str(model.cfg.model_name),
        "mode": mode,
        "max_tokens": max_tokens,
        "corpus": corpus.describe(),
        "sets": {
            name: {
                "neurons": len(s),
                "fraction": s.fraction,
                "model": s.space.model,
                "origin": dict(s.origin),
            }
            for name, s in sets.items()
        },
    }
