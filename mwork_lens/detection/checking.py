"""Closed forms compared with real ablation on the model itself, before anything rests on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..measures import FORMULATIONS, LayerMeasure, Measure, Selection, SiteMasks, SiteScores, Where, score_hooks
from ..measures.plnd.attention import Geometry
from ..model import HookedModel, Running, TokenBatch, device_of, dtype_of, settled, special_ids, stream, wrapped_model
from ..model.architecture import boundaries, require_hooked, wide_dtype
from ..model.blocks import layers_apart
from ..model.state import hooks_of
from ..model.wide_weights import wide_block
from ..neurons import NeuronSpace
from ..store.processes import hidden
from ..text import check_arguments
from .checks import Check, Scores, layer_checks
from .far_checks import PLACES, far_replays, far_scores
from .layer_kinds import layer_kinds
from .replaying import Replay, caught

LENGTH, MARGIN, LONGEST = 48, 16, 1024
"""Tokens of a check, tokens beyond a boundary, and from where on only masks and rotary tables are compared."""


def check_scores(
    model: HookedModel,
    *,
    measure: Where = "stream",
    layers: Sequence[int] | None = None,
    length: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Closed forms and real ablation, neuron by neuron: whether the scores of this model are exact.

    Some neurons of every layer and site are switched off, one at a time, on a document of random tokens: for q, k and
    v one or two per head, for mlp the strongest and a median one. Nothing is raised where the two differ.

    Args:
        model: a hooked model.
        measure: as for :func:`detect`.
        layers: which; None takes all.
        length: tokens of the document; None takes one beyond every boundary of the model up to 1,024 (such as that of a
            window of attention), or 48. Above 1,040 only q and k are compared, at a few positions.
        progress: whether to show a bar.

    Returns:
        One row per layer, site and neuron: ``closed_form``, ``ablation``, ``relative`` (their difference as a share),
        ``exact`` (whether that is rounding), ``dtype`` and ``tokens``. A model in half precision is compared on a
        float32 copy of each layer, and in its own dtype for strong neurons only.

    Raises:
        ValueError: for layers that the model lacks, or a length that is out of its context.

    Example:
        >>> checks = mw.check_scores(model, layers=[0])
        >>> checks.exact.all(), checks.relative.max() < 1e-4
        (np.True_, np.True_)
    """
    check_arguments(check_scores, locals())
    require_hooked(model)
    if length is not None and (not isinstance(length, int) or not 2 <= length <= model.cfg.n_ctx):
        raise ValueError(
            f"{length=} must be from 2 tokens to the context of {model.cfg.model_name}, {model.cfg.n_ctx}."
        )
    length = length or check_lengths(model, LONGEST + 1)[-1]
    NeuronSpace.of(model)  # refuses models whose neurons have no fixed place
    chosen, checks = require_layers(model, layers), []
    with tqdm(total=len(chosen), desc="checking", unit="layer", disable=hidden(progress)) as bar:
        for check in _checks(model, measure, None, chosen, length):
            bar.update(chosen.index(check.layer) + 1 - bar.n)
            checks.append(asdict(check))
    return pd.DataFrame(checks)


def require_layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    """Layers in order, each once; all of them for None.

    Raises:
        ValueError: for no layer, one that the model lacks, or one whose neurons are others than the first layer's.
    """
    number, apart = model.cfg.n_layers, layers_apart(model)
    wanted = range(number) if layers is None else layers
    chosen = list(wanted) if isinstance(wanted, Iterable) else []
    if not chosen or any(layer not in range(number) for layer in chosen):
        raise ValueError(f"{layers=}: {model.cfg.model_name} has layers 0 to {number - 1}.")
    chosen = sorted(set(map(int, chosen)))
    if wrong := next((layer for layer in chosen if layer in apart), None):
        alike = [layer for layer in range(number) if layer not in apart]
        raise ValueError(
            f"{model.cfg.model_name}: layer {wrong} {apart[wrong]}; scores and sets have the same neurons in every "
            f"layer. layers={alike} scores those that are like layer 0."
        )
    return chosen


def bound_to(model: HookedModel, measure: Measure, layers: Sequence[int]) -> list[Sequence[LayerMeasure]]:
    """A measure's parts in every layer of the model, with none in layers that are not among these."""
    with settled(model):
        return [measure(model, layer) if layer in layers else () for layer in range(model.cfg.n_layers)]


_verified: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()


def require_exact(
    model: HookedModel, measure: Where, selection: Selection | None, layers: Sequence[int], longest: int
) -> None:
    """Refuse a model whose closed forms differ from ablation; each model, with its hooks, and setting is checked once.

    In every kind of layer among ``layers`` the first and the last are checked, with the screen of ``selection``, as far
    as documents of up to ``longest`` tokens reach.

    Raises:
        ValueError: naming layer, site, neuron, both numbers and what can be done.
    """
    kinds = [[layer for layer in kind if layer in layers] for kind in layer_kinds(model)]
    some = sorted({layer for kind in kinds if kind for layer in (kind[0], kind[-1])})
    for length in check_lengths(model, longest):
        key = (measure, selection is None, tuple(some), length, dtype_of(model), device_of(model))
        if (key, hooks_of(model)) in _verified.setdefault(model, set()):
            continue
        checks = list(_checks(model, measure, selection, some, length))
        if failed := [check for check in checks if not check.exact]:
            wrong = {check.layer for check in failed}
            right = {layer for kind in kinds if not wrong.intersection(kind) for layer in kind} | ({*some} - wrong)
            raise ValueError(_message(model, max(failed, key=lambda check: check.relative), sorted(right)))
        _verified[model].add((key, hooks_of(model)))


