"""Language ratios of several parts of the prompts as one: every prompt was read in one part."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..model import ExactSum, HookedModel, model_record, require_same_model
from ..model.shards import in_order, in_place, without_part
from .decoding import Lens
from .directions import directions


def merged_fields(parts: Mapping[str, Any], model: HookedModel | None) -> dict[str, Any]:
    """The fields of the ratio that these are parts of, by names for messages; see :meth:`LanguageRatio.merge`."""
    ordered = [parts[name] for name in in_order({name: part.settings for name, part in parts.items()})]
    first, every = ordered[0], [part.settings for part in ordered]
    of = {label: [part for part in ordered if label in part.counts] for label in first.settings["corpus"]["passages"]}
    return {
        "counts": {label: in_place(every, label, [part.counts[label] for part in has]) for label, has in of.items()},
        "chance": _chance(parts, ordered[0], model) if first.settings["directions"] else first.chance,
        **{name: getattr(first, name) for name in ("vocabulary", "layers", "names", "languages")},
        "documents": {
            label: tuple(in_place(every, label, [part.documents[label] for part in has])) for label, has in of.items()
        },
        "settings": without_part(first.settings),
    }


def _chance(parts: Mapping[str, Any], first: Any, model: HookedModel | None) -> Tensor:
    """What the random directions of all parts decode to."""
    settings, name = first.settings, next(iter(parts))
    if model is None:
        raise ValueError(f"{name}: its random directions are decoded by {settings['model']}: give the model too.")
    require_same_model(settings, model_record(model), name, stacklevel=4)
    sums = {key: ExactSum.zeros(*total.high.shape) for key, total in first.baseline.sums.items()}
    for part in parts.values():
        for key, total in part.baseline.sums.items():
            sums[key].add(total)
    how = settings["top_k"] or 1, settings["by"], settings["normalize"]
    lens = Lens(model, first.baseline.labels, first.layers, *how)
    return lens.chance(directions(sums, first.layers))
