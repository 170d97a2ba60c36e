"""The language of every token of a vocabulary, identified once and then read from the cache; how often it is right."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from typing import Any, TypedDict

import pandas as pd
import regex
import torch
from jaxtyping import Int
from torch import Tensor

from ..model import MAX_TOKENS, Encoded, HookedModel
from ..store import Result, cache_directory, processes, require_record
from ..text import (
    OTHER,
    SHARED,
    Document,
    Identifier,
    as_names,
    check_arguments,
    expected_scripts,
    is_japanese,
    main_script,
    require_language,
)
from ..text import identifier as identifier_of

logger = logging.getLogger("mwork_lens")

WIDE = ("en", "de", "fr", "es", "ru", "zh", "ja", "ko", "ar", "hi", "th", "vi")
"""Identified over in addition to the wanted languages, so that no German token is called English."""

RULES = 3
"""Version of the rules below; labels by other rules are identified again."""

_LETTER = regex.compile(r"[\p{L}\p{M}]")
_MARKUP = regex.compile(r"\s*[<\[].*[>\]]\s*")
_PACKAGES = {"lingua": "lingua-language-detector", "cld3": "cld3-py", "script": "regex"}


@dataclass(frozen=True, eq=False)
class TokenLanguages(Result, kind="token_languages"):
    """A label for every token of a vocabulary."""

    labels: Int[Tensor, " token"]
    """Index into ``names``."""
    names: tuple[str, ...]
    """The languages that tokens were identified over, then ``shared`` and ``other``."""
    settings: Mapping[str, Any]
    """Identifier and its version, candidates, hash of the tokenizer."""

    def _require_whole(self) -> None:
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.names):
            raise ValueError(f"Some labels are none of {self.names}.")

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that tokens were identified over."""
        return self.names[:-2]

    def shares(self) -> dict[str, float]:
        """Each label's share of the vocabulary."""
        return self.to_frame().set_index("language")["share"].to_dict()

    def to_frame(self) -> pd.DataFrame:
        """One row per label: its tokens and their share of the vocabulary."""
        counts = torch.bincount(self.labels, minlength=len(self.names))
        return pd.DataFrame({"language": self.names, "tokens": counts, "share": counts.double() / counts.sum()})

    def of(self, ids: Int[Tensor, " some"] | Sequence[int]) -> list[str]:
        """The labels of some tokens."""
        return [self.names[i] for i in self.labels[torch.as_tensor(ids, dtype=torch.long)].tolist()]

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items())
        return f"TokenLanguages({len(self.labels):,} tokens by {self.settings.get('identifier')}: {shares})"


def label_vocabulary(
    model: HookedModel,
    languages: Sequence[str],
    *,
    identifier: str | Identifier = "lingua",
    identify_over: Sequence[str] | None = None,
) -> TokenLanguages:
    """The language of every token of a model's vocabulary.

    Of tokens in Chinese characters alone, those of forms that Japanese and Chinese have in common are ``shared`` if
    Japanese is among ``languages``, and Chinese otherwise.

    ``other`` are tokens without letters, special tokens and markup, what the identifier cannot tell or is not confident
    of, and single letters of a script that several candidates use. ``shared`` are those about as likely in several
    languages.

    Args:
        model: a hooked model with a tokenizer.
        languages: the wanted BCP 47 tags.
        identifier: as in :func:`mwork_lens.text.languages.identifier`. Labels of a named one are cached.
        identify_over: all candidates; by default ``languages`` and twelve widespread ones (of ``"script"``: just
            ``languages``). More candidates mean fewer tokens under a wrong name and more that are confused.

    Raises:
        ValueError: without a tokenizer, or for candidates that the identifier does not know or that lack one of
            ``languages``.
    """
    check_arguments(label_vocabulary, locals())
    candidates = _candidates(languages, identify_over, WIDE if identifier != "script" else ())
    common = _common_forms(languages, candidates)
    # refuses what it does not know, before the model is looked at
    identify = identifier_of(identifier, candidates, common=common or SHARED)
    _require_tokenizer(model)
    package = version(_PACKAGES[identifier]) if isinstance(identifier, str) else None
    settings = {"identifier": _name(identifier), "identifier_version": package, "identified_over": candidates}
    settings |= {"tokenizer_hash": tokenizer_hash(model.tokenizer), "vocabulary": model.cfg.d_vocab, "rules": RULES}
    settings |= {"common_to_chinese_and_japanese": common} if common else {}
    names = (*candidates, SHARED, OTHER)
    if not isinstance(identifier, str):
        return TokenLanguages(_labels(model, identify, candidates), names, settings)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_directory() / "token-languages" / key
    with processes.first_before_others():
        if path.is_dir():
            return TokenLanguages(TokenLanguages.load(path).labels.long(), names, settings)
        logger.info("Identifying the language of %s tokens once (up to a minute) ...", f"{model.cfg.d_vocab:,}")
        labels = _labels(model, identify, candidates)
        try:
            TokenLanguages(labels.to(torch.int16), names, settings).save(path)
        except FileExistsError:
            pass  # another process has written the same in the meantime
        except OSError as error:
            logger.warning("The labels could not be written to %s (%s); they will be identified again.", path, error)
    return TokenLanguages(labels, names, settings)


