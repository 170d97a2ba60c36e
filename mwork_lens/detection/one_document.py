"""Every neuron's score for one document."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..measures import Measure, SiteMasks, SiteScores, Where, score_hooks
from ..measures.plnd.queries_keys import require_told
from ..model.architecture import HookedModel
from ..model.forward import MAX_TOKENS, Running, batches, encode, stream
from ..neurons import NeuronSpace
from ..text import Document, check_arguments, warn_of_unknown
from .checking import bound_to, require_exact, require_layers
from .detecting import detector_of


def importance(
    model: HookedModel,
    document: Document,
    *,
    formulation: str | Measure = "exact",
    measure: Where = "stream",
    layers: Sequence[int] | None = None,
    verify: bool = True,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Float[Tensor, "layer _"]]:
    """How much each neuron matters for one document: every neuron, exactly.

    Args:
        model: a hooked model.
        document: a text, or its token ids as a 1-D tensor.
        formulation: as for :func:`detect`.
        measure: as for :func:`detect`.
        layers: score these only; others are NaN.
        verify: as for :func:`detect`.
        max_tokens: a longer document is cut there, with a warning.

    Returns:
        By site, ``[layer, neuron]``: ‖change‖_F / √positions over the positions of ordinary tokens, in the model's
        dtype or float32 if that is wider.

    Raises:
        ValueError: for a document without an ordinary token; for closed forms that differ from ablation.
    """
    check_arguments(importance, locals())
    space, detector, running = NeuronSpace.of(model), detector_of(formulation, measure), Running()
    encoded, scored = encode(model, [document], ["given"], max_tokens), require_layers(model, layers)
    warn_of_unknown(model.tokenizer, {"the document": encoded}, stacklevel=3)
    if verify and formulation == "exact":
        require_exact(model, measure, None, scored, len(encoded[0]))
    by_site: dict[str, dict[int, Tensor]] = {site: {} for site in space.widths}

    def receive(layer: int, scores: SiteScores, _: SiteMasks | None) -> None:
        for site, values in scores.items():
            by_site[site][layer] = values[0]

    hooks = score_hooks(bound_to(model, detector, scored), running, receive)
    for _ in stream(model, batches(model, encoded), hooks, running):
        pass
    for site, scores in by_site.items():
        if scores and (missing := set(scored) - scores.keys()):
            raise ValueError(f"The measure gives no score of {site} in layer {min(missing)}, but in others.")
    return {site: _stacked(site, scores, space.n_layers) for site, scores in by_site.items() if scores}


def _stacked(
    site: str, by_layer: Mapping[int, Float[Tensor, " neuron"]], n_layers: int
) -> Float[Tensor, "layer neuron"]:
    """All layers on the CPU, with NaN for those that are not there."""
    first = next(iter(by_layer.values()))
    scored = torch.stack([scores.to(first.device) for scores in by_layer.values()]).cpu()
    require_told(site, scored)
    stacked = scored.new_full((n_layers, len(first)), torch.nan)
    stacked[list(by_layer)] = scored
    return stacked
