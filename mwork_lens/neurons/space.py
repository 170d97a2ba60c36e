"""Which neurons a model has."""

import math
import warnings
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any

from ..model import SITES, Fingerprint, HookedModel, feed_forward_width, key_value_heads, shown_model, weight
from ..model.blocks import layers_apart, require_known_blocks
from ..store import storable

_WITHOUT_COLUMNS = {
    "num_experts": "is a mixture of experts: its feed-forward neurons differ from token to token",
    "load_in_4bit": "has 4-bit weights, which have no columns: load it in float or bfloat16",
    "ungroup_grouped_query_attention": "has its key and value heads widened to the query heads: "
    "call model.set_ungroup_grouped_query_attention(False)",
}
"""What is wrong with a model's neurons, by the option of its configuration."""


@storable
@dataclass(frozen=True)
class NeuronSpace:
    """The neurons of a model: the identity that every set and every detection carries."""

    model: str
    """The model's name."""
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    """0 for a model of attention only."""
    processing: str
    """``unprocessed``, or what was done to the weights on loading (this changes scores)."""
    fingerprint: Fingerprint | None = field(default=None, compare=False)
    """Of the weights, where it was computed."""

    @classmethod
    def of(cls, model: HookedModel, *, fingerprint: bool = False) -> "NeuronSpace":
        """Read from a hooked model; ``fingerprint`` is for results that are saved.

        Layers that have other neurons than the first (Gemma 4's global ones) are in it, with no neuron that is used.

        Raises:
            ValueError: for what would be silently wrong: mixture-of-experts, recurrent or latent layers,
                quantised weights, key and value heads widened to the query heads, or widths that differ from the
                configuration's.
        """
        require_known_blocks(model)
        cfg = model.cfg
        for option, reason in _WITHOUT_COLUMNS.items():
            if getattr(cfg, option, None):
                raise ValueError(f"{cfg.model_name} {reason}.")
        space = cls(
            model=str(cfg.model_name),
            **{name: getattr(cfg, name) for name in ("n_layers", "d_model", "n_heads", "d_head")},
            n_key_value_heads=key_value_heads(cfg),
            d_mlp=feed_forward_width(model),
            processing=weight_processing(model),
            fingerprint=Fingerprint.of(model) if fingerprint else None,
        )
        apart = layers_apart(model)
        alike = [layer for layer in range(space.n_layers) if layer not in apart]
        for (site, width), layer in product(space.widths.items(), alike):
            matrix = SITES[site].tuning[0] if SITES[site].heads else SITES[site].silencing[0]
            shape = weight(model, layer, matrix.weight).shape
            columns = math.prod(shape[axis] for axis in matrix.neuron_axes)
            if columns != width:
                raise ValueError(
                    f"{space.model} has {columns} neurons in {matrix.weight} of layer {layer} where its configuration "
                    f"says {width}: its {site} neurons are not what they seem."
                )
        return space

    @property
    def shown(self) -> str:
        """The model's name, and its weights where they are known, in a few words: ``gpt2 (float32 1f0c9a3e)``."""
        return shown_model(vars(self)) if self.fingerprint else self.model

    @property
    def widths(self) -> dict[str, int]:
        """Neurons in each layer, by site."""
        heads = {"query": self.n_heads, "key_value": self.n_key_value_heads}
        widths = {name: heads[site.heads] * self.d_head if site.heads else self.d_mlp for name, site in SITES.items()}
        return {name: width for name, width in widths.items() if width}

    @property
    def total(self) -> int:
        """All neurons of the model."""
        return self.n_layers * sum(self.widths.values())

    @property
    def described_sizes(self) -> str:
        """For messages, e.g. ``2 layers, q 32, k 16, v 16, mlp 20``."""
        return ", ".join([f"{self.n_layers} layers", *(f"{site} {width}" for site, width in self.widths.items())])

    def require_compatible(self, other: "NeuronSpace", *, stacklevel: int = 3) -> None:
        """Refuse a space of other sizes; warn where only the name, the weight processing or the weights differ."""
        ours, theirs = (replace(space, model="", processing="") for space in (self, other))
        if ours != theirs:
            other_model = f"{other.model} ({other.described_sizes})"
            raise ValueError(f"The neurons of {self.model} ({self.described_sizes}) do not fit {other_model}.")
        if (self.model, self.processing) != (other.model, other.processing):
            names = f"{self.model} ({self.processing})", f"{other.model} ({other.processing})"
        elif self.fingerprint and other.fingerprint and not self.fingerprint.agrees(other.fingerprint):
            names = (
                f"{self.model} ({self.fingerprint})",
                f"a model of this name with other weights ({other.fingerprint}: tuned, or another version)",
            )
        else:
            return
        warnings.warn(
            f"Neurons of {names[0]} are used with {names[1]}: same sizes, another model.", stacklevel=stacklevel
        )

    def to_fields(self) -> dict[str, Any]:
        """What is saved: also each site's width."""
        return {**vars(self), "widths": self.widths}

    @classmethod
    def from_fields(cls, *, widths: Any = MappingProxyType({}), **sizes: Any) -> "NeuronSpace":
        """From what was saved; a site's width may be one number, or a list with one per layer, all the same."""
        space = cls(**sizes)
        for site, width in widths.items():
            expected = space.widths.get(site)
            if set(width if isinstance(width, list) else [width]) != {expected}:
                reason = f"where its sizes give {expected} in every layer: other widths are not supported."
                raise ValueError(f"{space.model} has {site} neurons of widths {width}, {reason}")
        return space


def weight_processing(model: HookedModel) -> str:
    """What loading did to the weights, as far as the model itself shows."""
    steps = []
    if str(getattr(model.cfg, "normalization_type", "")).endswith("Pre"):
        steps.append("norms folded")
    w_o = weight(model, 0, "attn.W_O").detach().float()
    if w_o.mean(-1).abs().max() < 1e-6 * w_o.abs().max():
        steps.append("writing weights centred")
    return ", ".join(steps) or "unprocessed"
