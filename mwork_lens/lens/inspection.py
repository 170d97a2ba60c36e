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
    Encoded,
    HookedModel,
    final_norm,
    key_value_heads,
    post_norm,
    top_ids,
    weight,
)
from ..neurons import NeuronSet, NeuronSpace
from ..text import Document, Identifier
from .activation_examples import Activity, Place, Places, fires, follow
from .neuron_cards import Neuron, NeuronCards, sign_of
from .vocabulary import TokenLanguages, label_vocabulary, require_top_k, token_texts

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
        identifier, identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of these two options.
        max_tokens: longer documents are cut there, with a warning.
        batch_size: documents at a time; None fills a token budget.
        progress: whether to show a bar.

    Raises:
        ValueError: for no neurons, ones of a model with other sizes, or options out of range, before the work.
    """
    neurons = _as_set(model, neurons)
    require_top_k(model, top_k)
    if contexts < 1 or window < 0:
        raise ValueError(f"{contexts=} or {window=} is out of range.")
    encoded = Encoded.of(model, corpus, max_tokens)
    languages = tuple(encoded)
    labels = token_languages or label_vocabulary(model, languages, identifier=identifier, identify_over=identify_over)
    places = _places(neurons)
    activity = follow(model, places, encoded.plan(batch_size), contexts=contexts, progress=progress)
    promoted, suppressed = _written(model, places, sign_of(activity.strongest.values), top_k)
    space, described = neurons.space, {"max_tokens": max_tokens, "corpus": encoded.corpus.describe()}
    return NeuronCards(
        neurons=tuple((layer, site, i) for (layer, site), of_site in places.items() for i in of_site.tolist()),
        firing_rate=_firing_rate(model, places, activity),
        mean=(activity.total.value() / activity.positions[:, None]).t(),
        magnitude=(activity.magnitude.value() / activity.positions[:, None]).t(),
        strongest=activity.strongest.values,
        contexts=tuple(_contexts(model, rows, encoded, window) for rows in activity.strongest.where),
        promoted=promoted,
        suppressed=suppressed,
        tokens=_tokens(model, labels, torch.cat([promoted, suppressed])),
        vocabulary=labels.shares(),
        languages=languages,
        settings={"model": space.model, "processing": space.processing, "origin": dict(neurons.origin), **described}
        | dict(labels.settings),
    )


def _as_set(model: HookedModel, neurons: NeuronSet | Iterable[Neuron]) -> NeuronSet:
    space = NeuronSpace.of(model)
    neuron_set = neurons if isinstance(neurons, NeuronSet) else NeuronSet.from_list(space, neurons)
    neuron_set.space.require_compatible(space)
    if not len(neuron_set):
        raise ValueError(f"{neuron_set!r} holds no neuron to inspect.")
    return neuron_set


def _places(neurons: NeuronSet) -> Places:
    return {
        (layer, site): mask[layer].nonzero().flatten()
        for layer in range(neurons.space.n_layers)
        for site, mask in neurons.masks.items()
        if mask[layer].any()
    }


# --- what they read -------------------------------------------------------------------------------


def _firing_rate(model: HookedModel, places: Places, activity: Activity) -> Float[Tensor, "neuron language"]:
    """NaN for neurons that do not fire."""
    fire = torch.tensor([fires(model, site) for (_, site), neurons in places.items() for _ in neurons])
    rate = activity.fired.double() / activity.positions[:, None]
    return torch.where(fire, rate, torch.nan).t()


def _contexts(
    model: HookedModel, places: Int[Tensor, "rank 3"], encoded: Encoded, window: int
) -> tuple[dict[str, Any], ...]:
    """The text around each place: language, passage, position, and what stands before, at and after it."""
    contexts = []
    for number, passage, position in places[places[:, 0] >= 0].tolist():
        language = list(encoded)[number]
        ids = encoded[language][passage].tolist()
        before = _joined(model, ids[max(0, position - window) : position])
        after = _joined(model, ids[position + 1 : position + 1 + window])
        # the window may cut through a character of several tokens
        text = {
            "before": before.lstrip(BROKEN),
            "token": _joined(model, [ids[position]]),
            "after": after.rstrip(BROKEN),
        }
        where = {"language": language, "passage": encoded.names[language][passage], "position": position}
        contexts.append({**where, **text})
    return tuple(contexts)


def _joined(model: HookedModel, ids: Sequence[int]) -> str:
    if model.tokenizer is None:
        return "".join(_texts(model, ids))
    return model.tokenizer.decode(ids, skip_special_tokens=True)


def _texts(model: HookedModel, ids: Sequence[int]) -> list[str]:
    return [f"<{i}>" for i in ids] if model.tokenizer is None else token_texts(model, ids)


# --- what they write ------------------------------------------------------------------------------


def _tokens(model: HookedModel, labels: TokenLanguages, ids: Int[Tensor, "neuron k"]) -> dict[int, tuple[str, str]]:
    """Text and language of each token."""
    distinct = [i for i in ids.unique().tolist() if i >= 0]
    return dict(zip(distinct, zip(_texts(model, distinct), labels.of(distinct), strict=True), strict=True))


@torch.inference_mode()
def _written(
    model: HookedModel, places: Places, signs: Int[Tensor, " neuron"], k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """The tokens that neurons promote and suppress by an activation of this sign; -1 for what writes nothing."""
    promoted, suppressed = [], []
    for (place, neurons), sign in zip(places.items(), signs.split([*map(len, places.values())]), strict=True):
        if SITES[place[1]].writes:
            added = directions(model, place, neurons)
            most, least = _top_and_bottom(model, added * sign.to(added)[:, None], k)
        else:
            most = least = torch.full((len(neurons), k), -1)
        promoted.append(most)
        suppressed.append(least)
    return torch.cat(promoted), torch.cat(suppressed)


def directions(model: HookedModel, place: Place, neurons: Int[Tensor, " neuron"]) -> Float[Tensor, "neuron d_model"]:
    """What each neuron of a layer and site adds to the residual stream per unit of activation, up to a positive factor.

    For ``mlp`` its row of W_out; for ``v`` the sum of its rows of W_O over the query heads of its group, as if all of
    them attended alike. Times the gain of the post-norm where the model has one.
    """
    layer, site = place
    if site == "mlp":
        rows = weight(model, layer, "mlp.W_out")
    else:
        groups = key_value_heads(model.cfg)
        by_head = rearrange(weight(model, layer, "attn.W_O"), "(g head) k d_model -> g head k d_model", g=groups)
        rows = rearrange(by_head.sum(1), "g k d_model -> (g k) d_model")
    added = rows[neurons.to(rows.device)]
    norm = post_norm(model, layer, SITES[site].structure)
    return added if norm is None else added * norm.gain.to(added.dtype)


def _top_and_bottom(
    model: HookedModel, added: Float[Tensor, "neuron d_model"], k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """The ``k`` tokens whose logits each direction raises most and lowers most, strongest first (the direct path)."""
    # less the norm of nothing: a final norm's own bias is not the neuron's doing
    normed = final_norm(model, added) - final_norm(model, torch.zeros_like(added))
    ids = [top_ids(model, part, k) for part in torch.cat([normed, -normed]).split(ROWS_AT_ONCE)]
    raised, lowered = torch.cat(ids).cpu().chunk(2)
    return raised, lowered
