"""Which neurons an experiment switches off or tunes: sets of a language and their controls, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..detection import Detection, matched_control, other_control, random_control
from ..neurons import NeuronSet
from .settings import ENGLISH


@dataclass(frozen=True)
class SetSource:
    """What a language's sets are built from."""

    detection: Detection
    language: str
    quorum: float
    """Share of the language's documents on which a neuron must be active."""
    seed: int = 0
    """Of the random ones."""

    def active(self) -> NeuronSet:
        """Active neurons, of other languages too."""
        return self.detection.active(self.language, quorum=self.quorum)

    def specific(self, against: str = "others") -> NeuronSet:
        """Neurons that are active in no other language, or not in the language ``against``."""
        return self.detection.specific(self.language, against=against, quorum=self.quorum)

    def random(self, neurons: NeuronSet) -> NeuronSet:
        """As many random ones."""
        return random_control(neurons, seed=self.seed)

    def matched(self) -> NeuronSet:
        """As many as the specific ones, with equal scores."""
        return matched_control(self.specific(), self.detection, seed=self.seed)

    def other(self) -> NeuronSet:
        """Of the other languages except English, the specific set that is nearest in size, cut to this one's.

        Raises:
            ValueError: if no other language has any.
        """
        own = self.specific()
        others = [name for name in self.detection.languages if name not in (self.language, ENGLISH)]
        sets = [self.detection.specific(name, quorum=self.quorum) for name in others]
        if not any(map(len, sets)):
            raise ValueError(
                f"No language besides {self.language!r} and English has neurons of its own: leave out the arm."
            )
        nearest = min(filter(len, sets), key=lambda neurons: abs(len(neurons) - len(own)))
        return other_control(own, nearest, seed=self.seed)


SET_BUILDERS: Mapping[str, Callable[[SetSource], NeuronSet]] = {
    "active": SetSource.active,
    "specific": SetSource.specific,
    "active but not English's": lambda source: source.specific(against=ENGLISH),
    "random": lambda source: source.random(source.specific()),
    "random as active": lambda source: source.random(source.active()),
    "matched random": SetSource.matched,
    "matched": SetSource.matched,
    "english-text": SetSource.specific,
    "other-neurons": SetSource.other,
}
"""Every way to build a set of a language."""
