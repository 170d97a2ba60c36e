"""Sets to compare a language's neurons with, of the same size in every layer and site."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .detection import Detection
from .neurons import NeuronSet

NEAREST = 4


def random_control(neurons: NeuronSet, *, seed: int = 0) -> NeuronSet:
    """Uniformly random neurons outside ``neurons``, as many in each layer and site.

    A weak control: most neurons matter little. Compare with :func:`matched_control` too.

    Raises:
        ValueError: if a layer and site has too few other neurons.
    """
    generator = np.random.default_rng(seed)
    masks = {}
    for site, mask in neurons.masks.items():
        chosen = torch.zeros_like(mask)
        for layer, row in enumerate(mask):
            outside = _candidates(~row, int(row.sum()), layer, site)
            chosen[layer, generator.choice(outside, size=int(row.sum()), replace=False)] = True
        masks[site] = chosen
    own = {"language": neurons.origin["language"]} if "language" in neurons.origin else {}
    return NeuronSet(neurons.space, masks, {**own, "kind": "random", "seed": seed, "of": dict(neurons.origin)})


def matched_control(
    neurons: NeuronSet, detection: Detection, *, language: str | None = None, seed: int = 0
) -> NeuronSet:
    """Other neurons that matter as much: as many in each layer and site, with the same mean scores.

    Each neuron of the set, in random order, takes one of the nearest free neurons by log mean score. None is taken
    from the set itself, nor, where the layer has enough others, from any language's specific neurons.

    Args:
        neurons: the set to match.
        detection: where the mean scores come from.
        language: whose mean scores; by default the language that the set was made for.
        seed: of the order and of the choice among near ones.

    Raises:
        ValueError: if the set names no language and none is given, or too few neurons are left.
    """
    language = language or neurons.origin.get("language")
    if language is None:
        raise ValueError("The set does not say whose neurons it holds: give language=.")
    if language not in detection.documents:
        raise ValueError(f"Nothing was detected for {language!r}; there are {', '.join(detection.languages)}.")
    neurons.space.require_compatible(detection.space)
    avoided = [detection.specific(other) for other in detection.languages] if len(detection.languages) > 1 else []
    generator = np.random.default_rng(seed)
    masks = {}
    for site, mask in neurons.masks.items():
        specific = torch.stack([torch.zeros_like(mask), *(s.masks[site] for s in avoided)]).any(0)
        chosen = torch.zeros_like(mask)
        for layer, row in enumerate(mask):
            free = ~row & ~specific[layer]
            free = free if free.sum() >= row.sum() else ~row
            candidates = _candidates(free, int(row.sum()), layer, site)
            scores = detection.mean_scores[language][site][layer]
            chosen[layer, _match(row, candidates, scores, generator)] = True
        masks[site] = chosen
    origin = {"language": language, "kind": "matched", "seed": seed, "of": dict(neurons.origin)}
    return NeuronSet(neurons.space, masks, origin)


def _candidates(free: Bool[Tensor, " neuron"], needed: int, layer: int, site: str) -> np.ndarray:
    candidates = free.nonzero().flatten().numpy()
    if len(candidates) < needed:
        raise ValueError(
            f"Layer {layer} has {len(candidates)} other {site} neurons, too few for a control of {needed}."
        )
    return candidates


def _match(
    members: Bool[Tensor, " neuron"],
    candidates: np.ndarray,
    scores: Float[Tensor, " neuron"],
    generator: np.random.Generator,
) -> list[int]:
    logs = np.log(scores.double().numpy() + 1e-300)
    free = list(candidates[np.argsort(logs[candidates], kind="stable")])
    taken = []
    for member in generator.permutation(members.nonzero().flatten().numpy()):
        distance = np.abs(logs[free] - logs[member])
        near = np.argsort(distance, kind="stable")[:NEAREST]
        taken.append(int(free.pop(int(generator.choice(near)))))
    return taken
