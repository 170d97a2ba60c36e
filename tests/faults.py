"""Faults planted in the package's reading of a model, which a comparison with ablation must find."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from einops import rearrange

from mwork_lens.measures.plnd import attention, outputs
from mwork_lens.measures.plnd.attention import Geometry

HERE = 1
"""The layer that a fault is in."""

post_norm, weight, geometry_of = outputs.post_norm, outputs.weight, Geometry.of


class Shifted(Geometry):
    """Queries are rotated as if they were one position later; they are rotated before keys."""

    def attention(self, q, k, pattern, content):
        object.__setattr__(self, "steps", cycle([1, 0]))
        return super().attention(q, k, pattern, content)

    def _side(self, x, gain, positions):
        return super()._side(x, gain, positions + next(self.steps))


class Regrouped(Geometry):
    """The first two key-value groups change places."""

    def attention(self, q, k, pattern, content):
        return super().attention(q, k[:, [1, 0, *range(2, k.shape[1])]], pattern, content)


def with_geometry(change):
    def plant(monkeypatch):
        def of(model, layer, **options):
            geometry = geometry_of(model, layer, **options)
            return change(geometry) if layer == HERE else geometry

        monkeypatch.setattr(attention.Geometry, "of", of)

    return plant


def with_post_norm(change):
    def plant(monkeypatch):
        def read(model, layer, structure):
            norm = post_norm(model, layer, structure)
            return change(norm) if norm and layer == HERE else norm

        monkeypatch.setattr(outputs, "post_norm", read)

    return plant


def regroup_values(monkeypatch):
    def read(model, layer, name):
        w_o, groups = weight(model, layer, name), outputs.key_value_heads(model.cfg)
        if name != "attn.W_O" or layer != HERE:
            return w_o
        by_group = rearrange(w_o, "(group head) d_head d_model -> group head d_head d_model", group=groups)
        return by_group[[1, 0, *range(2, groups)]].flatten(0, 1)

    monkeypatch.setattr(outputs, "weight", read)


def ones(gain):
    return None if gain is None else torch.ones_like(gain)


@dataclass(frozen=True)
class Fault:
    plant: Callable
    sites: tuple[str, ...]
    """Whose scores it makes wrong."""
    needs: str = ""
    """What a family must have for it."""


FAULTS = {
    "scale": Fault(with_geometry(lambda geometry: replace(geometry, scale=1.02 * geometry.scale)), ("q", "k")),
    "gain of q": Fault(with_geometry(lambda g: replace(g, query_gain=ones(g.query_gain))), ("q", "k"), "qk_norm"),
    "gain of k": Fault(with_geometry(lambda g: replace(g, key_gain=ones(g.key_gain))), ("q", "k"), "qk_norm"),
    "gain of post-norm": Fault(with_post_norm(lambda n: replace(n, gain=ones(n.gain))), ("v", "mlp"), "post_norm"),
    "post-norm": Fault(with_post_norm(lambda norm: None), ("v", "mlp"), "post_norm"),
    "rotation": Fault(with_geometry(lambda geometry: Shifted(**vars(geometry))), ("q", "k"), "rotation"),
    "groups of k": Fault(with_geometry(lambda geometry: Regrouped(**vars(geometry))), ("q", "k")),
    "groups of v": Fault(regroup_values, ("v",)),
}


def has(model, need):
    """Whether a fault can be planted in a model."""
    if need == "rotation":
        return geometry_of(model, HERE).rotary is not None
    if need == "qk_norm":
        return geometry_of(model, HERE).normalises
    return not need or post_norm(model, HERE, "attention") is not None
