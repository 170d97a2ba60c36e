"""Inspect neurons: what they read on a corpus, and what they write through the unembedding."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..model import (
    MAX_TOKENS,
    ROWS_AT_ONCE,
    SITES,
    HookedModel,
    encode,
    final_norm,
    key_value_heads,
    post_norm,
    top_ids,
    weight,
)
from ..neurons import NeuronSet, NeuronSpace
from ..text import Corpus, Document, Identifier, as_corpus
from .activation_examples import Followed, Places, fires, follow
from .neuron_cards import Neuron, NeuronCards, sign_of
from .vocabulary import TokenLanguages, label_vocabulary, token_texts

BROKEN = "\ufffd"
"""What a part of a character decodes to."""


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
    found, positions = follow(
        model, _places(chosen), encoded, contexts=contexts, batch_size=batch_size, progress=progress
    )
    where = tuple(_contexts(model, row, encoded, given, window) for f in found.values() for row in f.where)
    settings = {"origin": dict(chosen.origin), "max_tokens": max_tokens, "corpus": given.describe(), **labels.settings}
    return _cards(model, chosen.space, labels, found, positions, where, top_k, settings)


def _places(chosen: NeuronSet) -> Places:
    return {
        (layer, site): chosen.masks[site][layer].nonzero().flatten()
        for layer in range(chosen.space.n_layers)
        for site in chosen.masks
        if chosen.masks[site][layer].any()
    }


def _cards(
    model: HookedModel,
    space: NeuronSpace,
    labels: TokenLanguages,
    found: Mapping[tuple[int, str], Followed],
    positions: Mapping[str, int],
    contexts: tuple[tuple[dict[str, Any], ...], ...],
    top_k: int,
    settings: Mapping[str, Any],
) -> NeuronCards:
    per_position = torch.tensor(list(positions.values()), dtype=torch.float64)
    wrote = [_written(model, place, followed, top_k) for place, followed in found.items()]
    promoted, suppressed = (torch.cat(parts) for parts in zip(*wrote, strict=True))
    return NeuronCards(
        neurons=tuple((layer, site, int(i)) for (layer, site), f in found.items() for i in f.neurons),
        firing_rate=torch.cat([_fired(model, site, f) for (_, site), f in found.items()]) / per_position,
        mean=torch.cat([f.total for f in found.values()]) / per_position,
        magnitude=torch.cat([f.magnitude for f in found.values()]) / per_position,
        strongest=torch.cat([f.strongest for f in found.values()]),
        contexts=contexts,
        promoted=promoted,
        suppressed=suppressed,
        tokens=_named(model, labels, torch.cat([promoted, suppressed])),
        vocabulary=labels.shares(),
        languages=tuple(positions),
        settings={"model": space.model, "processing": space.processing, **settings},
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
    if not SITES[site].writes:
        nothing = torch.full((len(followed.neurons), k), -1)
        return nothing, nothing
    added = directions(model, layer, site, followed.neurons)
    sign = sign_of(followed.strongest).to(added)
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
        # the window may cut through a character of several tokens
        text |= {"before": text["before"].lstrip(BROKEN), "after": text["after"].rstrip(BROKEN)}
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


def directions(
    model: HookedModel, layer: int, site: str, neurons: Int[Tensor, " neuron"]
) -> Float[Tensor, "neuron d_model"]:
    """What each neuron adds to the residual stream per unit of activation, up to a positive factor.

    For ``mlp`` its row of W_out; for ``v`` the sum of its rows of W_O over the query heads of its group, as if all of
    them attended alike. Times the gain of the post-norm where the model has one.
    """
    if site == "mlp":
        rows = weight(model, layer, "mlp.W_out")
    else:
        groups = key_value_heads(model.cfg)
        by_head = rearrange(weight(model, layer, "attn.W_O"), "(g head) k d_model -> g head k d_model", g=groups)
        rows = rearrange(by_head.sum(1), "g k d_model -> (g k) d_model")
    norm = post_norm(model, layer, SITES[site].structure)
    chosen = rows[neurons.to(rows.device)]
    return chosen if norm is None else chosen * norm.gain.to(chosen.dtype)


@torch.inference_mode()
def written(
    model: HookedModel, added: Float[Tensor, "neuron d_model"], k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """The ``k`` tokens whose logits each direction raises most and lowers most, strongest first (the direct path)."""
    # the norm of a direction, less the norm of nothing: a final norm's own bias is no neuron's doing
    normed = final_norm(model, added) - final_norm(model, torch.zeros_like(added))
    ids = [top_ids(model, part, k) for part in torch.cat([normed, -normed]).split(ROWS_AT_ONCE)]
    promoted, suppressed = torch.cat(ids).cpu().chunk(2)
    return promoted, suppressed
