"""Generations under interventions, side by side: in which language, how repetitive, how long, how fluent."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..effects import passage_nats
from ..model import ForwardHook, HookedModel, encode, hooked
from ..neurons import NeuronSet, ablate
from ..statistics import wilson
from ..store import Result, storable
from ..text import Identifier, as_corpus, identifier
from .completions import Completion, generate

BASELINE = "baseline"
Intervention = NeuronSet | Sequence[ForwardHook]
"""A set to switch off, or hooks, e.g. ``french.hooks("set", values=means, language="zh")``."""

NGRAM = 3


@storable
@dataclass(frozen=True)
class Generation:
    """One completion of one prompt under one intervention."""

    condition: str
    """Which intervention; ``baseline`` is none."""
    prompt_language: str
    prompt: str
    text: str
    tokens: tuple[int, ...]
    """The new token ids."""
    stopped: str
    """``end``, ``stop`` or ``length``."""
    identified: str | None
    """The language of the text by the identifier; None where it cannot tell."""
    nats: float
    """Negative log-likelihood of the new tokens under the untouched model, given the prompt."""
    counted: int
    """How many tokens that is over (special ones do not count)."""

    @property
    def repetition(self) -> float:
        """Share of the token trigrams that occurred before in the same completion; NaN below three tokens."""
        grams = list(zip(*(self.tokens[i:] for i in range(NGRAM)), strict=False))
        return 1 - len(set(grams)) / len(grams) if grams else np.nan


@dataclass(frozen=True)
class Generations(Result, kind="generations"):
    """Every prompt completed under every intervention."""

    rows: tuple[Generation, ...]
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    @property
    def conditions(self) -> list[str]:
        """The interventions, ``baseline`` first."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    def to_frame(self) -> pd.DataFrame:
        """One row per completion; ``tokens`` counts the new ones; nats per token are under the untouched model."""
        return pd.DataFrame(
            [
                {
                    "condition": row.condition,
                    "prompt_language": row.prompt_language,
                    "prompt": row.prompt,
                    "text": row.text,
                    "identified": row.identified,
                    "faithful": row.identified == row.prompt_language,
                    "repetition": row.repetition,
                    "tokens": len(row.tokens),
                    "stopped": row.stopped,
                    "nats_per_token": row.nats / row.counted if row.counted else np.nan,
                }
                for row in self.rows
            ]
        )

    def summary(self, language: str | None = None) -> pd.DataFrame:
        """One row per intervention and prompt language: the share of completions in a language, and their quality.

        Args:
            language: which language's share; by default the prompt's own (fidelity). ``low`` and ``high`` are its 95 %
                Wilson interval. Repetition, tokens and nats per token are means over completions; a repetitive text
                is likely, so nats per token alone do not show fluency.
        """
        rows = []
        frame = self.to_frame()
        for condition, read in dict.fromkeys((row.condition, row.prompt_language) for row in self.rows):
            part = frame[(frame["condition"] == condition) & (frame["prompt_language"] == read)]
            hits = list(part["identified"]).count(language or read)
            low, high = wilson(hits, len(part))
            measured = part[["repetition", "tokens", "nats_per_token"]].mean()
            share = {"completions": len(part), "share": hits / len(part), "low": low, "high": high}
            rows.append({"condition": condition, "prompt_language": read, **share, **measured})
        return pd.DataFrame(rows)

    def languages(self) -> pd.DataFrame:
        """Completions by intervention and prompt language (rows) and identified language (columns)."""
        frame = self.to_frame()
        named = frame["identified"].astype(object).where(frame["identified"].notna(), "unknown")
        counts = pd.crosstab([frame["condition"], frame["prompt_language"]], named)
        return counts.reindex(self.conditions, level="condition").rename_axis(columns="identified")

    def side_by_side(self) -> pd.DataFrame:
        """The texts: one row per prompt, one column per intervention."""
        by_prompt: dict[tuple[str, str], dict[str, str]] = {}
        for row in self.rows:
            by_prompt.setdefault((row.prompt_language, row.prompt), {})[row.condition] = row.text
        frame = pd.DataFrame.from_dict(by_prompt, orient="index", columns=self.conditions)
        frame.index = pd.MultiIndex.from_tuples(frame.index, names=["prompt_language", "prompt"])
        return frame

    def __repr__(self) -> str:
        return f"Generations({len(self.rows)} completions)\n{self.summary().round(3)}"

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.side_by_side().to_html()


def generations(
    model: HookedModel,
    interventions: Mapping[str, Intervention],
    prompts: Mapping[str, Sequence[str]],
    *,
    identify: str | Identifier = "lingua",
    languages: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Generations:
    """Complete every prompt untouched and under every intervention; tell each text's language.

    Args:
        model: a hooked model; it is as before afterwards.
        interventions: sets to switch off, or hooks, by a name of your choice.
        prompts: by language.
        identify: ``"lingua"``, ``"script"``, ``"cld3"`` or a function from texts to languages.
        languages: between which it chooses; those of the prompts by default.
        progress: whether to show a bar.
        options: passed on to :func:`generate`, e.g. ``max_new_tokens=``, ``stop=``, ``temperature=``, ``seed=``.

    Raises:
        ValueError: for no prompts, a set of another model, or options out of range, before the work.
    """
    corpus = as_corpus(prompts)
    if BASELINE in interventions:
        raise ValueError(f"{BASELINE!r} is the untouched model: give that intervention another name.")
    languages = list(languages or corpus)
    identify_texts = identifier(identify, languages)
    contexts: dict[str, contextlib.AbstractContextManager[HookedModel]] = {BASELINE: hooked(model, [])}
    for name, change in interventions.items():
        contexts[name] = ablate(model, change) if isinstance(change, NeuronSet) else hooked(model, change)
    flat = [(language, text) for language in corpus for text in corpus[language]]
    completions: dict[str, list[Completion]] = {}
    for name, context in tqdm(contexts.items(), desc="generating", disable=not progress):
        with context:
            completions[name] = generate(model, [text for _, text in flat], **options)
    rows = [row for name, texts in completions.items() for row in _rows(model, name, flat, texts, identify_texts)]
    settings = {
        "model": str(model.cfg.model_name),
        "identify": identify if isinstance(identify, str) else getattr(identify, "__name__", "custom"),
        "languages": languages,
        "prompts": corpus.describe(),
        "generate": options,
        "interventions": {
            name: dict(change.origin) if isinstance(change, NeuronSet) else f"{len(change)} hooks"
            for name, change in interventions.items()
        },
    }
    return Generations(tuple(rows), settings)


def _rows(
    model: HookedModel,
    name: str,
    prompts: Sequence[tuple[str, Any]],
    completions: Sequence[Completion],
    identify_texts: Identifier,
) -> list[Generation]:
    encoded = encode(model, [text for _, text in prompts], [text for _, text in prompts], None)
    whole = [
        torch.cat([ids, torch.tensor(c.tokens, dtype=torch.long)]) for ids, c in zip(encoded, completions, strict=True)
    ]
    nats, counted = passage_nats(model, whole, skip=[len(ids) for ids in encoded])
    identified = identify_texts([completion.text for completion in completions])
    return [
        Generation(name, language, text, c.text, c.tokens, c.stopped, label, float(n), int(count))
        for (language, text), c, label, n, count in zip(prompts, completions, identified, nats, counted, strict=True)
    ]
