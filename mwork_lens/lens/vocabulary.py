"""The language of every token of a vocabulary: identified once, kept on disk, then only looked up."""

import contextlib
import hashlib
import json
import logging
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

from ..model import HookedModel
from ..store import cache_directory, read_result, write_result
from ..text import OTHER, SHARED, Identifier, expected_scripts, identifier, main_script, require_language

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
