"""Generations under interventions, side by side: in which language, how repetitive, how long, how fluent."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..effects import BASELINE, passage_nats
from ..model import ForwardHook, HookedModel, ModelRecord, encode, hooked, model_record, settled
from ..neurons import NeuronSet, ablate, warn_of_other_weights
from ..statistics import wilson
from ..store import Result, processes, require_record, storable
from ..store.processes import hidden
from ..text import ONE_TOKEN, Identifier, as_corpus, as_names, check_arguments, identifier, warn_of_unknown
from ..text.choices import require_choice
from .completions import generate


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
        grams = list(zip(self.tokens, self.tokens[1:], self.tokens[2:], strict=False))
        return 1 - len(set(grams)) / len(grams) if grams else np.nan


class _Settings(ModelRecord):
    """What results are computed from and say, of all that the settings hold."""

    languages: Sequence[str]


@dataclass(frozen=True)
class Generations(Result, kind="generations"):
    """Every prompt completed under every intervention."""

    rows: tuple[Generation, ...]
    settings: Mapping[str, Any]
    """Everything that decided the result."""

    def _require_whole(self) -> None:
        require_record(self.settings, _Settings, "the settings")
        if not self.rows:
            raise ValueError("There is no completion.")

    @property
    def conditions(self) -> list[str]:
        """The interventions, ``baseline`` first."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    def to_frame(self) -> pd.DataFrame:
        """One row per completion; ``tokens`` counts the new ones; nats per token are under the untouched model."""
        rows = [
            {**vars(row), "faithful": row.identified == row.prompt_language, "repetition": row.repetition}
            | {"tokens": len(row.tokens), "nats_per_token": row.nats / row.counted if row.counted else np.nan}
            for row in self.rows
        ]
        columns = ["condition", "prompt_language", "prompt", "text", "identified", "faithful", "repetition", "tokens"]
        return pd.DataFrame(rows, columns=[*columns, "stopped", "nats_per_token"])

    def summary(self, language: str | None = None) -> pd.DataFrame:
        """One row per intervention and prompt language: the share of completions in a language, and their quality.

        The share is that of ``language``, by default of the prompt's (fidelity), with its 95 % Wilson interval (low,
        high). The rest are means over completions; nats per token alone do not show fluency, as repetition is likely.

        Raises:
            ValueError: for a language that texts could not be identified as.
        """
        if language is not None:
            known = [*self.settings["languages"], *{row.identified for row in self.rows if row.identified}]
            require_choice("language", language, dict.fromkeys(known))
        rows = []
        groups: Any = self.to_frame().groupby(["condition", "prompt_language"], sort=False)
        for (condition, read), part in groups:
            hits = list(part["identified"]).count(language or read)
            low, high = wilson(hits, len(part))
            share = {"completions": len(part), "share": hits / len(part), "low": low, "high": high}
            measured = part[["repetition", "tokens", "nats_per_token"]].mean()
            rows.append({"condition": condition, "prompt_language": read, **share, **measured})
        return pd.DataFrame(rows)

    def languages(self) -> pd.DataFrame:
        """Completions by intervention and prompt language (rows) and identified language (columns)."""
        frame = self.to_frame()
        named = frame["identified"].astype(object).where(frame["identified"].notna(), "unknown")
        counts = pd.crosstab([frame["condition"], frame["prompt_language"]], named)
        return counts.reindex(self.conditions, level="condition").rename_axis(columns="identified")

    def answered(self) -> pd.DataFrame:
        """One row per intervention, prompt language and language of the completions: how many, their share among those
        prompts, and its 95 % Wilson interval (low, high). ``unknown`` are those that the identifier could not tell."""
        groups: dict[tuple[str, str], Counter[str]] = {}
        for row in self.rows:
            groups.setdefault((row.condition, row.prompt_language), Counter())[row.identified or "unknown"] += 1
        known = dict.fromkeys([*self.settings["languages"], *(name for counts in groups.values() for name in counts)])
        known.pop("unknown", None)
        table = []
        for (condition, read), counts in groups.items():
            for language in (*known, "unknown"):
                low, high = wilson(counts[language], counts.total())
                share = {"completions": counts[language], "share": counts[language] / counts.total()}
                place = {"condition": condition, "prompt_language": read, "answered": language}
                table.append({**place, **share, "low": low, "high": high})
        return pd.DataFrame(table)

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
    interventions: Mapping[str, NeuronSet | Sequence[ForwardHook]],
    prompts: Mapping[str, Sequence[str]],
    *,
    identify: str | Identifier = "lingua",
    languages: Sequence[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Generations:
    """Complete every prompt untouched and under every intervention; tell each text's language.

    Several processes deal out the interventions.

    Args:
        model: a hooked model; it is as before afterwards.
        interventions: sets to switch off, or hooks such as ``french.hooks("set", values=means, language="zh")``, by a
            name of your choice.
        prompts: by language.
        identify: ``"lingua"``, ``"script"``, ``"cld3"`` or a function from texts to languages.
        languages: between which it chooses; those of the prompts by default.
        progress: whether to show a bar.
        options: passed on to :func:`generate`, e.g. ``max_new_tokens=``, ``stop=``, ``temperature=``, ``seed=``.

    Raises:
        ValueError: for no prompts, a set of a model with other sizes, or options out of range, before the work. A set
            of another model of these sizes (its name, or the fingerprint of its weights) warns.
    """
    check_arguments(generations, locals())
    corpus = as_corpus(prompts)
    if BASELINE in interventions:
        raise ValueError(f"{BASELINE!r} is the untouched model: give that intervention another name.")
    languages = as_names(corpus if languages is None else languages, "languages")
    identify_texts = identifier(identify, languages)
    contexts: dict[str, contextlib.AbstractContextManager[HookedModel]] = {BASELINE: hooked(model, [])}
    made_of: dict[str, Any] = {}
    for name, change in interventions.items():
        is_set = isinstance(change, NeuronSet)
        contexts[name] = ablate(model, change) if is_set else hooked(model, change)
        made_of[name] = dict(change.origin) if is_set else f"{len(change)} hooks"
    warn_of_other_weights(model, [change for change in interventions.values() if isinstance(change, NeuronSet)])
    flat: list[tuple[str, Any]] = [(language, text) for language in corpus for text in corpus[language]]
    texts = [text for _, text in flat]
    encoded = encode(model, texts, texts, None)
    by_language = {name: [ids for (of, _), ids in zip(flat, encoded, strict=True) if of == name] for name in corpus}
    warn_of_unknown(model.tokenizer, by_language, effect=ONE_TOKEN, stacklevel=3)
    rows: list[Generation] = []
    mine = list(contexts.items())[processes.number() :: processes.count()]
    with settled(model), tqdm(mine, desc="generating", disable=hidden(progress)) as bar:
        for name, context in bar:
            with context:
                completions = generate(model, encoded, **options)
            new = [torch.tensor(completion.tokens, dtype=torch.long) for completion in completions]
            whole = [torch.cat(pair) for pair in zip(encoded, new, strict=True)]
            nats, counted = passage_nats(model, whole, skip=[len(ids) for ids in encoded])
            identified = identify_texts([completion.text for completion in completions])
            for of, c, label, n, count in zip(flat, completions, identified, nats, counted, strict=True):
                rows.append(Generation(name, *of, c.text, c.tokens, c.stopped, label, float(n), int(count)))
    settings = {
        **model_record(model),
        "identify": identify if isinstance(identify, str) else getattr(identify, "__name__", "custom"),
        "languages": languages,
        "prompts": corpus.describe(),
        "generate": options,
        "interventions": made_of,
    }
    return Generations(tuple(_of_all(rows, list(contexts))), settings)


def _of_all(rows: Sequence[Generation], order: Sequence[str]) -> list[Generation]:
    """The completions of all processes, by intervention."""
    if processes.count() > 1:
        gathered = chain.from_iterable(processes.gathered([asdict(row) for row in rows]))
        rows = [Generation(**{**fields, "tokens": tuple(fields["tokens"])}) for fields in gathered]
    return sorted(rows, key=lambda row: order.index(row.condition))