def _message(model: HookedModel, worst: Check, right: Sequence[int]) -> str:
    layers = f"layers={list(right)} scores those that are exact; " if right else ""
    return (
        f"{model.cfg.model_name} is not scored exactly: {worst.site} neuron {worst.neuron} of layer {worst.layer} "
        f"scores {worst.closed_form:.4g} in closed form, but switching it off changes {worst.ablation:.4g} "
        f"({worst.relative:.1%} apart; {worst.dtype}, {worst.tokens} tokens). This layer computes something that the "
        f"closed forms do not contain. check_scores(model) gives the table; {layers}another version of "
        "TransformerLens, or loading the model as a HookedTransformer, may read it right; "
        "verify=False scores it all the same."
    )


def check_lengths(model: HookedModel, longest: int) -> list[int]:
    """Of the documents to check with: one below every boundary, and one beyond each that ``longest`` tokens reach."""
    edges = [edge for edge in sorted(set(boundaries(model))) if 1 < edge < model.cfg.n_ctx]
    reached = [edge for edge in edges if edge < longest]
    ends = [*edges[: len(reached) + 1], model.cfg.n_ctx][: len(reached) + 1]
    wanted = [LENGTH, *(edge + MARGIN for edge in reached)]
    return [min(length, end) for length, end in zip(wanted, ends, strict=True)]


def check_document(model: HookedModel, length: int) -> TokenBatch:
    """Ordinary tokens drawn at random, the same at every call."""
    vocabulary, tokenizer = model.cfg.d_vocab, model.tokenizer
    known = vocabulary if tokenizer is None else min(len(tokenizer), vocabulary)
    special = set(special_ids(model).tolist())
    ids = [each for each in range(known) if each not in special] or list(range(vocabulary))
    drawn = torch.randint(len(ids), (1, length), generator=torch.Generator().manual_seed(0))
    return TokenBatch(torch.tensor(ids)[drawn], torch.ones_like(drawn, dtype=torch.bool), (length,), (0,))


def _checks(
    model: HookedModel, where: Where, selection: Selection | None, layers: Sequence[int], length: int
) -> Iterator[Check]:
    """Every check of these layers on one document."""
    measure, dtype, device = FORMULATIONS["exact"](where), dtype_of(model), device_of(model)
    wide = torch.float32 if device.type == "mps" else torch.float64
    with settled(model):
        batch = check_document(model, length).to(device)
        if length > LONGEST + MARGIN:
            yield from _far_checks(model, layers, batch, wide)
            return
        with caught(model, layers) as replays:
            scores = _closed_forms(model, measure, selection, layers, batch)
        for layer in layers:
            replay, by_site = replays[layer], scores[layer]
            if dtype != wide_dtype(dtype):
                yield from layer_checks(replay, by_site, where, length)
                with wide_block(model, layer, torch.float32):
                    by_site = _replayed_forms(replay, measure, batch)
            with wide_block(model, layer, wide):
                yield from layer_checks(replay, by_site, where, length, wide)


def _far_checks(model: HookedModel, layers: Sequence[int], batch: TokenBatch, wide: torch.dtype) -> Iterator[Check]:
    """Queries and keys at a few positions of a long document, with its masks and tables."""
    if wrapped_model(model) is None:  # whose tables and masks are the same for every length
        return
    replays = far_replays(model, layers, batch, check_document(model, PLACES).to(batch.tokens.device))
    for layer, replay in replays.items():
        geometry = Geometry.of(model, layer)
        with wide_block(model, layer, wide_dtype(dtype_of(model))):
            scores = far_scores(replay, geometry, wide_dtype(dtype_of(model)))
        with wide_block(model, layer, wide):
            checks = layer_checks(replay, scores, "stream", PLACES, wide)
        yield from (replace(check, tokens=batch.tokens.shape[1]) for check in checks)


def _closed_forms(
    model: HookedModel, measure: Measure, selection: Selection | None, layers: Sequence[int], batch: TokenBatch
) -> dict[int, Scores]:
    """Scores of these layers in one forward pass, on the very path of a detection."""
    running, (hooks, receipts) = Running(), ([], [])
    parts = bound_to(model, measure, layers)
    for rule in (None, selection) if selection else (None,):
        receive, received = _receiver()
        hooks += score_hooks(parts, running, receive, rule)
        receipts.append(received)
    for _ in stream(model, [batch], hooks, running):
        pass
    return {layer: _merged([received[layer] for received in receipts]) for layer in layers}


def _replayed_forms(replay: Replay, measure: Measure, batch: TokenBatch) -> Scores:
    """Scores of one layer from running its block again, as it is now."""
    model, layer, running = replay.model, replay.layer, Running()
    running.batch = batch
    receive, received = _receiver()
    replay.run(score_hooks(bound_to(model, measure, [layer]), running, receive), torch.float32)
    return _merged([received[layer]])


Received = tuple[SiteScores, SiteMasks | None]


def _receiver() -> tuple[Callable[[int, SiteScores, SiteMasks | None], None], dict[int, list[Received]]]:
    received: dict[int, list[Received]] = {}
    return lambda layer, scores, exact: received.setdefault(layer, []).append((scores, exact)), received


def _merged(runs: Sequence[Sequence[Received]]) -> Scores:
    """Of one document, from runs with a screen and without: where a screen's score is an estimate, the exact one."""
    merged: dict[str, Tensor] = {}
    for scores, exact in (part for run in runs for part in run):
        for site, values in scores.items():
            if exact is None:
                merged.setdefault(site, values[0])
            else:
                merged[site] = torch.where(exact[site][0], values[0], merged.get(site, values[0]))
    return merged
