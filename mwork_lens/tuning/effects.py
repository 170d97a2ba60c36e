"""What tuned neurons change in every language: the effect matrix of deltas."""

from collections.abc import Mapping, Sequence

from ..effects import TUNED, Change, EffectMatrix, losses_under
from ..model import MAX_TOKENS, HookedModel
from ..text import Document
from .delta import NeuronDelta


def tuning_effects(
    model: HookedModel,
    deltas: Mapping[str, NeuronDelta | Sequence[NeuronDelta]],
    corpus: Mapping[str, Sequence[Document]],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> EffectMatrix:
    """Change of every language's loss with each delta applied: below zero is better.

    Args:
        model: the model as it was before tuning; it is so again afterwards, bit for bit.
        deltas: what to apply, by a name of your choice; a list is one row, e.g. one delta a seed, whose mean change
            counts. A row's language is its name where that is a language of the corpus, else the one recorded in the
            set that was tuned.
        corpus: held-out documents by language.
        batch_size: documents at a time; None fills a token budget.
        max_tokens: longer documents are cut there, with a warning.
        progress: whether to show a bar.

    Raises:
        ValueError: for no deltas, empty documents, or a model that does not hold a delta's old values.
    """
    rows = {name: [given] if isinstance(given, NeuronDelta) else list(given) for name, given in deltas.items()}
    if not rows or not all(rows.values()):
        raise ValueError(f"deltas={dict(deltas)}: name at least one delta, and give each row at least one.")
    changes = {name: [_change(model, delta) for delta in draws] for name, draws in rows.items()}
    reading = {"batch_size": batch_size, "max_tokens": max_tokens, "progress": progress}
    return losses_under(model, changes, corpus, mode=TUNED, **reading)


def _change(model: HookedModel, delta: NeuronDelta) -> Change:
    space, neurons = delta.space, len(delta)
    origin = {"neurons": neurons, "fraction": neurons / space.total, "model": space.model}
    return Change(delta.applied(model), {**origin, "origin": dict(delta.origin.get("set", {}))})
