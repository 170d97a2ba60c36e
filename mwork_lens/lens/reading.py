"""Which language each layer speaks: hidden states decoded into tokens, and the tokens' languages counted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..model import HookedModel, Tally, device_of, end_ids, pass_record, settled, stream_hook, tallied
from ..model.architecture import require_hooked
from ..model.decoding import decoder
from ..model.forward import Encoded, Plan, Running, TokenBatch, stream
from ..model.shards import part_of
from ..store import digest
from ..store.processes import hidden
from ..text import Corpus, Document, Identifier, check_arguments, require_language
from ..text.choices import listed
from .decoding import By, Lens
from .directions import Draws, Masks, Reading
from .directions import directions as random_directions
from .language_ratio import Baseline, LanguageRatio
from .vocabulary import TokenLanguages, label_vocabulary, require_top_k

Positions = slice | Sequence[int]

DIRECTIONS = 128


def language_ratio(
    model: HookedModel,
    prompts: Mapping[str, Sequence[Document]],
    *,
    languages: Sequence[str] | None = None,
    top_k: int = 10,
    by: By = "count",
    normalize: bool = True,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    new_tokens: int = 0,
    identifier: str | Identifier = "lingua",
    identify_over: Sequence[str] | None = None,
    token_languages: TokenLanguages | None = None,
    directions: int = DIRECTIONS,
    seed: int = 0,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    shard: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> LanguageRatio:
    """Decode every layer's hidden states into tokens and count the tokens' languages (logit lens; the paper's Fig. 1).

    Hidden states go through the model's own final norm, recomputed for each layer, and its unembedding. Special tokens
    and padding are not read. Each share comes with what chance gives: the decoding of random directions that have the
    layer's own covariance and mean norm, pooled over the prompt languages with equal weight.

    Args:
        model: a hooked model.
        prompts: texts by language (or by any label), e.g. a :class:`Corpus`.
        languages: the languages to report; by default English and those of the prompts. All others that tokens were
            identified as are ``other``.
        top_k: how many tokens each position decodes to.
        by: ``"count"`` of the top k tokens, or probability ``"mass"`` of the whole vocabulary (``top_k`` is unused).
        normalize: False leaves out the final norm, as the paper's code does.
        layers: some of 0 (the embedding) to the number of layers; all by default.
        positions: which ordinary tokens of each prompt, e.g. ``[-1]`` or ``slice(None, None, 4)``; all by default.
        new_tokens: tokens to generate greedily after each prompt; they are read too (they alone with
            ``positions=slice(-new_tokens, None)``).
        identifier, identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of these two options.
        directions: random directions per layer for the baseline; 0 leaves it out.
        seed: of the random directions.
        max_tokens: longer prompts are cut there, with a warning; by default one longer than the context is refused.
        batch_size: prompts at a time; None fills a token budget.
        shard: one of several parts of the prompts, as in :func:`detect`; :meth:`LanguageRatio.merge` makes one ratio of
            all, to the bits of reading at once. A part has no baseline yet, only what it is drawn from (16 bytes for
            each layer, direction and dimension of the stream); each part generates all ``new_tokens``.
        checkpoint: a folder in which a stopped call goes on, as in :func:`detect`; ``new_tokens`` are generated again.
        progress: whether to show a bar.

    Raises:
        ValueError: for an empty or too long prompt, ``top_k`` above the vocabulary, an unknown language, layer or
            option, or a checkpoint of something else, before the work.

    Example:
        >>> ratio = mw.language_ratio(model, {"fr": ["Bonjour le monde"]}, languages=["en", "fr"], progress=False)
        >>> list(ratio.to_frame().columns)[:7]
        ['prompt_language', 'layer', 'language', 'share', 'low', 'high', 'chance']
    """
    check_arguments(language_ratio, locals())
    layers = _require_layers(model, layers)
    require_top_k(model, top_k)
    if new_tokens < 0 or directions < 0:
        raise ValueError(f"{new_tokens=} and {directions=} must not be negative.")
    encoded = Encoded.of(model, prompts, max_tokens)
    _require_room(model, encoded, new_tokens)
    reported = _reported(encoded.corpus, languages, token_languages)
    labels = token_languages or label_vocabulary(model, reported, identifier=identifier, identify_over=identify_over)
    encoded = _continued(model, encoded, new_tokens) if new_tokens else encoded
    masks = _masks(encoded, slice(None) if positions is None else positions)
    states = {label: sum(int(mask.sum()) for mask in by_prompt) for label, by_prompt in masks.items()}
    if directions and sum(states.values()) < 2:
        raise ValueError("One position has no covariance to draw random directions from: give directions=0.")
    lens, whole = Lens(model, labels, tuple(layers), top_k, by, normalize), encoded.plan(batch_size)
    read = {"positions": "all" if positions is None else str(positions), "new_tokens": new_tokens, "states": states}
    settings: dict[str, Any] = {**lens.settings(), **read, "directions": directions, "seed": seed}
    settings |= {"corpus": encoded.corpus.describe()}
    draws, plan, rows = Draws(whole, masks, len(layers), directions, seed), whole, None
    reading = Reading.empty(whole, draws, len(labels.names), model.cfg.d_model)
    if shard is not None:
        plan, part = part_of(whole, shard)
        settings["part"], rows = {**part, "made_of": digest([labels.names, labels.labels])}, part["rows"]
    asked = {"corpus": settings["corpus"], **settings, "layers": lens.layers, "batch_size": batch_size}

    def record() -> dict[str, Any]:
        return pass_record("ratio", model, whole, {**asked, "labels": digest([labels.names, labels.labels])})

    with tallied({"reading": reading}, checkpoint, record) as tally:
        _read(lens, tally, plan, masks, draws, progress)
    ratio = LanguageRatio(
        counts=reading.counts,
        chance=torch.zeros(len(layers), 0, len(labels.names), dtype=torch.float64),
        vocabulary=torch.tensor(list(labels.shares().values()), dtype=torch.float64),
        layers=lens.layers,
        names=labels.names,
        languages=tuple(reported),
        documents=encoded.corpus.documents,
        settings=settings,
    )
    if rows is not None:
        return ratio.only_part(rows, Baseline(reading.sums, labels))
    return replace(ratio, chance=lens.chance(random_directions(reading.sums, lens.layers)))


def _read(lens: Lens, tally: Tally[Reading], plan: Plan, masks: Masks, draws: Draws, progress: bool) -> None:
    """Add what the states of the batches that are left decode to."""
    running, layers = Running(), []  # of the running batch

    def read(layer: int, activation: Tensor, hook: Any = None) -> Tensor:
        batch = running.beside(activation)
        states, prompts = activation[batch.content], batch.content.nonzero()[:, 0].cpu()
        labels = lens(states).double().cpu()
        by_prompt = labels.new_zeros(len(batch.rows), labels.shape[1]).index_add_(0, prompts, labels)
        layers.append((by_prompt, draws.sums(batch, layer, states)))
        return activation

    def with_masks(batch: TokenBatch) -> TokenBatch:
        of_rows = [masks[batch.language][row] for row in batch.rows]
        return replace(batch, content=pad_sequence(of_rows, batch_first=True))

    hooks = [(stream_hook(layer), partial(read, i)) for i, layer in enumerate(lens.layers)]
    [name], left = tally.parts, tally.left(plan)
    with tqdm(total=left.documents, initial=left.documents_done, unit="prompt", disable=hidden(progress)) as bar:
        for batch, _ in stream(lens.model, map(with_masks, left), hooks, running, progress=bar):
            bar.set_description(f"reading {batch.language}")
            tally.add(name, batch, layers)
            layers.clear()


def _masks(encoded: Encoded, positions: Positions) -> Masks:
    """Where the ordinary tokens to read are, without positions that a prompt does not have; refuses one without any."""
    masks: dict[str, list[Tensor]] = {label: [] for label in encoded}
    for label, documents in encoded.items():
        for name, ids in zip(encoded.corpus.ids[label], documents, strict=True):
            ordinary = (~torch.isin(ids, encoded.special)).nonzero().flatten()
            number = len(ordinary)
            wanted = range(number)[positions] if isinstance(positions, slice) else positions
            read = ordinary[[i for i in wanted if -number <= i < number]]
            if not len(read):
                raise ValueError(f"positions={positions} leaves nothing of prompt {name}.")
            masks[label].append(torch.zeros_like(ids, dtype=torch.bool).index_fill(0, read, True))
    return masks


@torch.inference_mode()
def _continued(model: HookedModel, encoded: Encoded, new_tokens: int) -> Encoded:
    """The prompts with the likeliest tokens after them, up to an end token."""
    ends, device = end_ids(model), device_of(model)

    def continued(ids: Int[Tensor, " pos"]) -> Int[Tensor, " longer"]:
        reader, new = decoder(model, 1), ids[None].to(device)
        for _ in range(new_tokens):
            new = reader.advance(new, torch.ones_like(new)).argmax(-1, keepdim=True)
            if int(new) in ends:
                break
            ids = torch.cat([ids, new[0].cpu()])
        return ids

    with settled(model):
        return replace(encoded, ids={label: list(map(continued, ids)) for label, ids in encoded.items()})


def _require_layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    require_hooked(model)
    every = range(model.cfg.n_layers + 1)
    wanted = sorted(set(every if layers is None else layers))
    if not wanted or not set(wanted) <= set(every):
        wrong = [layer for layer in wanted if layer not in every] or "none at all"
        raise ValueError(f"{model.cfg.model_name} has layers 0 (the embedding) to {every[-1]}, not {wrong}.")
    return wanted


def _require_room(model: HookedModel, encoded: Encoded, new_tokens: int) -> None:
    for label, documents in encoded.items():
        for name, ids in zip(encoded.corpus.ids[label], documents, strict=True):
            if len(ids) + new_tokens > model.cfg.n_ctx:
                raise ValueError(
                    f"Prompt {name} has {len(ids)} tokens, and {new_tokens} new ones do not fit the context of "
                    f"{model.cfg.n_ctx} of {model.cfg.model_name}."
                )


def _reported(corpus: Corpus, languages: Sequence[str] | None, labels: TokenLanguages | None) -> list[str]:
    """The languages to report, each one that tokens are identified as."""
    if languages is None and corpus.labels == "free" and labels is None:
        raise ValueError(f"The prompts' labels ({', '.join(corpus)}) are not languages: give languages=.")
    if languages is None:
        languages = labels.languages if labels else ("en", *corpus)
    reported = list(dict.fromkeys(map(require_language, [languages] if isinstance(languages, str) else languages)))
    if not reported or (labels and not set(reported) <= set(labels.languages)):
        unknown = next((each for each in reported if labels and each not in labels.languages), "")
        over = f" tokens were identified over {listed(labels.languages, unknown)}" if labels else " it names none"
        raise ValueError(f"languages={languages} cannot be reported:{over}.")
    return reported
