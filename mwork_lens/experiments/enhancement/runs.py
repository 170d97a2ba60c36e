"""One run: tune, measure, put the weights back; kept on disk, so that a killed experiment goes on."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from ...effects import passage_nats
from ...model import HookedModel
from ...neurons import NeuronSet
from ...store import Result, storable
from ...text import Document
from ...tuning import Tuned, kept_weights, tune

Encoded = Mapping[str, Mapping[str, Sequence[Int[Tensor, " _"]]]]
"""Token ids of passages by domain and language."""


@storable
@dataclass(frozen=True)
class Run:
    """What is tuned, on how much, at which rate and with which seed."""

    language: str
    arm: str
    documents: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.language}_{self.arm}_{self.documents}_{self.rate:g}_seed{self.seed}"


@dataclass(frozen=True)
class Outcome(Result, kind="enhancement_run"):
    """The loss of every passage after a run."""

    run: Run | None
    """None for the original model."""
    nats: Mapping[str, Mapping[str, Float[Tensor, " _"]]]
    """By domain and language: negative log-likelihood of each passage."""
    facts: Mapping[str, Any]
    """Neurons, trained and changed weights, steps, first and last loss, seconds."""


def measure(model: HookedModel, encoded: Encoded) -> dict[str, dict[str, Tensor]]:
    """The loss of every passage of the model as it is now."""
    return {
        domain: {read: passage_nats(model, passages)[0] for read, passages in by_read.items()}
        for domain, by_read in encoded.items()
    }


def carry_out(
    model: HookedModel,
    run: Run,
    neurons: NeuronSet | Literal["all"],
    texts: Sequence[Document],
    encoded: Encoded,
    **recipe: Any,
) -> Outcome:
    """Tune, measure, and put every weight back.

    Raises:
        Diverged: if the loss is not finite any more.
    """
    start = time.perf_counter()
    with tuned(model, neurons, texts, learning_rate=run.rate, seed=run.seed, **recipe) as result:
        after_tuning = time.perf_counter()
        nats = measure(model, encoded)
    facts = {
        "neurons": len(neurons) if isinstance(neurons, NeuronSet) else None,
        "origin": dict(neurons.origin) if isinstance(neurons, NeuronSet) else {},
        "trained": result.settings["trained_entries"],
        "changed": None if result.delta is None else result.changed,
        "steps": len(result.steps),
        "tokens": sum(step.tokens for step in result.steps),
        "losses": [step.loss for step in result.steps],
        "tuning_seconds": after_tuning - start,
        "measuring_seconds": time.perf_counter() - after_tuning,
    }
    return Outcome(run, nats, facts)


@contextlib.contextmanager
def tuned(
    model: HookedModel, neurons: NeuronSet | Literal["all"], texts: Sequence[Document], **options: Any
) -> Iterator[Tuned]:
    """The tuned model within the block; every weight is bit-identical to before after it."""
    with contextlib.nullcontext() if isinstance(neurons, NeuronSet) else kept_weights(model):
        with warnings.catch_warnings():
            # the share of changed weights is among the facts
            warnings.filterwarnings("ignore", message="Nearly nothing changed")
            result = tune(model, neurons, texts, progress=False, **options)
        try:
            yield result
        finally:
            if result.delta is not None:
                result.delta.revert(model)
