"""Which language each layer speaks: hidden states decoded into tokens, and the tokens' languages counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..model import (
    HookedModel,
    TokenBatch,
    at_least_float32,
    batches,
    device_of,
    encode,
    hooked,
    label_masses,
    run_blocks,
    special_ids,
    stream_hook,
    top_tokens,
    wide_dtype,
)
from ..neurons import weight_processing
from ..text import Corpus, Document, Identifier, as_corpus, require_language
from .language_ratio import LanguageRatio
from .vocabulary import TokenLanguages, label_vocabulary

By = Literal["count", "mass"]
Positions = slice | Sequence[int]
DIRECTIONS = 128


LEAST_SPREAD = 1e-5
"""States that differ by less than this, relative to their norm, are the same up to rounding."""


class RandomDirections:
    """Streams a layer's hidden states into random directions z ~ N(0, Σ), without ever holding Σ.

    z = Σ_i w_i g_i (h_i − μ) over all states h_i, with normal g_i and w_i² = 1 / (labels · the label's states), has
    just the states' covariance about their mean μ. Every label (prompt language) counts the same, or the baseline
    would swallow the signal. Directions are scaled to the layer's mean norm.
    """

    def __init__(self, layers: Sequence[int], number: int, rows: Mapping[str, int], seed: int) -> None:
        self._number, self._rows = number, rows
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[int, _Sums] = {layer: _Sums() for layer in layers}

    def add(self, layer: int, label: str, states: Float[Tensor, "row d_model"]) -> None:
        """Take in some states of one label."""
        states = at_least_float32(states)
        weight = 1 / (len(self._rows) * self._rows[label])
        draws = torch.randn(self._number, len(states), generator=self._generator).to(states) * weight**0.5
        sums = self._sums[layer]
        sums.drawn = sums.drawn + draws @ states
        sums.draws = sums.draws + draws.sum(1)
        sums.mean = sums.mean + weight * states.sum(0)
        sums.norm += weight * states.norm(dim=1).sum().item()

    def directions(self, layer: int) -> Float[Tensor, "direction d_model"]:
        """The layer's random directions.

        Raises:
            ValueError: if all its states are the same, which have no direction.
        """
        sums = self._sums[layer]
        if sum(self._rows.values()) < 2:
            raise ValueError("One position has no covariance to draw random directions from: give directions=0.")
        centred = sums.drawn - sums.draws[:, None] * sums.mean
        lengths = centred.norm(dim=1, keepdim=True)
        if lengths.max() <= LEAST_SPREAD * sums.norm:
            raise ValueError(
                f"All states read at layer {layer} are the same: they have no covariance to draw random directions "
                "from. Read more positions, or give directions=0."
            )
        return centred * (sums.norm / lengths)


class _Sums:
    """Σ w g h, Σ w g, the mean and the mean norm of one layer's states."""

    drawn: Tensor = torch.zeros(())
    draws: Tensor = torch.zeros(())
    mean: Tensor = torch.zeros(())
    norm: float = 0.0


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
    progress: bool = True,
) -> LanguageRatio:
    """Decode every layer's hidden states into tokens and count the tokens' languages (logit lens; the paper's Fig. 1).

    Hidden states go through the model's own final norm, recomputed for each layer, and its unembedding. Special tokens
    and padding are not read. Beside each share stands what chance gives: the decoding of random directions that have
    the layer's own covariance and mean norm, pooled over the prompt languages with equal weight.

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
        identifier: see :func:`label_vocabulary`.
        identify_over: see :func:`label_vocabulary`.
        token_languages: labels made before, instead of the two options above.
        directions: random directions a layer for the baseline; 0 leaves it out.
        seed: of the random directions.
        max_tokens: longer prompts are cut there, with a warning; by default one longer than the context is refused.
        batch_size: prompts at a time; None fills a token budget.
        progress: whether to show a bar.

    Raises:
        ValueError: for an empty or too long prompt, ``top_k`` above the vocabulary, an unknown language, layer or
            option, before the work.
    """
    given = as_corpus(prompts)
    chosen = _layers(model, layers)
    _require_options(model, top_k, by, new_tokens, directions)
    encoded = {label: encode(model, given[label], given.ids[label], max_tokens) for label in given}
    _require_room(model, encoded, given, new_tokens)
    reported = _reported(given, languages, token_languages)
    labels = token_languages or label_vocabulary(model, reported, identifier=identifier, identify_over=identify_over)
    lens = _Lens(model, labels, top_k, by, normalize)
    if new_tokens:
        encoded = {label: [_continued(model, ids, new_tokens) for ids in found] for label, found in encoded.items()}
    masks = {label: [_read_at(model, ids, positions) for ids in found] for label, found in encoded.items()}
    rows = _require_positions(masks, given, positions)
    random = RandomDirections(chosen, directions, rows, seed) if directions else None
    counts, chance = _read(lens, chosen, encoded, masks, random, batch_size, progress)
    settings = {"positions": _named(positions), "new_tokens": new_tokens, "directions": directions, "seed": seed}
    return LanguageRatio(
        counts=counts,
        chance=chance,
        vocabulary=torch.tensor(list(labels.shares().values()), dtype=torch.float64),
        layers=tuple(chosen),
        names=labels.names,
        languages=tuple(reported),
        documents=given.documents,
        settings={**lens.settings(), **settings, "states": rows, "corpus": given.describe()},
    )


