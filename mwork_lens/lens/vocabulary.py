"""The language of every token of a vocabulary: identified once, kept on disk, then only looked up."""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import regex
import torch
from jaxtyping import Int
from torch import Tensor

from ..model import MAX_TOKENS, HookedModel, encode
from ..store import cache_directory, read_result, write_result
from ..text import (
    OTHER,
    SHARED,
    Document,
    Identifier,
    as_corpus,
    expected_scripts,
    identifier,
    main_script,
    require_language,
)

logger = logging.getLogger("mwork_lens")

WIDE = ("en", "de", "fr", "es", "ru", "zh", "ja", "ko", "ar", "hi", "th", "vi")
"""Languages that tokens are identified over besides those asked for, so that a German token is not called English."""

RULES = 2
"""Version of the rules below: labels made by other rules are made anew."""

_LETTER = regex.compile(r"[\p{L}\p{M}]")
_MARKUP = regex.compile(r"\s*[<\[].*[>\]]\s*")
_PACKAGES = {"lingua": "lingua-language-detector", "cld3": "cld3-py", "script": "regex"}


@dataclass(frozen=True, eq=False)
class TokenLanguages:
    """A label for every token of a vocabulary."""

    labels: Int[Tensor, " token"]
    """Index into ``names``."""
    names: tuple[str, ...]
    """The languages that tokens were identified over, then ``shared`` and ``other``."""
    settings: Mapping[str, Any]
    """Identifier and its version, candidates, hash of the tokenizer."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that tokens were identified over."""
        return self.names[:-2]

    def shares(self) -> dict[str, float]:
        """Each label's share of the vocabulary."""
        counts = torch.bincount(self.labels, minlength=len(self.names)).double()
        return dict(zip(self.names, (counts / counts.sum()).tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row a label: its tokens and their share of the vocabulary."""
        counts = torch.bincount(self.labels, minlength=len(self.names))
        return pd.DataFrame({"language": self.names, "tokens": counts.tolist(), "share": list(self.shares().values())})

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

    ``other`` are tokens without letters, special tokens and markup, what the identifier cannot tell or is not confident
    of, and single letters of a script that several candidates use. ``shared`` are those about as likely in several
    languages.

    Args:
        model: a hooked model with a tokenizer.
        languages: BCP 47 tags that you ask for.
        identifier: as in :func:`mwork_lens.text.languages.identifier`. Labels of a named one are kept in the cache.
        identify_over: all candidates; by default ``languages`` and twelve widespread ones (of ``"script"``: just
            ``languages``). More candidates mean fewer tokens under a wrong name and more that are confused.

    Raises:
        ValueError: without a tokenizer, or for candidates that the identifier does not know or that lack one of
            ``languages``.
    """
    candidates = _candidates(languages, identifier, identify_over)
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: its tokens have no text to identify.")
    settings = {
        "identifier": identifier if isinstance(identifier, str) else getattr(identifier, "__name__", "custom"),
        "identifier_version": version(_PACKAGES[identifier]) if isinstance(identifier, str) else None,
        "identified_over": candidates,
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "vocabulary": model.cfg.d_vocab,
        "rules": RULES,
    }
    names = (*candidates, SHARED, OTHER)
    if not isinstance(identifier, str):
        return TokenLanguages(_labels(model, identifier, candidates), names, settings)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_directory() / "token-languages" / key
    if path.is_dir():
        return TokenLanguages(read_result(path, "token_languages")[1]["labels"].long(), names, settings)
    logger.info("Identifying the language of %s tokens once (up to a minute) ...", f"{model.cfg.d_vocab:,}")
    labels = _labels(model, _identifier(identifier, candidates), candidates)
    _keep(path, settings, labels)
    return TokenLanguages(labels, names, settings)


_identifier = identifier


def _candidates(languages: Sequence[str], chosen: str | Identifier, over: Sequence[str] | None) -> list[str]:
    if isinstance(languages, str) or not languages:
        raise ValueError(f"languages={languages!r}: give a list of language tags, e.g. ['en', 'fr'].")
    asked = [require_language(tag) for tag in languages]
    if over is None:
        over = [*asked, *(() if chosen == "script" else _others(asked))]
    candidates = sorted({require_language(tag) for tag in over})
    missing = [tag for tag in asked if tag not in candidates]
    if missing:
        raise ValueError(f"{missing[0]!r} is asked for but not among those identified over: {', '.join(candidates)}.")
    if isinstance(chosen, str):
        _identifier(chosen, candidates)  # refuses what it does not know, before the model is looked at
    return candidates


def _others(asked: Sequence[str]) -> list[str]:
    """The widespread languages without those asked for under a longer tag (``zh-Hant``, ``pt-BR``)."""
    bases = {tag.split("-")[0] for tag in asked}
    return [tag for tag in WIDE if tag not in bases]


def tokenizer_hash(tokenizer: Any) -> str:
    """The identity of a vocabulary: which text has which id (SHA-256, shortened)."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def token_texts(model: HookedModel, ids: Sequence[int]) -> list[str]:
    """Each token as text, with its leading space; parts of a character come out as the replacement character."""
    return [model.tokenizer.decode([i]) for i in ids]


def _labels(model: HookedModel, identify: Identifier, candidates: Sequence[str]) -> Int[Tensor, " token"]:
    known = min(model.cfg.d_vocab, len(model.tokenizer))
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    scripts = [script for tag in candidates for script in expected_scripts(tag)]
    # a single Chinese character is a word
    crowded = {script for script in scripts if scripts.count(script) > 1} - {"Hani"}
    texts = {i: text for i, text in enumerate(token_texts(model, range(known))) if i not in special}
    readable = {i: text.strip() for i, text in texts.items() if _readable(text, crowded)}
    index = {name: i for i, name in enumerate((*candidates, SHARED, OTHER))}
    labels = torch.full((model.cfg.d_vocab,), index[OTHER])
    found = identify(list(readable.values()))
    for i, label in zip(readable, found, strict=True):
        labels[i] = index.get(label or OTHER, index[OTHER])
    return labels


def _readable(text: str, crowded: set[str]) -> bool:
    """Whether a text can have a language: letters, no markup, more than one letter where languages share a script."""
    letters = len(_LETTER.findall(text))
    if not letters or "\ufffd" in text or _MARKUP.fullmatch(text):
        return False
    return letters > 1 or main_script(text) not in crowded


def _keep(path: Path, settings: Mapping[str, Any], labels: Int[Tensor, " token"]) -> None:
    try:
        # another process may have written the same in the meantime
        with contextlib.suppress(FileExistsError):
            write_result(path, "token_languages", settings, {"labels": labels.to(torch.int16)})
    except OSError as error:
        logger.warning("The labels could not be kept in %s (%s); they will be made anew next time.", path, error)


LEAST_COUNT, LEAST_SHARE = 2, 0.9


@dataclass(frozen=True, eq=False)
class IdentifierAccuracy:
    """What an identifier calls tokens of each language."""

    confusion: Int[Tensor, "language label"]
    """Tokens of each language (rows) under each label (columns)."""
    languages: tuple[str, ...]
    names: tuple[str, ...]
    """The labels: ``languages``, then ``shared`` and ``other``."""
    settings: Mapping[str, Any]

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
        """The confusion table: a row a language, columns what its tokens are called, and the share that is right."""
        frame = pd.DataFrame(self.confusion.tolist(), index=list(self.languages), columns=list(self.names))
        right = [row[name] / max(1, row.sum()) for name, row in frame.iterrows()]
        return frame.rename_axis("language").assign(tokens=frame.sum(axis=1), right=right)

    def summary(self) -> str:
        """How often it is right, in a sentence."""
        return (
            f"{self.settings['identifier']}: {self.accuracy:.1%} of {int(self.confusion.sum()):,} tokens right; "
            f"{self.decided:.1%} get a language, {self.precision:.1%} of these the right one"
        )

    def __repr__(self) -> str:
        return f"IdentifierAccuracy({self.summary()})\n{self.to_frame().round(2).to_string()}"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.summary())}</p>{self.to_frame().round(2).to_html()}"

    def save(self, path: str | Path) -> None:
        """Write to a directory that does not exist yet or is empty."""
        write_result(path, "identifier_accuracy", dict(self.settings), {"confusion": self.confusion})

    @classmethod
    def load(cls, path: str | Path) -> "IdentifierAccuracy":
        """Read what :meth:`save` wrote."""
        settings, tensors = read_result(path, "identifier_accuracy")
        languages = tuple(settings["languages"])
        return cls(tensors["confusion"], languages, (*languages, SHARED, OTHER), settings)


def identifier_accuracy(
    model: HookedModel, corpus: Mapping[str, Sequence[Document]], *, name: str | Identifier = "lingua"
) -> IdentifierAccuracy:
    """Score an identifier, restricted to the corpus's languages, on the corpus's own tokens.

    A token's language is known if it has at least two letters, occurs at least twice, and at least nine times in ten in
    one language's text. Give languages about equally much text.

    Args:
        model: whose tokenizer is used.
        corpus: texts by language.
        name: as in :func:`mwork_lens.text.languages.identifier`.

    Raises:
        ValueError: without a tokenizer, for a language that the identifier does not know, or text too short to tell.
    """
    given = as_corpus(corpus)
    if model.tokenizer is None:
        raise ValueError(f"{model.cfg.model_name} has no tokenizer: its tokens have no text to identify.")
    languages = tuple(given)
    identify = _identifier(name, languages)
    truth = _known(model, {language: given[language] for language in languages}, given.ids)
    if not truth:
        raise ValueError("No token of this text occurs often enough in one language alone: give more text.")
    texts = [text.strip() for text in token_texts(model, list(truth))]
    names = (*languages, SHARED, OTHER)
    confusion = torch.zeros(len(languages), len(names), dtype=torch.long)
    for own, found in zip(truth.values(), identify(texts), strict=True):
        confusion[languages.index(own), names.index(found) if found in names else -1] += 1
    settings = {
        "identifier": name if isinstance(name, str) else getattr(name, "__name__", "custom"),
        "languages": list(languages),
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "corpus": given.describe(),
    }
    return IdentifierAccuracy(confusion, languages, names, settings)


def _known(
    model: HookedModel, texts: Mapping[str, Sequence[Document]], ids: Mapping[str, Sequence[str]]
) -> dict[int, str]:
    """The language of each token that occurs nearly only there."""
    counts: dict[int, Counter[str]] = {}
    for language, documents in texts.items():
        for tokens in encode(model, documents, ids[language], max(MAX_TOKENS, model.cfg.n_ctx)):
            for token in tokens.tolist():
                counts.setdefault(token, Counter())[language] += 1
    text = dict(zip(counts, token_texts(model, list(counts)), strict=True))
    known = {}
    for token, by_language in counts.items():
        language, most = by_language.most_common(1)[0]
        total = by_language.total()
        if total >= LEAST_COUNT and most >= LEAST_SHARE * total and len(_LETTER.findall(text[token])) > 1:
            known[token] = language
    return known
