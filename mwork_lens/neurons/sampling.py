"""A sample of a model's neurons that has as many of every site in each part of its depth."""

from itertools import pairwise, product

import torch

from ..model.architecture import HookedModel
from ..model.blocks import layers_apart
from ..text import check_arguments
from .sets import NeuronSet
from .space import NeuronSpace

THIRDS = "first", "middle", "last"


def thirds(n_layers: int) -> dict[str, range]:
    """The layers of each third of a model's depth; of fewer than three layers, some thirds have none."""
    ends = [round(n_layers * i / len(THIRDS)) for i in range(len(THIRDS) + 1)]
    return {name: range(*limits) for name, limits in zip(THIRDS, pairwise(ends), strict=True)}


def sample_neurons(model: HookedModel, *, per_cell: int = 40, by_third: bool = True, seed: int = 0) -> NeuronSet:
    """Neurons drawn at random, as many of each site in each third of the layers.

    Args:
        model: a hooked model.
        per_cell: how many of each site, in each third.
        by_third: whether thirds of the layers are told apart; otherwise ``per_cell`` of each site in all.
        seed: of the draw.

    Returns:
        The set; layers without neurons of their own, or with another number, have none in it.

    Raises:
        ValueError: where a site has fewer neurons in a third of the layers.

    Example:
        >>> sample = mw.sample_neurons(model, per_cell=2)
        >>> len(sample)  # 4 sites, 3 thirds
        24
    """
    check_arguments(sample_neurons, locals())
    space, apart = NeuronSpace.of(model, fingerprint=True), layers_apart(model)
    generator = torch.Generator().manual_seed(seed)
    cells = thirds(space.n_layers) if by_third else {"all": range(space.n_layers)}
    masks = {site: torch.zeros(space.n_layers, width, dtype=torch.bool) for site, width in space.widths.items()}
    for (site, width), (name, depths) in product(space.widths.items(), cells.items()):
        layers = [layer for layer in depths if layer not in apart]
        if not 1 <= per_cell <= len(layers) * width:
            raise ValueError(
                f"{per_cell=}: {space.model} has {len(layers) * width} {site} neurons in {len(layers)} layers "
                f"({name}), and at least one is to be drawn."
            )
        drawn = torch.zeros(len(layers) * width, dtype=torch.bool)
        drawn[torch.randperm(len(drawn), generator=generator)[:per_cell]] = True
        masks[site][layers] = drawn.view(len(layers), width)
    return NeuronSet(space, masks, {"kind": "sample", "seed": seed, "per_cell": per_cell, "by_third": by_third})
