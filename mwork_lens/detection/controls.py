"""Sets to compare a language's neurons with, of the same size in every layer and site."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..neurons import NeuronSet, seen_by_both
from ..text import check_arguments
from ..text.choices import listed
from .detection import Detection, languages_active, require_language

NEAREST = 4
"""Free neurons among which a matched one is drawn."""


def random_control(neurons: NeuronSet, *, seed: int = 0) -> NeuronSet:
    """Uniformly random neurons outside ``neurons``, as many in each layer and site.

    A weak control: most neurons matter little. Compare with :func:`matched_control` too.

    Raises:
        ValueError: if a layer and site has too few other neurons.
    """
    check_arguments(random_control, locals())
    for site, layer, row in _layers(neurons):
        _require_enough(~row, int(row.sum()), layer, site)
    return _draw_from(~neurons, neurons, seed, "random")


def matched_control(
    neurons: NeuronSet, detection: Detection, *, language: str | None = None, seed: int = 0
) -> NeuronSet:
    """Other neurons that matter as much: as many in each layer and site, with the same mean scores.

    Each neuron of the set, in random order, takes one of the nearest free neurons by log mean score. None is taken
    from the set itself, nor from any language's specific neurons, at the quorum that the set was made with. Where a
    layer and site has too few others, specific neurons fill the gap, with a warning. The set's origin records how many
    (``from_specific``) and how well the scores match (``log_score_gap``: mean of log control score minus mean of log
    score in the set).

    Args:
        neurons: the set to match.
        detection: where the mean scores come from.
        language: whose mean scores; by default the language that the set was made for.
        seed: of the order and of the choice among near ones.

    Raises:
        ValueError: if the set names no language and none is given, or too few neurons are left.
    """
    check_arguments(matched_control, locals())
    language = _language(neurons, detection, language)
    specific, generator = _specific_to_any(neurons, detection), np.random.default_rng(seed)
    masks, gaps = {site: torch.zeros_like(mask) for site, mask in neurons.masks.items()}, []
    for site, layer, row in _layers(neurons):
        free = ~row & ~specific.masks[site][layer]
        free = free if free.sum() >= row.sum() else ~row
        _require_enough(free, int(row.sum()), layer, site)
        _require_scored(detection, row, layer, site)
        logs = np.log(detection.mean_scores[language][site][layer].double().numpy() + 1e-300)
        nearest = _match(row, free, logs, generator)
        masks[site][layer, nearest] = True
        gaps += [*logs[nearest], *-logs[row.numpy()]]
    from_specific = len(NeuronSet(neurons.space, masks) & specific)
    if from_specific:
        warnings.warn(
            f"{from_specific} of {len(neurons)} matched neurons are specific to a language: "
            "some layers have too few others.",
            stacklevel=2,
        )
    origin = {**_origin(neurons, seed, "matched"), "language": language, "from_specific": from_specific}
    origin["seen"] = seen_by_both(neurons.origin, detection)
    return NeuronSet(neurons.space, masks, {**origin, "log_score_gap": float(np.sum(gaps)) / max(len(neurons), 1)})


def shared_control(neurons: NeuronSet, detection: Detection, *, seed: int = 0) -> NeuronSet:
    """Neurons active in every language, drawn at random, as many in each layer and site (or all, with a warning).

    A neuron is active at the quorum that the set was made with (0.9 where it does not say).
    """
    check_arguments(shared_control, locals())
    neurons.space.require_compatible(detection.space)
    quorum = neurons.origin.quorum or 0.9
    everywhere = {site: n == len(detection.languages) for site, n in languages_active(detection, quorum).items()}
    pool = NeuronSet(detection.space, everywhere, {"seen": detection.seen})
    return _draw_from(pool - neurons, neurons, seed, "shared")


def top_control(neurons: NeuronSet, detection: Detection, *, language: str = "en", seed: int = 0) -> NeuronSet:
    """Top neurons of English (or of another language), as many in each layer and site as ``neurons`` has.

    Drawn from the neurons outside the set with the highest mean scores in ``language``, twice as many as are needed,
    so that seeds differ.
    """
    check_arguments(top_control, locals())
    scores = detection.mean_scores[_language(neurons, detection, language)]
    top = {site: torch.zeros_like(mask) for site, mask in neurons.masks.items()}
    for site, layer, row in _layers(neurons):
        _require_scored(detection, row, layer, site)
        order = scores[site][layer].masked_fill(row, -torch.inf).argsort(descending=True)
        top[site][layer, order[: 2 * int(row.sum())]] = True
    return _draw_from(
        NeuronSet(neurons.space, top, {"seen": detection.seen}) - neurons, neurons, seed, f"top {language}"
    )


def other_control(neurons: NeuronSet, other: NeuronSet, *, seed: int = 0) -> NeuronSet:
    """Another language's neurons cut at random to as many in each layer and site as ``neurons`` has.

    Where ``other`` has fewer, all of them are taken, with a warning; :func:`cut_to_equal` cuts both sides instead.
    """
    check_arguments(other_control, locals())
    return _draw_from(other - neurons, neurons, seed, f"specific {other.origin.language or 'other'}")


def fullest_of(others: Sequence[NeuronSet], neurons: NeuronSet) -> NeuronSet:
    """The one that has neurons for most of the set's layers and sites."""
    sizes = _sizes(neurons)

    def places_filled(other: NeuronSet) -> int:
        return sum(int(size.minimum(sizes[site]).sum()) for site, size in _sizes(other - neurons).items())

    return max(others, key=places_filled)


