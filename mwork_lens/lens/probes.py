"""Which language's word a layer is about to say, for prompts whose answer exists in several languages.

It answers "does it pass through English?" without any identifier of languages: Wendler, Veselovsky, Monea and West,
*Do Llamas Work in English?* (ACL 2024).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..model import (
    HookedModel,
    ModelRecord,
    all_logits,
    at_least_float32,
    encode,
    model_record,
    settled,
    shown_model,
    special_ids,
    stream_states,
)
from ..neurons import weight_processing
from ..statistics import Estimate, interval_words
from ..store import Result, require_record
from ..store.processes import hidden
from ..text import ONE_TOKEN, as_names, check_arguments, fold_case, read_rows, require_language, warn_of_unknown
from ..text.choices import listed
from .language_ratio import by_layer

NAMES = {
    "ar": "العربية",
    "de": "Deutsch",
    "en": "English",
    "es": "Español",
    "fr": "Français",
    "hi": "हिन्दी",
    "id": "Bahasa Indonesia",
    "it": "Italiano",
    "ja": "日本語",
    "ko": "한국어",
    "pt": "Português",
    "ru": "Русский",
    "sw": "Kiswahili",
    "th": "ไทย",
    "vi": "Tiếng Việt",
    "zh": "中文",
}
"""What prompts call a language."""

Words = Mapping[str, Sequence[str]]
"""One concept: its words, by language."""


@dataclass(frozen=True)
class Probe:
    """A prompt, and the words that could come next, by language."""

    prompt: str
    answers: Words

    def __post_init__(self) -> None:
        for language, words in self.answers.items():
            if not as_names(words, f"answers in {language!r}"):
                raise ValueError(f"There is no answer in {language!r} to {self.prompt!r}.")


@dataclass(frozen=True, eq=False)
class LatentLanguages(Result, kind="latent_languages"):
    """How probable each language's answer is at the last token of each prompt, by layer."""

    probability: Float[Tensor, "probe layer language"]
    """Summed over the tokens that begin one of the language's answers."""
    rank: Int[Tensor, "probe layer language"]
    """Place of the likeliest of these among all tokens; 1 is the first."""
    entropy: Float[Tensor, "probe layer"]
    """Of the whole distribution, in nats."""
    languages: tuple[str, ...]
    prompts: tuple[str, ...]
    settings: Mapping[str, Any]

    def _require_whole(self) -> None:
        require_record(self.settings, ModelRecord, "the settings")
        probes, layers = self.entropy.shape
        sizes = {(probes, layers, len(self.languages)), tuple(self.probability.shape), tuple(self.rank.shape)}
        if len(sizes) > 1 or probes != len(self.prompts) or not self.languages:
            named = f"{len(self.prompts)} prompts and {len(self.languages)} languages"
            raise ValueError(f"The answers have shapes {sorted(sizes)}, for {named}.")

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and language.

        Columns: layer (0 is the embedding), language, probability (mean over probes) with its 95 % interval
        low and high (jackknife over probes), median rank, and the entropy of the layer (mean, nats).
        """
        mean = Estimate.of_mean(self.probability.double().numpy())
        low, high = mean.share_interval
        columns = {"probability": mean.value, "low": low, "high": high, "rank": np.median(self.rank.numpy(), axis=0)}
        entropy = self.entropy.mean(0).double().numpy()[:, None]
        return by_layer(range(len(entropy)), self.languages, {**columns, "entropy": entropy})

    def finding(self, pivot: str = "en") -> str:
        """How likely each language's answer is at the end, and the pivot's on the way, as a sentence with its numbers.

        Raises:
            ValueError: for a pivot whose answers were not followed.
        """
        if pivot not in self.languages:
            raise ValueError(f"There are no answers in {pivot!r}; there are {listed(self.languages, pivot)}.")
        frame = self.to_frame()
        mean = frame.pivot(index="layer", columns="language", values="probability")
        rows = frame[frame["language"] == pivot].set_index("layer")
        best, last = rows["probability"].idxmax(), mean.index[-1]
        answer = mean.loc[last].idxmax()
        at_end = ", ".join(f"{name} {mean.loc[last, name]:.2g}" for name in self.languages)
        low, high = (float(rows[end].loc[best]) for end in ("low", "high"))
        interval = interval_words(low, high, ".2g", len(self.prompts), "prompts")
        return (
            f"After the last layer the answers have the probabilities {at_end} (mean of {len(self.prompts)} prompts), "
            f"{answer} being the likeliest. {pivot} is likeliest in layer {best}: "
            f"{rows.loc[best, 'probability']:.2g} {interval}, where "
            f"{' and '.join(f'{name} has {mean.loc[best, name]:.2g}' for name in self.languages if name != pivot)}."
        )

    def __repr__(self) -> str:
        return (
            f"LatentLanguages({shown_model(self.settings)}: {len(self.prompts)} probes in {', '.join(self.languages)})"
        )


def read_words(path: str | Path, languages: Sequence[str]) -> list[dict[str, list[str]]]:
    """Concepts that have words in all ``languages``, from a JSON-lines file with a list of words per language (PanLex).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a malformed line, or if no concept is left.
    """
    tags = [require_language(tag) for tag in as_names(languages, "languages")]
    rows = read_rows(Path(path), lambda row: {tag: as_names(row[tag], tag) for tag in tags if row.get(tag)})
    concepts = [concept for concept in rows if len(concept) == len(tags)]
    if not concepts:
        raise ValueError(f"{path} has no concept with words in all of {', '.join(tags)}.")
    return concepts


def translation_probes(
    concepts: Sequence[Words],
    *,
    source: str,
    target: str,
    shots: int = 4,
    limit: int | None = None,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Probe]:
    """Prompts that ask for a word's translation after a few examples, e.g. ``Deutsch: "Hund" - 中文: "``.

    Left out are concepts for which two languages have a word in common, which no answer could tell apart.

    Args:
        concepts: words by language; each language's first word is the one written.
        source: the language to translate from.
        target: the language to translate to.
        shots: worked examples before each question, drawn among the other concepts.
        limit: at most this many probes.
        names: what the languages are called in the prompt, where not as in ``NAMES``.
        seed: of the draw.

    Raises:
        ValueError: for a language without words, or too few concepts.
    """
    check_arguments(translation_probes, {"shots": shots, "limit": limit, "seed": seed})
    names, concepts = {**NAMES, **(names or {})}, _as_concepts(concepts)
    for tag in (source, target):
        if not concepts or not all(words.get(tag) for words in concepts):
            every = [each for each in (concepts or [{}])[0] if all(words.get(each) for words in concepts)]
            raise ValueError(f"Not every concept has a word in {tag!r}; all have {listed(every, tag)}.")
        if tag not in names:
            raise ValueError(f"What is {tag!r} called in its own language? Say so with names={{{tag!r}: ...}}.")
    distinct = [words for words in concepts if _has_distinct_words(words)]
    if len(distinct) <= shots:
        raise ValueError(
            f"{len(distinct)} concepts can be told apart by language, too few for {shots} examples and a question."
        )

    def question(words: Words) -> str:
        return f'{names[source]}: "{words[source][0]}" - {names[target]}: "'

    generator = random.Random(int(seed))
    probes = []
    for words in distinct[:limit]:
        examples = generator.sample([other for other in distinct if other is not words], shots)
        lines = [question(other) + f'{other[target][0]}"\n' for other in examples]
        probes.append(Probe("".join(lines) + question(words), words))
    return probes


def _as_concepts(concepts: Any) -> list[dict[str, list[str]]]:
    """Refused if a concept's words in a language are a single string, whose letters would be taken for words."""
    if isinstance(concepts, Mapping) or not isinstance(concepts, Iterable):
        raise ValueError(f"concepts must be a list of dicts from languages to words, not {type(concepts).__name__}.")
    every = list(concepts)
    if wrong := [concept for concept in every if not isinstance(concept, Mapping)]:
        raise ValueError(f"A concept is a dict from languages to words, not {wrong[0]!r}.")
    return [{tag: as_names(words, f"words in {tag!r}") for tag, words in concept.items()} for concept in every]


