"""Which neurons an experiment switches off or tunes: sets of a language and their controls, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..detection import Detection, matched_control, other_control, random_control
from ..neurons import NeuronSet
from ..settings import ENGLISH


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


@dataclass(frozen=True)
class SetSource:
    """What a language's sets are built from."""

    detection: Detection
    language: str
    quorum: float
    """Share of the language's documents on which a neuron must be active."""
    seed: int = 0
    """Of the random ones."""

    @property
    def active(self) -> NeuronSet:
        """Active neurons, of other languages too."""
        return self.detection.active(self.language, quorum=self.quorum)

    @property
    def specific(self) -> NeuronSet:
        """Neurons that are active in no other language."""
        return self.detection.specific(self.language, quorum=self.quorum)

    @property
    def not_english(self) -> NeuronSet:
        """Active neurons that are not English's too."""
        return self.detection.specific(self.language, against=ENGLISH, quorum=self.quorum)

    @property
    def matched(self) -> NeuronSet:
        """As many as the specific ones, with equal scores."""
        return matched_control(self.specific, self.detection, seed=self.seed)

    @property
    def other(self) -> NeuronSet:
        """Of the other languages except English, the specific set that is nearest in size, cut to this one's."""
        own = self.specific
        sets = [
            s for name, s in specific_sets(self.detection, self.quorum).items() if name not in (self.language, ENGLISH)
        ]
        if not sets:
            raise ValueError(
                f"No language besides {self.language!r} and English has neurons of its own: leave out the arm."
            )
        nearest = min(sets, key=lambda neurons: abs(len(neurons) - len(own)))
        return other_control(own, nearest, seed=self.seed)


SET_BUILDERS: Mapping[str, Callable[[SetSource], NeuronSet]] = {
    "active": lambda source: source.active,
    "specific": lambda source: source.specific,
    "active but not English's": lambda source: source.not_english,
    "random": lambda source: random_control(source.specific, seed=source.seed),
    "random as active": lambda source: random_control(source.active, seed=source.seed),
    "matched random": lambda source: source.matched,
    "matched": lambda source: source.matched,
    "english-text": lambda source: source.specific,
    "other-neurons": lambda source: source.other,
}
"""Every way to build a set of a language."""
