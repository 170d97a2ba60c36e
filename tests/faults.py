"""Faults planted in the package's reading of a model, which a comparison with ablation must find."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange

from mwork_lens.measures.plnd import attention, outputs, value_norm
from mwork_lens.measures.plnd.attention import Geometry
from mwork_lens.measures.plnd.sides import Side
from mwork_lens.model.heads import head_norm

HERE = 1
"""The layer that a fault is in."""

post_norm, weight, factor, geometry_of = outputs.post_norm, outputs.weight, outputs.output_factor, Geometry.of


class Shifted(Side):
    """Rotated as if every position were one later."""

    def turned(self, x, positions, length):
        return super().turned(x, positions + 1, length + 1)


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

    for module in (outputs, value_norm):
        monkeypatch.setattr(module, "weight", read)


def drop_value_norm(monkeypatch):
    monkeypatch.setattr(outputs, "head_norm", lambda *read: None if read[1] == HERE else head_norm(*read))


def drop_multiplier(monkeypatch):
    monkeypatch.setattr(outputs, "output_factor", lambda model, layer: 1 if layer == HERE else factor(model, layer))


def scaled(geometry, factor=1.02):
    sides = {name: replace(getattr(geometry, name), scale=factor * geometry.scale) for name in ("query", "key")}
    return replace(geometry, scale=factor * geometry.scale, **sides)


def without_gain(side):
    return replace(side, norm=side.norm and replace(side.norm, gain=torch.ones_like(side.norm.gain)))


@dataclass(frozen=True)
class Fault:
    plant: Callable
    sites: tuple[str, ...]
    """Whose scores it makes wrong."""
    needs: str = ""
    """What a family must have for it."""


def without_norm_gain(norm):
    return replace(norm, gain=torch.ones_like(norm.gain))


FAULTS = {
    "scale": Fault(with_geometry(scaled), ("q", "k")),
    "gain of q": Fault(with_geometry(lambda g: replace(g, query=without_gain(g.query))), ("q", "k"), "qk_norm"),
    "gain of k": Fault(with_geometry(lambda g: replace(g, key=without_gain(g.key))), ("q", "k"), "qk_norm"),
    "gain of post-norm": Fault(with_post_norm(without_norm_gain), ("v", "mlp"), "post_norm"),
    "post-norm": Fault(with_post_norm(lambda norm: None), ("v", "mlp"), "post_norm"),
    "rotation": Fault(with_geometry(lambda g: replace(g, query=Shifted(**vars(g.query)))), ("q", "k"), "rotation"),
    "groups of k": Fault(with_geometry(lambda geometry: Regrouped(**vars(geometry))), ("q", "k")),
    "groups of v": Fault(regroup_values, ("v",)),
    "norm of values": Fault(drop_value_norm, ("v",), "value_norm"),
    "multiplier": Fault(drop_multiplier, ("v", "mlp"), "multiplier"),
}


def has(model, need):
    """Whether a fault can be planted in a model."""
    if need == "rotation":
        return geometry_of(model, HERE).rotary is not None
    if need == "multiplier":
        return factor(model, HERE) != 1
    if need == "value_norm":
        return head_norm(model, HERE, "v") is not None
    if need == "qk_norm":
        return geometry_of(model, HERE).normalises
    return not need or post_norm(model, HERE, "attention") is not None