def _has_distinct_words(words: Words) -> bool:
    folded = [fold_case(word, tag) for tag, group in words.items() for word in set(group)]
    return len(set(folded)) == len(folded)


def latent_languages(
    model: HookedModel,
    probes: Sequence[Probe],
    *,
    languages: Sequence[str] | None = None,
    normalize: bool = True,
    progress: bool = True,
) -> LatentLanguages:
    """Decode the last token of each prompt at every layer: how probable is each language's answer?

    A language's answer counts by the tokens that begin it, with a leading space or without (``"``, then ``fl`` or
    ``fleur``). Tokens that begin answers in several languages count for none of them.

    Args:
        model: a hooked model with a tokenizer.
        probes: prompts with their answers, e.g. of :func:`translation_probes` or a cloze of your own.
        languages: whose answers to follow; by default those that all probes have.
        normalize: False leaves out the final norm.
        progress: whether to show a bar.

    Raises:
        ValueError: for no probes, a probe without an answer in a language, or one whose answers no token tells apart.
    """
    check_arguments(latent_languages, locals())
    if not probes:
        raise ValueError("There is no probe: give at least one prompt with answers.")
    common = [tag for tag in probes[0].answers if all(tag in probe.answers for probe in probes)]
    tags = common if languages is None else as_names(languages, "languages")
    absent = [tag for tag in tags if tag not in common]
    if absent or not tags:
        what = repr(absent[0]) if absent else "a common language"
        raise ValueError(f"Not every probe has an answer in {what}; all have {listed(common, what)}.")
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: prompts and answers are text.")
    encoded = encode(model, [probe.prompt for probe in probes], [f"probe {i}" for i in range(len(probes))], None)
    words = {tag: _ordinary(model, [word for probe in probes for word in probe.answers[tag]]) for tag in tags}
    warn_of_unknown(model.tokenizer, {"the prompts": encoded, **words}, effect=ONE_TOKEN, stacklevel=3)
    starts = [_starts(model, {tag: probe.answers[tag] for tag in tags}, i) for i, probe in enumerate(probes)]
    bar = tqdm(zip(encoded, starts, strict=True), total=len(probes), unit="probe", disable=hidden(progress))
    measured = [_probe(model, ids, begins, normalize) for ids, begins in bar]
    settings = {**model_record(model), "processing": weight_processing(model), "normalize": normalize}
    probability, rank, entropy = (torch.stack(parts) for parts in zip(*measured, strict=True))
    return LatentLanguages(probability, rank, entropy, tuple(tags), tuple(p.prompt for p in probes), settings)


