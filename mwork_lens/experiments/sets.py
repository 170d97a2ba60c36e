"""Which neurons an experiment switches off or tunes: sets of a language and their controls, by name."""

import torch

from ..detection import Detection, matched_control, other_control, random_control
from ..detection.controls import cut_to_equal, fullest_of
from ..neurons import NeuronSet
from ..settings import ENGLISH, FEWER_ACTIVE, NOT_ENGLISH, RANDOM_AS_NOT_ENGLISH, TASK_ARMS, TUNED_ARMS
from ..text.choices import require_choice


def specific_sets(detection: Detection, quorum: float, against_quorum: float | None = None) -> dict[str, NeuronSet]:
    """Each language's specific neurons; languages without any are left out."""
    options = {"quorum": quorum, "against_quorum": against_quorum}
    sets = {language: detection.specific(language, **options) for language in detection.languages}
    return {language: neurons for language, neurons in sets.items() if len(neurons)}


def most_specific(detection: Detection, neurons: NeuronSet, language: str, number: int) -> NeuronSet:
    """Of a language's neurons, those whose mean score there exceeds that of every other language by the largest factor.

    Of ``v`` and ``mlp`` where the set has any there, since only these write to the residual stream.
    """
    writing = neurons.restrict(sites=[site for site in neurons.masks if site in ("v", "mlp")])
    candidates = writing if len(writing) else neurons
    factors = []
    for site, mask in candidates.masks.items():
        scores = {name: by_site[site] for name, by_site in detection.mean_scores.items()}
        others = torch.stack([values for name, values in scores.items() if name != language]).amax(0)
        factor = scores[language] / others.clamp_min(1e-30)
        factors += [(float(factor[layer, i]), (layer, site, i)) for layer, i in mask.nonzero().tolist()]
    return NeuronSet.from_list(neurons.space, [place for _, place in sorted(factors, reverse=True)[:number]])


def arm_set(arm: str, detection: Detection, language: str, quorum: float, seed: int = 0) -> NeuronSet:
    """What an arm switches off or tunes: a language's active or (by default) specific neurons, or a control for them.

    ``seed`` is that of random ones. Raises a ValueError where no other language has neurons of its own to take.
    """
    require_choice("arm", arm, dict.fromkeys((*TASK_ARMS, *TUNED_ARMS)))
    if arm in ("active", "random as active"):
        neurons = detection.active(language, quorum=quorum)
    else:
        against = ENGLISH if arm in (NOT_ENGLISH, RANDOM_AS_NOT_ENGLISH, FEWER_ACTIVE) else "others"
        neurons = detection.specific(language, against=against, quorum=quorum)
    if arm.startswith("random"):
        return random_control(neurons, seed=seed)
    if arm in ("matched", "matched random"):
        return matched_control(neurons, detection, seed=seed)
    if arm == FEWER_ACTIVE:
        active = detection.active(language, quorum=quorum)
        return cut_to_equal({"active": active, "as few": neurons}, seed=seed)["active"]
    if arm in ("active", NOT_ENGLISH, "specific", "english-text"):
        return neurons
    sets = [other for name, other in specific_sets(detection, quorum).items() if name not in (language, ENGLISH)]
    if not sets:
        raise ValueError(f"No language besides {language!r} and English has neurons of its own: leave out the arm.")
    other = other_control(neurons, fullest_of(sets, neurons), seed=seed)
    return cut_to_equal({"own": neurons, "other": other}, seed=seed)["own"] if arm == "own-as-few" else other
