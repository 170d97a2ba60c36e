"""Which language a model falls back to as languages are switched off one after another."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import or_
from typing import Any

from ..model import HookedModel
from ..neurons import NeuronSet
from ..text import check_arguments
from ..text.choices import require_choice
from .comparing import Generations, generations


def fallback(
    model: HookedModel,
    sets: Mapping[str, NeuronSet],
    prompts: Mapping[str, Sequence[str]],
    *,
    order: Sequence[str] | None = None,
    **options: Any,
) -> Generations:
    """Complete prompts with nothing off, with the first language's neurons off, with the second's too, and so on.

    The interventions are named ``"fr"``, ``"fr + zh"``, …; :meth:`Generations.answered` says in which languages the
    model answers then. What random neurons, as many, do to that is for ``generations`` to say.

    Args:
        model: a hooked model; it is as before afterwards.
        sets: each language's neurons.
        prompts: by language, as for :func:`generations`.
        order: in which the languages are switched off; that of ``sets`` by default.
        options: of :func:`generations`, e.g. ``languages=``, ``identify=``, ``max_new_tokens=``.

    Raises:
        ValueError: for an empty order, a language that has no set or an empty one, or is switched off twice, and as
            :func:`generations`.
    """
    check_arguments(fallback, locals())
    order = list(sets if order is None else order)
    if not order or len(set(order)) < len(order):
        raise ValueError(f"order={order}: name each language to switch off once.")
    for language in order:
        require_choice("order", language, sets)
        if not len(sets[language]):
            raise ValueError(f"The set of {language!r} is empty: switching it off changes nothing.")
    names = accumulate(order, "{} + {}".format)
    unions = accumulate((sets[language] for language in order), or_)
    return generations(model, dict(zip(names, unions, strict=True)), prompts, **options)