def _starts(model: HookedModel, answers: Words, number: int) -> list[Int[Tensor, " _"]]:
    """For each language, the single tokens that begin one of its answers and no other language's."""
    begins = {tag: {i for word in words for i in _prefix_tokens(model, word)} for tag, words in answers.items()}
    starts = []
    for tag, ids in begins.items():
        unique = ids.difference(*(others for other, others in begins.items() if other != tag))
        if not unique:
            raise ValueError(
                f"Probe {number}: no token begins the {tag!r} answer {list(answers[tag])} and no other one."
            )
        starts.append(torch.tensor(sorted(unique)))
    return starts


def _prefix_tokens(model: HookedModel, word: str) -> list[int]:
    """Those that stand for it alone: not unknown words, nor what lies beyond the embedding."""
    texts = [space + word[:end] for end in range(1, len(word) + 1) for space in ("", " ")]
    special = set(special_ids(model).tolist())
    firsts = [int(ids[0]) for ids in _ordinary(model, texts) if len(ids) == 1]
    return [each for each in firsts if each < model.cfg.d_vocab and each not in special]


def _ordinary(model: HookedModel, texts: Sequence[str]) -> list[Int[Tensor, " _"]]:
    """The tokens of each text alone."""
    return [torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"]).long() for text in texts]


@torch.inference_mode()
def _probe(
    model: HookedModel, ids: Int[Tensor, " pos"], begins: Sequence[Int[Tensor, " _"]], normalize: bool
) -> tuple[Float[Tensor, "layer language"], Int[Tensor, "layer language"], Float[Tensor, " layer"]]:
    with settled(model):
        states = torch.stack([layer[-1] for layer in stream_states(model, ids)])
        logits = at_least_float32(all_logits(model, states, normalize=normalize))  # [layer, token]
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    begins = [tokens.to(logits.device) for tokens in begins]
    masses = [probabilities[:, tokens].sum(-1) for tokens in begins]
    ranks = [(logits > logits[:, tokens].amax(-1, keepdim=True)).sum(-1) + 1 for tokens in begins]
    entropy = -(probabilities * log_probabilities).nansum(-1)
    return torch.stack(masses, -1).cpu(), torch.stack(ranks, -1).cpu(), entropy.cpu()
