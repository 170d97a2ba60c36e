"""The logit lens of one text, as people read it: what each layer decodes to at each token, and in which language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import (
    HookedModel,
    ModelRecord,
    encode,
    log_normalizer,
    model_record,
    settled,
    shown_model,
    stream_states,
    top_tokens,
)
from ..store import Result, require_record
from ..text import ONE_TOKEN, Document, Identifier, check_arguments, warn_of_unknown
from .vocabulary import TokenLanguages, decoded_tokens, label_vocabulary, require_top_k, token_texts


class _Settings(ModelRecord):
    """What results say, of all that the settings hold."""

    identifier: NotRequired[str]


@dataclass(frozen=True, eq=False)
class LensGrid(Result, kind="lens_grid"):
    """The most probable tokens at every layer and position of one text."""

    ids: Int[Tensor, "layer pos k"]
    """Decoded tokens, most probable first; row 0 is the embedding, the last one the model's own prediction."""
    probabilities: Float[Tensor, "layer pos k"]
    tokens: tuple[str, ...]
    """The text itself, token by token."""
    decoded: dict[int, tuple[str, str]]
    """Text and language of each decoded token."""
    names: tuple[str, ...]
    """Every language that tokens were identified over, then ``shared`` and ``other``."""
    vocabulary: Mapping[str, float]
    """Share of the whole vocabulary under each of these: what chance alone favours."""
    settings: dict[str, Any]

    def _require_whole(self) -> None:
        require_record(self.settings, _Settings, "the settings")
        shapes = tuple(self.ids.shape), tuple(self.probabilities.shape)
        if shapes[0] != shapes[1] or shapes[0][1] != len(self.tokens):
            raise ValueError(f"The decoded tokens have shapes {shapes}, for {len(self.tokens)} tokens.")
        if lacking := {*self.ids.flatten().tolist()} - self.decoded.keys():
            raise ValueError(f"The text of the decoded token {min(lacking)} is missing.")
        if lacking := {language for _, language in self.decoded.values()} - self.vocabulary.keys():
            raise ValueError(f"The share of {min(lacking)!r} in the vocabulary is missing.")

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, position and rank: the token there, what it decodes to, language and probability."""
        rows = [
            (layer, pos, self.tokens[pos], rank, *self.decoded[i])
            for layer, positions in enumerate(self.ids.tolist())
            for pos, ids in enumerate(positions)
            for rank, i in enumerate(ids)
        ]
        frame = pd.DataFrame(rows, columns=["layer", "position", "token", "rank", "decoded", "language"])
        return frame.assign(probability=self.probabilities.flatten().tolist())

    def __repr__(self) -> str:
        layers, positions, k = self.ids.shape
        return f"LensGrid({shown_model(self.settings)}: {layers} layers × {positions} tokens, top {k})"


@torch.inference_mode()
def lens_grid(
    model: HookedModel,
    text: Document,
    *,
    languages: Sequence[str],
    top_k: int = 5,
    normalize: bool = True,
    identifier: str | Identifier = "lingua",
    identify_over: Sequence[str] | None = None,
    token_languages: TokenLanguages | None = None,
) -> LensGrid:
    """Decode every layer's state at every token of one text.

    Args:
        model: a hooked model with a tokenizer.
        text: one text, or its token ids; special tokens are read too.
        languages: candidates for the decoded tokens' languages, with the widespread ones.
        top_k: decoded tokens to keep.
        normalize: False leaves out the final norm.
        identifier, identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of these two options.

    Raises:
        ValueError: for an empty text, one longer than the context, or ``top_k`` above the vocabulary.
    """
    check_arguments(lens_grid, locals())
    require_top_k(model, top_k)
    (ids,) = encode(model, [text], ["of the text"], None)
    warn_of_unknown(model.tokenizer, {"the text": [ids]}, effect=ONE_TOKEN, stacklevel=3)
    labels = token_languages or label_vocabulary(model, languages, identifier=identifier, identify_over=identify_over)
    with settled(model):
        states = torch.cat(stream_states(model, ids))
        logits, top = top_tokens(model, states, top_k, normalize=normalize)
        probabilities = (logits - log_normalizer(model, states, normalize=normalize)[:, None]).exp()
    top, probabilities = (each.cpu().unflatten(0, (-1, len(ids))) for each in (top, probabilities))
    return LensGrid(
        ids=top,
        probabilities=probabilities,
        tokens=tuple(token_texts(model, ids.tolist())),
        decoded=decoded_tokens(model, labels, top),
        names=labels.names,
        vocabulary=labels.shares(),
        settings={**model_record(model), "normalize": normalize, "top_k": top_k, **labels.settings},
    )