def _common_forms(languages: Sequence[str], candidates: Sequence[str]) -> str | None:
    """What forms are called that Chinese and Japanese have in common; None where not both are candidates."""
    chinese = [tag for tag in candidates if expected_scripts(tag) == {"Hani"}]
    if not chinese or not any(is_japanese(tag) for tag in candidates):
        return None
    return SHARED if any(map(is_japanese, languages)) else chinese[0]


def _candidates(languages: Sequence[str], over: Sequence[str] | None, widespread: Sequence[str]) -> list[str]:
    if isinstance(languages, str) or not len(languages):
        raise ValueError(f"languages={languages!r}: give a list of language tags, e.g. ['en', 'fr'].")
    over = None if over is None else as_names(over, "identify_over")
    wanted = [require_language(tag) for tag in languages]
    if over is None:
        # no widespread language that is wanted under a longer tag (zh-Hant, pt-BR)
        bases = {tag.split("-")[0] for tag in wanted}
        over = [*wanted, *(tag for tag in widespread if tag not in bases)]
    candidates = sorted({require_language(tag) for tag in over})
    absent = [tag for tag in wanted if tag not in candidates]
    if absent:
        raise ValueError(f"{absent[0]!r} is not among the languages to identify over: {', '.join(candidates)}.")
    return candidates


def _name(identifier: str | Identifier) -> str:
    return identifier if isinstance(identifier, str) else getattr(identifier, "__name__", "custom")


def _require_tokenizer(model: HookedModel) -> None:
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: its tokens have no text to identify.")


def require_top_k(model: HookedModel, top_k: int) -> None:
    """Refuse more decoded tokens than the vocabulary has, or none."""
    size = model.cfg.d_vocab
    if not 1 <= top_k <= size:
        raise ValueError(f"top_k={top_k} is outside 1 to {size}, the vocabulary of {model.cfg.model_name}.")


