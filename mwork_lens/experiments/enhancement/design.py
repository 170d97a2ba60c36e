"""What the experiment compares, and which documents each of its parts may see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ...text import Corpus

ARMS: Mapping[str, str] = MappingProxyType(
    {
        "random": "as many uniformly random neurons",
        "matched": "as many neurons with equal scores",
        "specific": "the language's own neurons",
        "all": "all parameters",
        "english-text": "the language's own neurons, tuned on the same documents in English",
        "other-neurons": "another language's neurons, tuned on this language's documents",
    }
)
"""What is tuned, beside the original model."""

HIGH_RESOURCE = ("de", "fr", "zh", "es", "ru")
LOW_RESOURCE = ("vi", "th", "ar", "sw")
ENGLISH = "en"


@dataclass(frozen=True)
class Design:
    """What is compared; by default the paper's recipe (section 5.1), with the controls that it lacks."""

    languages: Sequence[str]
    """Those to improve, one after the other."""
    documents: Sequence[int] = (400,)
    """Passages to tune on; smaller numbers are parts of larger ones, and every arm sees the same."""
    arms: Sequence[str] = tuple(ARMS)
    """What is tuned: keys of :data:`ARMS`."""
    seeds: Sequence[int] = (0, 1)
    """Of the choice and order of the tuning passages, and of the draw of controls."""
    paper_rate: float | None = 2e-6
    """The learning rate at which every arm is tuned; None leaves that out."""
    rates: Sequence[float] = (1e-5, 1e-4, 1e-3)
    """Every arm is tuned at its own rate too: that of these with the lowest loss on the development documents."""
    batch_size: int = 32
    """Passages a step."""
    micro_batch_size: int | None = None
    """Passages at a time; None takes as many as 1024 tokens hold."""
    epochs: int = 1
    """Passes over the tuning passages."""
    max_tokens: int = 512
    """Longer passages are cut there."""
    detection: int = 40
    """Passages a language to find neurons on."""
    development: int = 20
    """Passages a language to choose rates on."""
    evaluation: int = 40
    """Passages a language to measure the result on."""
    top: float = 0.2
    """Active: the top fraction of each layer and site."""
    quorum: float = 0.9
    """Share of detection documents on which a neuron must be active."""
    seed: int = 0
    """Of the division of documents."""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise ValueError(f"arms={list(self.arms)}: they must be among {', '.join(ARMS)}.")
        for name in ("languages", "documents", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: give at least one, and none twice.")
        rates = [rate for rate in (*self.rates, self.paper_rate) if rate is not None]
        if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"rates={list(self.rates)}, paper_rate={self.paper_rate}: rates must be above 0.")
        counts = {name: getattr(self, name) for name in ("detection", "development", "evaluation")}
        for name, value in {**counts, "documents": min(self.documents)}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    def arms_of(self, language: str) -> list[str]:
        """The arms that make sense for a language: English is its own English text."""
        return [arm for arm in self.arms if not (arm == "english-text" and language == ENGLISH)]

    def divide(self, corpus: Corpus) -> dict[str, Corpus]:
        """Disjoint parts of the corpus by whole documents: detection, development, evaluation, tuning.

        Raises:
            ValueError: for a language that the corpus lacks, or too few documents.
        """
        needed = [*self.languages, *([ENGLISH] if "english-text" in self.arms else [])]
        missing = [language for language in needed if language not in corpus]
        if missing:
            raise ValueError(f"The corpus has no {missing[0]!r}; it has {', '.join(corpus)}.")
        sizes = {name: getattr(self, name) for name in ("detection", "development", "evaluation")}
        return corpus.divide({**sizes, "tuning": max(self.documents)}, seed=self.seed)
