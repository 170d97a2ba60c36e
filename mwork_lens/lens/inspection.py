"""Inspect neurons: what they read on a corpus, and what they write through the unembedding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..model import (
    SITES,
    ExactSum,
    ForwardHook,
    HookedModel,
    Reducer,
    Tally,
    model_record,
    pass_record,
    settled,
    tallied,
)
from ..model.architecture import key_value_heads, weight
from ..model.forward import MAX_TOKENS, Encoded, Plan, Running, TokenBatch, stream
from ..model.lm_head import require_direct_path
from ..model.post_norms import post_norm
from ..model.unembedding import ROWS_AT_ONCE, final_norm, top_ids
from ..neurons import NeuronSet, NeuronSpace, warn_of_other_weights
from ..store import digest, storable
from ..text import Document, Identifier, check_arguments
from .neuron_cards import Neuron, NeuronCards, sign_of
from .vocabulary import TokenLanguages, decoded_tokens, label_vocabulary, require_top_k, token_texts

BROKEN = "\ufffd"
"""What a part of a character decodes to."""

GATE = "mlp.hook_pre"
"""What the feed-forward's nonlinearity reads: a neuron fires where this is above zero."""

Place = tuple[int, str]
Places = Mapping[Place, Int[Tensor, " _"]]
"""The neurons to follow, by layer and site; one after the other they are an axis ``neuron``."""


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
    checkpoint: str | Path | None = None,
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
        contexts: strongest places to keep of each neuron; equally strong ones in the order of the corpus, whatever the
            batches.
        top_k: promoted and suppressed tokens to keep.
        window: tokens of text to show before and after each place.
        identifier, identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of these two options.
        max_tokens: longer documents are cut there, with a warning.
        batch_size: documents at a time; None fills a token budget.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`.
        progress: whether to show a bar.

    Raises:
        ValueError: for no neurons, ones of a model with other sizes, options out of range, or a checkpoint of something
            else, before the work. A set of another model of these sizes (its name, or the fingerprint of its weights)
            warns.

    Example:
        >>> cards = mw.inspect(model, mw.cut_to_size(french, 2), train, max_tokens=32)
        >>> len(cards.to_frame())
        2
    """
    check_arguments(inspect, locals())
    neurons = _as_set(model, neurons)
    require_top_k(model, top_k)
    if contexts < 1 or window < 0:
        raise ValueError(f"{contexts=} or {window=} is out of range.")
    warn_of_other_weights(model, [neurons])
    masks = neurons.masks
    cells = [(layer, site) for layer in range(neurons.space.n_layers) for site in masks if masks[site][layer].any()]
    if any(SITES[site].writes for _, site in cells):
        require_direct_path(model)
    encoded = Encoded.of(model, corpus, max_tokens)
    languages, plan = tuple(encoded), encoded.plan(batch_size)
    labels = token_languages or label_vocabulary(model, languages, identifier=identifier, identify_over=identify_over)
    places = {(layer, site): masks[site][layer].nonzero().flatten() for layer, site in cells}
    listed = tuple((layer, site, i) for (layer, site), of_site in places.items() for i in of_site.tolist())
    read = {"max_tokens": max_tokens, "corpus": encoded.corpus.describe()}
    settings = {**model_record(model), "processing": neurons.space.processing}
    asked = {**settings, **read, "neurons": digest(listed), "contexts": contexts, "batch_size": batch_size}
    activity = Activity.empty(plan, len(listed), contexts)
    with settled(model):
        with tallied({"activity": activity}, checkpoint, lambda: pass_record("inspect", model, plan, asked)) as tally:
            _follow(model, places, plan, tally, progress)
        promoted, suppressed = _written(model, places, sign_of(activity.strongest.values), top_k)
    means = activity.means()
    fire = torch.tensor([[_fires(model, site)] for _, site, _ in listed])
    return NeuronCards(
        neurons=listed,
        firing_rate=torch.where(fire, means["fired"], torch.nan),
        mean=means["total"],
        magnitude=means["magnitude"],
        strongest=activity.strongest.values,
        contexts=_contexts(model, activity.strongest.where, encoded, window),
        promoted=promoted,
        suppressed=suppressed,
        tokens=decoded_tokens(model, labels, torch.cat([promoted, suppressed])),
        vocabulary=labels.shares(),
        languages=languages,
        settings={**settings, "origin": dict(neurons.origin), **read, **labels.settings},
    )


def _as_set(model: HookedModel, neurons: NeuronSet | Iterable[Neuron]) -> NeuronSet:
    space = NeuronSpace.of(model)
    neuron_set = neurons if isinstance(neurons, NeuronSet) else NeuronSet.from_list(space, neurons)
    neuron_set.space.require_compatible(space)
    if not len(neuron_set):
        raise ValueError(f"{neuron_set!r} holds no neuron to inspect.")
    return neuron_set


@storable
@dataclass(frozen=True)
class Strongest:
    """The activations of largest absolute value of each neuron; of equally strong ones the corpus's first."""

    values: Float[Tensor, "neuron rank"]
    """With their sign, strongest first."""
    where: Int[Tensor, "neuron rank"]
    """The place of each in the corpus; -1 where there are fewer."""

    @classmethod
    def among(cls, values: Float[Tensor, "neuron row"], where: Int[Tensor, "*neuron row"], number: int) -> "Strongest":
        """The strongest ``number`` of some activations in float32, all of them where there are fewer."""
        # the bits of positive floats are in the order of their values: one integer of size and place (below 2³²)
        strength = (values.abs().view(torch.int32).long() << 32).sub_(where % 2**32)
        best = strength.topk(min(number, values.shape[1]), dim=1).indices
        return cls(values.gather(1, best), where.expand_as(values).gather(1, best))

    def add(self, other: "Strongest") -> None:
        """Take in those of other batches."""
        both = torch.cat([self.values, other.values], 1), torch.cat([self.where, other.where], 1)
        best = Strongest.among(*both, self.values.shape[1])
        self.values.copy_(best.values)
        self.where.copy_(best.where)


@dataclass(frozen=True)
class Activity(Reducer, kind="activity"):
    """What some neurons do on the ordinary tokens of a corpus."""

    positions: Int[Tensor, " language"]
    sums: dict[str, ExactSum]
    """``[language, neuron]``: of activations (``total``), of their absolute values (``magnitude``), and how often each
    neuron ``fired``, which is 0 where it does not belong to a nonlinearity."""
    strongest: Strongest

    @classmethod
    def empty(cls, plan: Plan, neurons: int, contexts: int) -> "Activity":
        """On no tokens."""
        languages = len(plan.encoded)
        return cls(
            **Reducer.start(plan),
            positions=torch.zeros(languages, dtype=torch.long),
            sums={name: ExactSum.zeros(languages, neurons) for name in ("fired", "total", "magnitude")},
            strongest=Strongest(torch.zeros(neurons, contexts), torch.full((neurons, contexts), -1)),
        )

    def update(self, batch: TokenBatch, language: int, seen: Mapping[str, Tensor]) -> None:
        """Add what was seen of all neurons in a batch of one language, by its number."""
        self.claim(batch)
        self.positions[language] += int(batch.content.sum())
        for name, total in self.sums.items():
            total.add(ExactSum.of(seen[name][None]), language)
        self.strongest.add(Strongest(seen["strongest"], seen["where"]))

    def means(self) -> dict[str, Float[Tensor, "neuron language"]]:
        """The sums over positions."""
        return {name: (total.value() / self.positions[:, None]).t() for name, total in self.sums.items()}


def _follow(model: HookedModel, places: Places, plan: Plan, tally: Tally[Activity], progress: bool) -> None:
    """Add what the neurons do in the batches of the corpus that are left."""
    [(name, activity)] = tally.parts.items()
    contexts = activity.strongest.values.shape[1]
    running, languages, longest = Running(), list(plan.encoded), _longest(plan.encoded)
    before = dict(zip(languages, accumulate(plan.encoded.documents.values(), initial=0), strict=False))
    where: dict[int, Int[Tensor, " row"]] = {}  # in the corpus, of the running batch's tokens
    seen = {place: {"fired": torch.zeros(len(neurons))} for place, neurons in places.items()}

    def values(place: Place, activation: Tensor) -> Float[Tensor, "neuron row"]:
        return (
            activation.flatten(2)[running.beside(activation).content][:, places[place].to(activation.device)].t().cpu()
        )

    def count(place: Place, activation: Tensor, hook: Any = None) -> Tensor:
        seen[place]["fired"] = (values(place, activation) > 0).double().sum(1)
        return activation

    def read(place: Place, activation: Tensor, hook: Any = None) -> Tensor:
        each, batch = values(place, activation).float(), running.batch
        if batch.number not in where:
            rows, positions = batch.content.nonzero().cpu().unbind(1)
            where.clear()
            where[batch.number] = (before[batch.language] + torch.tensor(batch.rows)[rows]) * longest + positions
        best = Strongest.among(each, where[batch.number], contexts)
        sums = {"total": each.double().sum(1), "magnitude": each.double().abs().sum(1)}
        seen[place] |= {**sums, "strongest": best.values, "where": best.where}
        return activation

    hooks: list[ForwardHook] = [(SITES[place[1]].hook_name(place[0]), partial(read, place)) for place in places]
    hooks += [(f"blocks.{place[0]}.{GATE}", partial(count, place)) for place in places if _fires(model, place[1])]
    for batch, _ in stream(model, tally.left(plan), hooks, running, progress="reading" if progress else None):
        of_all = {name: torch.cat([of_site[name] for of_site in seen.values()]) for name in next(iter(seen.values()))}
        tally.add(name, batch, languages.index(batch.language), of_all)


def _longest(encoded: Encoded) -> int:
    """Tokens of the longest document: places in the corpus are counted as if each had so many."""
    return max(len(ids) for documents in encoded.values() for ids in documents)


def _fires(model: HookedModel, site: str) -> bool:
    """Whether neurons of a site fire or not: those behind the feed-forward's nonlinearity."""
    return site == "mlp" and f"blocks.0.{GATE}" in model.hook_dict


def _contexts(
    model: HookedModel, where: Int[Tensor, "neuron rank"], encoded: Encoded, window: int
) -> tuple[tuple[dict[str, Any], ...], ...]:
    """The text around each place: language, passage, position, and what stands before, at and after it."""
    names = encoded.corpus.ids
    documents = [(tag, *document) for tag in encoded for document in zip(names[tag], encoded[tag], strict=True)]
    longest, decode = _longest(encoded), lambda ids: "".join(token_texts(model, ids))
    if model.tokenizer is not None:
        decode = partial(model.tokenizer.decode, skip_special_tokens=True)

    def context(place: int) -> dict[str, Any]:
        number, position = divmod(place, longest)
        language, passage, ids = documents[number]
        parts = ids[max(0, position - window) : position], ids[[position]], ids[position + 1 : position + 1 + window]
        before, token, after = (decode(part.tolist()) for part in parts)
        # the window may cut through a character of several tokens
        text = {"before": before.lstrip(BROKEN), "token": token, "after": after.rstrip(BROKEN)}
        return {"language": language, "passage": passage, "position": position, **text}

    return tuple(tuple(context(place) for place in places if place >= 0) for places in where.tolist())


@torch.inference_mode()
def _written(
    model: HookedModel, places: Places, signs: Int[Tensor, " neuron"], k: int
) -> tuple[Int[Tensor, "neuron k"], Int[Tensor, "neuron k"]]:
    """The tokens that neurons promote and suppress most by an activation of this sign; -1 for what writes nothing."""
    sizes, tokens = [*map(len, places.values())], torch.full((2, len(signs), k), -1)
    for (place, neurons), sign, ids in zip(places.items(), signs.split(sizes), tokens.split(sizes, 1), strict=True):
        if SITES[place[1]].writes:
            added = directions(model, place, neurons)
            added = added * sign.to(added)[:, None]
            # less the norm of nothing: a final norm's own bias is not the neuron's doing
            normed = final_norm(model, added) - final_norm(model, torch.zeros_like(added))
            parts = torch.cat([normed, -normed]).split(ROWS_AT_ONCE)
            ids.copy_(torch.cat([top_ids(model, part, k) for part in parts]).view_as(ids))
    return tokens[0], tokens[1]


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
    if norm is None:
        return added
    added = added - added.mean(-1, keepdim=True) if norm.centred else added
    return added * norm.gain.to(added.dtype)
