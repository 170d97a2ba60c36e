"""Which neurons are off in an experiment: sets and their controls, in parts of the model, and who is asked then."""

from collections.abc import Sequence

from ..detection import Detection, matched_control, random_control
from ..neurons import NeuronSet, Stages
from ..tasks import ENGLISH, ORIGINAL, Condition
from .settings import ALL_LAYERS


def arm_sets(
    detection: Detection, language: str, arms: Sequence[str], *, quorum: float, seed: int = 0
) -> dict[str, NeuronSet]:
    """The neurons of each arm for one language.

    Args:
        detection: where they come from.
        language: whose.
        arms: of :data:`ARMS` and :data:`OVERLAP_ARMS`.
        quorum: share of the language's documents on which a neuron must be active.
        seed: of the random ones.

    Raises:
        ValueError: for an arm that does not exist, or a language that nothing was detected for.
    """
    known = {
        "active": lambda: detection.active(language, quorum=quorum),
        "specific": lambda: detection.specific(language, quorum=quorum),
        "active but not English's": lambda: detection.specific(language, against=ENGLISH, quorum=quorum),
        "random": lambda: random_control(detection.specific(language, quorum=quorum), seed=seed),
        "random as active": lambda: random_control(detection.active(language, quorum=quorum), seed=seed),
        "matched random": lambda: matched_control(detection.specific(language, quorum=quorum), detection, seed=seed),
    }
    unknown = [arm for arm in arms if arm not in known]
    if unknown or not arms:
        raise ValueError(f"There is no arm {unknown[0] if unknown else ''!r}; there are {', '.join(known)}.")
    return {arm: known[arm]() for arm in arms}


def conditions(
    detection: Detection,
    stages: Stages,
    *,
    parts: Sequence[str],
    arms: Sequence[str],
    off: Sequence[str],
    asked: Sequence[str],
    quorum: float,
    seed: int = 0,
) -> tuple[list[Condition], frozenset[tuple[str, str, str]]]:
    """The original model, then every arm in every part for every language whose neurons are switched off.

    A language is asked with its own neurons off, English with each language's.

    Returns:
        The conditions, and those (arm, part, language) whose sets hold no neurons, which are not run.
    """
    found, empty = [Condition(ORIGINAL, "", None, None, tuple(asked))], set()
    for language in off:
        reads = tuple(read for read in (language, ENGLISH) if read in asked)
        for arm, neurons in arm_sets(detection, language, arms, quorum=quorum, seed=seed).items():
            for part in parts:
                chosen = neurons if part == ALL_LAYERS else stages.select(neurons, part)
                if len(chosen):
                    found.append(Condition(arm, part, language, chosen, reads))
                else:
                    empty.add((arm, part, language))
    order = {(arm, part): place for place, (arm, part) in enumerate((a, p) for a in arms for p in parts)}
    rest = sorted(found[1:], key=lambda condition: order[condition.arm, condition.part])
    return [found[0], *rest], frozenset(empty)