def cut_to_equal(sets: Mapping[str, NeuronSet], *, seed: int = 0) -> dict[str, NeuronSet]:
    """Every set cut at random to the same number in each layer and site: the smallest among them.

    Raises:
        ValueError: for sets of different models, or none.
    """
    check_arguments(cut_to_equal, locals())
    if not sets:
        raise ValueError("There is no set to cut.")
    first, *_ = sets.values()
    for neurons in sets.values():
        first.space.require_compatible(neurons.space)
    least = {site: torch.stack([each.masks[site].sum(-1) for each in sets.values()]).amin(0) for site in first.masks}
    generator, how = np.random.default_rng(seed), {"cut_to_equal": list(sets), "seed": seed}
    masks = {name: _drawn(neurons, least, generator) for name, neurons in sets.items()}
    return {name: NeuronSet(first.space, masks[name], sets[name].origin | how) for name in sets}


def all_controls(neurons: NeuronSet, detection: Detection, *, seed: int = 0) -> dict[str, NeuronSet]:
    """Every control of a language's set: ``random``, ``matched``, ``shared``, ``top en`` and ``specific LANGUAGE``.

    ``top en`` is left out where English was not detected or is the set's own language. The other language is the one
    whose specific set fills most of the places.
    """
    check_arguments(all_controls, locals())
    language = _language(neurons, detection, None)
    controls = {
        "random": random_control(neurons, seed=seed),
        "matched": matched_control(neurons, detection, seed=seed),
        "shared": shared_control(neurons, detection, seed=seed),
    }
    if "en" in detection.documents and language != "en":
        controls["top en"] = top_control(neurons, detection, seed=seed)
    others = [_specific(neurons, detection, other) for other in detection.languages if other not in (language, "en")]
    if others:
        fullest = fullest_of(others, neurons)
        controls[f"specific {fullest.origin.language}"] = other_control(neurons, fullest, seed=seed)
    return controls


def with_controls(
    sets: Mapping[str, NeuronSet],
    detection: Detection,
    *,
    languages: Iterable[str] | None = None,
    seeds: Iterable[int] = (0,),
) -> dict[str, NeuronSet | list[NeuronSet]]:
    """Languages' sets and, for some of them, every control, drawn with each seed: rows of an effect matrix.

    The controls of ``fr`` are called ``random for fr``, ``matched for fr``, ``shared for fr``, ``top en for fr`` and
    ``other for fr`` (the specific set of another language).

    Args:
        sets: each language's neurons, by language.
        detection: where they come from.
        languages: whose controls; of all sets that have neurons if None.
        seeds: of the controls, one draw each.

    Raises:
        ValueError: for a language without neurons, or no seed.
    """
    check_arguments(with_controls, locals())
    controlled = [name for name in sets if len(sets[name])] if languages is None else list(languages)
    empty = [language for language in controlled if not (language in sets and len(sets[language]))]
    if empty or not (seeds := list(seeds)):
        owned = listed([name for name in sets if len(sets[name])], *empty[:1])
        nothing = f"There are no neurons of {empty[0]!r} to compare with; there are {owned}." if empty else ""
        raise ValueError(nothing or "seeds is empty.")
    rows: dict[str, list[NeuronSet]] = {}
    for language in controlled:
        for seed in seeds:
            for kind, control in all_controls(sets[language], detection, seed=seed).items():
                name = "other" if kind.startswith("specific") else kind
                rows.setdefault(f"{name} for {language}", []).append(control)
    return {**sets, **rows}


