"""What a document is, and lists of documents and of names as callers give them."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import regex
import torch
from torch import Tensor

Document = str | Tensor
"""One text; or its token ids as a 1-D tensor, to which nothing is prepended."""

_BLANK = regex.compile(r"[\s\p{Cf}\p{Cc}]*")


def fault_of(text: Any) -> str | None:
    """Why it is not a document."""
    if isinstance(text, Tensor):
        fractions = text.is_floating_point() or text.is_complex()
        if text.ndim == 1 and len(text) and not fractions and text.dtype != torch.bool:
            return None
        shape = f"a tensor of shape {tuple(text.shape)} and {text.dtype}"
        return f"{shape}; token ids must be a non-empty 1-D integer tensor"
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not a string or a tensor of ids"
    if _BLANK.fullmatch(text) and "\0" not in text:
        return "empty"
    for character, name in {"\0": "a NUL character", "\ufeff": "a byte-order mark (U+FEFF)"}.items():
        if (place := text.find(character)) >= 0:
            return f"not clean text: it holds {name} at character {place + 1}; remove it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X}"
        return f"not text: character {error.start + 1} is half of one (a lone surrogate, {bad}); remove it"
    return None


def as_documents(texts: Any, what: str) -> list[Any]:
    """Texts of one language as a list: out of a list, a tuple, a pandas Series or a 1-D array of strings.

    Raises:
        ValueError: for anything else, e.g. one text, or a corpus by language, whose names would be taken for texts.
    """
    if isinstance(texts, str | bytes | Tensor):
        raise ValueError(f"{what} must be a list of documents, not {type(texts).__name__}: put a single one in a list.")
    if isinstance(texts, Mapping):
        languages = ", ".join(map(repr, list(texts)[:3]))
        remedy = f"give those of one ({languages}, ...)" if languages else "give a list"
        raise ValueError(f"{what} must be a list of documents, not {type(texts).__name__} by language: {remedy}.")
    if isinstance(texts, np.ndarray) and (texts.ndim != 1 or texts.dtype.kind not in "OUT"):
        shape = f"an array of shape {texts.shape} and {texts.dtype}"
        raise ValueError(f"{what} must be a list of documents, not {shape}; token ids are 1-D tensors in a list.")
    arrays = isinstance(texts, pd.Series | pd.Index | np.ndarray)
    if not arrays and not isinstance(texts, Sequence):
        raise ValueError(f"{what} must be a list of documents, not {type(texts).__name__}.")
    return texts.tolist() if arrays else list(texts)


def checked_documents(texts: Any, what: str) -> list[Document]:
    """As :func:`as_documents`, each of them checked; ``what`` names one and is in the plural with an s."""
    documents = as_documents(texts, f"{what}s")
    for i, text in enumerate(documents):
        if fault := fault_of(text):
            raise ValueError(f"{what} {i} is {fault}.")
    return documents


def identity(text: str) -> str:
    """Equal for texts that differ in spaces, case or the composition of characters only."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def as_names(values: Any, what: str) -> list[str]:
    """Names as a list; a ValueError for a single string, which is not a list of its letters, or what is not a name."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{what}={values!r} must be a list of strings, e.g. [{values!r}].")
    names = list(values)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{what} must be a list of strings; it holds {wrong[0]!r}.")
    return names