def tokenizer_hash(tokenizer: Any) -> str:
    """The identity of a vocabulary: which text has which id (SHA-256, shortened)."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def token_texts(model: HookedModel, ids: Sequence[int]) -> list[str]:
    """Each token as text, with its leading space; parts of a character come out as the replacement character."""
    return [f"<{i}>" if model.tokenizer is None else model.tokenizer.decode([i]) for i in ids]


def decoded_tokens(
    model: HookedModel, labels: TokenLanguages, ids: Int[Tensor, "*shape"]
) -> dict[int, tuple[str, str]]:
    """Text and language of each token among ``ids``; -1 is not a token."""
    distinct = [i for i in ids.unique().tolist() if i >= 0]
    return dict(zip(distinct, zip(token_texts(model, distinct), labels.of(distinct), strict=True), strict=True))


def _labels(model: HookedModel, identifier: Identifier, candidates: Sequence[str]) -> Int[Tensor, " token"]:
    size = min(model.cfg.d_vocab, len(model.tokenizer))
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    scripts = [script for tag in candidates for script in expected_scripts(tag)]
    # a single Chinese character is a word
    crowded = {script for script in scripts if scripts.count(script) > 1} - {"Hani"}
    ids = [i for i in range(size) if i not in special]
    texts = zip(ids, token_texts(model, ids), strict=True)
    readable = {i: text.strip() for i, text in texts if _readable(text, crowded)}
    index = {name: i for i, name in enumerate((*candidates, SHARED, OTHER))}
    labels = torch.full((model.cfg.d_vocab,), index[OTHER])
    for i, label in zip(readable, identifier(list(readable.values())), strict=True):
        labels[i] = index.get(label or OTHER, index[OTHER])
    return labels


def _readable(text: str, crowded: set[str]) -> bool:
    """Whether a text can have a language: letters, no markup, more than one letter where languages share a script."""
    letters = len(_LETTER.findall(text))
    marked = "\ufffd" in text or _MARKUP.fullmatch(text)
    return bool(letters) and not marked and (letters > 1 or main_script(text) not in crowded)


LEAST_COUNT, LEAST_SHARE = 2, 0.9
"""A token is one language's if it occurs so often, and in such a share in this language's text."""


class _Settings(TypedDict):
    """What results say, of all that the settings hold."""

    identifier: str


@dataclass(frozen=True, eq=False)
class IdentifierAccuracy(Result, kind="identifier_accuracy"):
    """What an identifier calls tokens of each language."""

    confusion: Int[Tensor, "language label"]
    """Tokens of each language (rows) under each label (columns)."""
    languages: tuple[str, ...]
    names: tuple[str, ...]
    """The labels: ``languages``, then ``shared`` and ``other``."""
    settings: Mapping[str, Any]

    def _require_whole(self) -> None:
        require_record(self.settings, _Settings, "the settings")
        if tuple(self.confusion.shape) != (len(self.languages), len(self.names)):
            shape = tuple(self.confusion.shape)
            raise ValueError(f"Counts of shape {shape} are not of {len(self.languages)} languages by {self.names}.")

    @property
    def accuracy(self) -> float:
        """Share of all tokens under their own language's name; ``shared`` and ``other`` count as wrong."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def decided(self) -> float:
        """Share of the tokens that get a language at all (neither ``shared`` nor ``other``)."""
        return float(self.confusion[:, :-2].sum() / self.confusion.sum())

    @property
    def precision(self) -> float:
        """Share of the tokens that get a language for which it is the right one."""
        return float(self.confusion.diagonal().sum() / self.confusion[:, :-2].sum())

    def to_frame(self) -> pd.DataFrame:
        """One row per language: its tokens under each label, their number, and the share that is right."""
        tokens = self.confusion.sum(1)
        frame = pd.DataFrame(self.confusion.tolist(), pd.Index(self.languages, name="language"), list(self.names))
        right = self.confusion.diagonal().double() / tokens.clamp(min=1)
        return frame.assign(tokens=tokens.tolist(), right=right.tolist())

    def summary(self) -> str:
        """How often it is right, in a sentence."""
        return (
            f"{self.settings['identifier']}: {self.accuracy:.1%} of {int(self.confusion.sum()):,} tokens right; "
            f"{self.decided:.1%} get a language, {self.precision:.1%} of these the right one"
        )

    def __repr__(self) -> str:
        return f"IdentifierAccuracy({self.summary()})\n{self.to_frame().round(2).to_string()}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.summary())}</p>{self.to_frame().round(2).to_html()}"


def identifier_accuracy(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, name: str | Identifier = "lingua"
) -> IdentifierAccuracy:
    """Score an identifier, restricted to the corpus's languages, on the corpus's own tokens.

    A token belongs to a language if it has at least two letters, occurs at least twice, and at least nine times in ten
    in this language's text. Give languages about equally much text.

    Args:
        model: whose tokenizer is used.
        corpus: texts by language.
        name: as in :func:`mwork_lens.text.languages.identifier`.

    Raises:
        ValueError: without a tokenizer, for a language that the identifier does not know, or too little text.
    """
    check_arguments(identifier_accuracy, locals())
    _require_tokenizer(model)
    encoded = Encoded.of(model, corpus, max(MAX_TOKENS, model.cfg.n_ctx))
    languages = tuple(encoded)
    identifier, certain = identifier_of(name, languages), _certain_tokens(model, encoded)
    if not certain:
        raise ValueError("No token of this text occurs often enough in one language alone: give more text.")
    names = (*languages, SHARED, OTHER)
    confusion = torch.zeros(len(languages), len(names), dtype=torch.long)
    for (_, language), label in zip(certain, identifier([text for text, _ in certain]), strict=True):
        confusion[language, names.index(label) if label in names else -1] += 1
    settings = {"identifier": _name(name), "languages": list(languages), "corpus": encoded.corpus.describe()}
    settings |= {"tokenizer_hash": tokenizer_hash(model.tokenizer)}
    return IdentifierAccuracy(confusion, languages, names, settings)


def _certain_tokens(model: HookedModel, encoded: Encoded) -> list[tuple[str, int]]:
    """The text of each token that occurs nearly only in one language, and the place of this language."""
    counts = torch.stack([torch.cat([*ids]).bincount(minlength=model.cfg.d_vocab) for ids in encoded.values()])
    (most, language), total = counts.max(0), counts.sum(0)
    certain = ((total >= LEAST_COUNT) & (most >= LEAST_SHARE * total.double())).nonzero().flatten()
    texts = zip(token_texts(model, certain.tolist()), language[certain].tolist(), strict=True)
    return [(text.strip(), place) for text, place in texts if len(_LETTER.findall(text)) > 1]