def cut_to_size(neurons: NeuronSet, size: int, *, seed: int = 0) -> NeuronSet:
    """``size`` neurons of the set, drawn at random wherever they are.

    Raises:
        ValueError: if it has fewer.
    """
    check_arguments(cut_to_size, locals())
    if not 0 <= size <= len(neurons):
        raise ValueError(f"{size} neurons cannot be drawn from {neurons}.")
    every = torch.cat([mask.flatten() for mask in neurons.masks.values()])
    drawn = _random_part(every, size, np.random.default_rng(seed))
    parts = drawn.split([mask.numel() for mask in neurons.masks.values()])
    masks = {site: part.view_as(mask) for (site, mask), part in zip(neurons.masks.items(), parts, strict=True)}
    return NeuronSet(neurons.space, masks, neurons.origin | {"cut_to": size, "seed": seed})


def _layers(neurons: NeuronSet) -> Iterator[tuple[str, int, Bool[Tensor, " neuron"]]]:
    for site, mask in neurons.masks.items():
        for layer, row in enumerate(mask):
            yield site, layer, row


def _language(neurons: NeuronSet, detection: Detection, language: str | None) -> str:
    language = language or neurons.origin.language
    if language is None:
        raise ValueError("The set does not say whose neurons it holds: give language=.")
    require_language(detection, language)
    neurons.space.require_compatible(detection.space)
    return language


def _specific(neurons: NeuronSet, detection: Detection, language: str) -> NeuronSet:
    """A language's specific neurons at the quorums that a set was made with."""
    origin = neurons.origin
    return detection.specific(language, quorum=origin.quorum or 0.9, against_quorum=origin.against_quorum)


def _specific_to_any(neurons: NeuronSet, detection: Detection) -> NeuronSet:
    """All languages' specific neurons at these quorums: active in one, and in no other."""
    if len(detection.languages) < 2:
        return NeuronSet.empty(neurons.space)
    quorum, against = neurons.origin.quorum or 0.9, neurons.origin.against_quorum
    active, theirs = (languages_active(detection, each) for each in (quorum, quorum if against is None else against))
    return NeuronSet(neurons.space, {site: (number >= 1) & (theirs[site] <= 1) for site, number in active.items()})


def _origin(neurons: NeuronSet, seed: int, kind: str) -> dict[str, Any]:
    origin = neurons.origin
    return {"language": origin.language, "kind": kind, "seed": seed, "of": dict(origin), "seen": origin.seen}


def _draw_from(pool: NeuronSet, neurons: NeuronSet, seed: int, kind: str) -> NeuronSet:
    """As many of ``pool`` in each layer and site as ``neurons`` has, or all that there are, with a warning."""
    masks = _drawn(pool, _sizes(neurons), np.random.default_rng(seed))
    origin = {**_origin(neurons, seed, kind), "seen": seen_by_both(neurons.origin, pool.origin)}
    control = NeuronSet(neurons.space, masks, origin)
    if len(control) < len(neurons):
        warnings.warn(
            f"The control {kind!r} lacks {len(neurons) - len(control)} of {len(neurons)} neurons: "
            "some layers and sites have too few.",
            stacklevel=3,
        )
    return control


def _sizes(neurons: NeuronSet) -> dict[str, Int[Tensor, " layer"]]:
    return {site: mask.sum(-1) for site, mask in neurons.masks.items()}


def _drawn(
    pool: NeuronSet, sizes: Mapping[str, Int[Tensor, " layer"]], generator: np.random.Generator
) -> dict[str, Bool[Tensor, "layer _"]]:
    """So many of each layer and site, or all that there are."""
    masks = {site: torch.zeros_like(mask) for site, mask in pool.masks.items()}
    for site, layer, row in _layers(pool):
        masks[site][layer] = _random_part(row, int(sizes[site][layer]), generator)
    return masks


def _random_part(mask: Bool[Tensor, " _"], size: int, generator: np.random.Generator) -> Bool[Tensor, " _"]:
    members, part = mask.nonzero().flatten().numpy(), torch.zeros_like(mask)
    part[generator.choice(members, size=min(size, len(members)), replace=False)] = True
    return part


def _require_enough(free: Tensor, needed: int, layer: int, site: str) -> None:
    if (number := int(free.sum())) < needed:
        raise ValueError(f"Layer {layer} has {number} other {site} neurons, too few for a control of {needed}.")


def _require_scored(detection: Detection, row: Tensor, layer: int, site: str) -> None:
    if row.any() and layer not in detection.layers:
        raise ValueError(f"The set has {site} neurons in layer {layer}, which the detection has not scored.")


def _match(members: Tensor, candidates: Tensor, logs: np.ndarray, generator: np.random.Generator) -> list[int]:
    numbers, matches = candidates.nonzero().flatten().numpy(), []
    free = list(numbers[np.argsort(logs[numbers], kind="stable")])
    for member in generator.permutation(members.nonzero().flatten().numpy()):
        near = np.argsort(np.abs(logs[free] - logs[member]), kind="stable")[:NEAREST]
        matches.append(int(free.pop(int(generator.choice(near)))))
    return matches