def _read(
    lens: "_Lens",
    layers: Sequence[int],
    encoded: Mapping[str, Sequence[Int[Tensor, " _"]]],
    masks: Mapping[str, Sequence[Bool[Tensor, " _"]]],
    random: RandomDirections | None,
    batch_size: int | None,
    progress: bool,
) -> tuple[dict[str, Float[Tensor, "_ layer label"]], Float[Tensor, "layer direction label"]]:
    """The labels of what the prompts' states, by prompt language, and what random directions decode to."""
    counts = {}
    with tqdm(total=sum(map(len, encoded.values())), unit="prompt", disable=not progress) as bar:
        for label, found in encoded.items():
            bar.set_description(f"reading {label}")
            tally = _Tally.empty(lens, layers, len(found))
            see = None if random is None else _seen_by(random, label)
            _stream(lens, tally, found, masks[label], see, batch_size, bar)
            counts[label] = tally.counts
        bar.set_description("reading random directions")
        return counts, _chance(lens, layers, random)


@dataclass(frozen=True)
class _Lens:
    """How hidden states become labels."""

    model: HookedModel
    labels: TokenLanguages
    top_k: int
    by: By
    normalize: bool

    def __call__(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row label"]:
        """Decoded tokens of each state under each label, or probability by label."""
        number = len(self.labels.names)
        labels = self.labels.labels.to(hidden.device)
        if self.by == "mass":
            members = torch.nn.functional.one_hot(labels, number).t().to(wide_dtype(hidden.dtype))
            return label_masses(self.model, hidden, members, normalize=self.normalize)
        _, ids = top_tokens(self.model, hidden, self.top_k, normalize=self.normalize)
        counts = torch.zeros(len(hidden), number, dtype=torch.float32, device=hidden.device)
        return counts.scatter_add_(1, labels[ids], torch.ones_like(ids, dtype=counts.dtype))

    def settings(self) -> dict[str, Any]:
        return {
            "model": str(self.model.cfg.model_name),
            "n_layers": self.model.cfg.n_layers,
            "processing": weight_processing(self.model),
            "dtype": str(self.model.unembed.W_U.dtype),
            "top_k": self.top_k if self.by == "count" else None,
            "by": self.by,
            "normalize": self.normalize,
            **self.labels.settings,
        }


@dataclass(frozen=True)
class _Tally:
    """Sums over positions, for the prompts of one language."""

    lens: _Lens
    layers: Sequence[int]
    counts: Float[Tensor, "prompt layer label"]

    @classmethod
    def empty(cls, lens: _Lens, layers: Sequence[int], prompts: int) -> "_Tally":
        return cls(lens, layers, torch.zeros(prompts, len(layers), len(lens.labels.names), dtype=torch.float64))

    def add(self, layer: int, prompts: Int[Tensor, " row"], states: Float[Tensor, "row d_model"]) -> None:
        found = self.lens(states).double().cpu()
        self.counts[:, self.layers.index(layer)].index_add_(0, prompts.cpu(), found)


See = Callable[[int, Tensor], None]


@torch.inference_mode()
def _stream(
    lens: _Lens,
    tally: _Tally,
    encoded: Sequence[Int[Tensor, " _"]],
    masks: Sequence[Bool[Tensor, " _"]],
    see: See | None,
    batch_size: int | None,
    bar: Any,
) -> None:
    """Every chosen layer's states at the chosen positions, into the tally while the forward pass runs."""
    running: list[tuple[TokenBatch, Tensor]] = []

    def reading(layer: int) -> Callable[..., Tensor]:
        def read(activation: Tensor, hook: Any = None) -> Tensor:
            batch, mask = running[-1]
            states = activation[mask]
            tally.add(layer, torch.tensor(batch.rows)[mask.nonzero()[:, 0].cpu()], states)
            if see is not None:
                see(layer, states)
            return activation

        return read

    with hooked(lens.model, [(stream_hook(layer), reading(layer)) for layer in tally.layers]):
        for batch in batches(lens.model, encoded, batch_size):
            mask = torch.zeros_like(batch.content)
            for i, row in enumerate(batch.rows):
                mask[i, : batch.lengths[i]] = masks[row].to(mask.device)
            running[:] = [(batch, mask)]
            run_blocks(lens.model, batch.tokens)
            bar.update(len(batch.rows))


def _seen_by(random: RandomDirections, label: str) -> See:
    return lambda layer, states: random.add(layer, label, states)


@torch.inference_mode()
def _chance(
    lens: _Lens, layers: Sequence[int], random: RandomDirections | None
) -> Float[Tensor, "layer direction label"]:
    if random is None:
        return torch.zeros(len(layers), 0, len(lens.labels.names), dtype=torch.float64)
    dtype = lens.model.unembed.W_U.dtype
    return torch.stack([lens(random.directions(layer).to(dtype)).double().cpu() for layer in layers])


# --- what to read ---------------------------------------------------------------------------------


def _read_at(model: HookedModel, ids: Int[Tensor, " pos"], positions: Positions | None) -> Bool[Tensor, " pos"]:
    """Where the chosen ordinary tokens of a prompt are; positions that it does not have are left out."""
    ordinary = (~torch.isin(ids, special_ids(model))).nonzero().flatten()
    if isinstance(positions, slice):
        ordinary = ordinary[list(range(len(ordinary))[positions])]
    elif positions is not None:
        ordinary = ordinary[[i for i in positions if -len(ordinary) <= i < len(ordinary)]]
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[ordinary] = True
    return mask


@torch.inference_mode()
def _continued(model: HookedModel, ids: Int[Tensor, " pos"], new_tokens: int) -> Int[Tensor, " longer"]:
    device = device_of(model)
    # without a tokenizer TransformerLens caches absolute positions wrongly
    cached, stops = model.tokenizer is not None, getattr(model.tokenizer, "eos_token_id", None) is not None
    options = {"do_sample": False, "verbose": False, "stop_at_eos": stops, "use_past_kv_cache": cached}
    return model.generate(ids[None].to(device), max_new_tokens=new_tokens, **options)[0].cpu()


def _layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    every = range(model.cfg.n_layers + 1)
    chosen = list(every) if layers is None else sorted(set(layers))
    outside = [layer for layer in chosen if layer not in every]
    if outside or not chosen:
        raise ValueError(
            f"{model.cfg.model_name} has layers 0 (the embedding) to {every[-1]}, not {outside or 'none at all'}."
        )
    return chosen


def _reported(given: Corpus, languages: Sequence[str] | None, labelled: TokenLanguages | None) -> list[str]:
    if languages is None and given.labels == "free" and labelled is None:
        raise ValueError(f"The prompts' labels ({', '.join(given)}) are no languages: give languages=.")
    if languages is None:
        wanted = list(labelled.languages) if labelled else ["en", *given]
    else:
        wanted = [languages] if isinstance(languages, str) else list(languages)
    reported = list(dict.fromkeys(require_language(tag) for tag in wanted))
    missing = [tag for tag in reported if labelled and tag not in labelled.languages]
    if missing or not reported:
        over = f" tokens were identified over {', '.join(labelled.languages)}" if labelled else " it names none"
        raise ValueError(f"languages={languages} cannot be reported:{over}.")
    return reported


def _require_options(model: HookedModel, top_k: int, by: str, new_tokens: int, directions: int) -> None:
    if by not in get_args(By):
        raise ValueError(f"by={by!r}: it must be one of {', '.join(get_args(By))}.")
    if not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(
            f"top_k={top_k} is outside 1 to {model.cfg.d_vocab}, the vocabulary of {model.cfg.model_name}."
        )
    if new_tokens < 0 or directions < 0:
        raise ValueError(f"{new_tokens=} and {directions=} must not be negative.")


def _require_room(model: HookedModel, encoded: Mapping[str, Sequence[Tensor]], given: Corpus, new_tokens: int) -> None:
    for label, found in encoded.items():
        for name, ids in zip(given.ids[label], found, strict=True):
            if len(ids) + new_tokens > model.cfg.n_ctx:
                raise ValueError(
                    f"Prompt {name} has {len(ids)} tokens, and {new_tokens} new ones do not fit the context of "
                    f"{model.cfg.n_ctx} of {model.cfg.model_name}."
                )


def _require_positions(
    masks: Mapping[str, Sequence[Tensor]], given: Corpus, positions: Positions | None
) -> dict[str, int]:
    """How many states of each label are read; refuses a prompt of which none would be."""
    for label, found in masks.items():
        empty = [name for name, mask in zip(given.ids[label], found, strict=True) if not mask.any()]
        if empty:
            raise ValueError(f"positions={_named(positions)} leaves nothing of prompt {empty[0]}.")
    return {label: sum(int(mask.sum()) for mask in found) for label, found in masks.items()}


def _named(positions: Positions | None) -> str:
    return "all" if positions is None else str(positions)
