"""Whose neurons each arm tunes, and in which language it reads."""

from typing import Literal

from ...detection import Detection, matched_control, other_control, random_control
from ...neurons import NeuronSet
from ..settings import ENGLISH, EnhancementConfig


def neurons_of(
    arm: str, language: str, detection: Detection, design: EnhancementConfig, seed: int
) -> NeuronSet | Literal["all"]:
    """What an arm tunes.

    Raises:
        ValueError: if the language has no neurons of its own, or no other language has any for ``other-neurons``.
    """
    if arm == "all":
        return "all"
    own = detection.specific(language, quorum=design.quorum)
    if not len(own):
        raise ValueError(f"{language!r} has no specific neurons at top={design.top}, quorum={design.quorum}.")
    if arm == "random":
        return random_control(own, seed=seed)
    if arm == "matched":
        return matched_control(own, detection, seed=seed)
    if arm == "other-neurons":
        return _others(own, language, detection, design, seed)
    return own


def text_of(arm: str, language: str) -> str:
    """The language that an arm reads."""
    return ENGLISH if arm == "english-text" else language


def _others(own: NeuronSet, language: str, detection: Detection, design: EnhancementConfig, seed: int) -> NeuronSet:
    """Of the other languages except English, the set that is nearest in size."""
    others = [other for other in detection.languages if other not in (language, ENGLISH)]
    sets = [detection.specific(other, quorum=design.quorum) for other in others]
    sets = [neurons for neurons in sets if len(neurons)]
    if not sets:
        raise ValueError(f"No language besides {language!r} and English has neurons of its own: leave out the arm.")
    nearest = min(sets, key=lambda neurons: abs(len(neurons) - len(own)))
    return other_control(own, nearest, seed=seed)
