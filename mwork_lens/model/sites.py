"""Where neurons live: the one table that scoring, hooks, weight edits and tuning read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ..text.choices import listed
from .architecture import Structure


@dataclass(frozen=True)
class Slices:
    """The part of one weight that belongs to each neuron."""

    weight: str
    """The weight within a block, e.g. ``attn.W_Q``."""
    axes: str
    """Its axes with those of the neuron named: ``head`` and ``index`` in attention, ``neuron`` in the feed-forward."""

    @property
    def is_bias(self) -> bool:
        """Whether this is a bias: TransformerLens adds zero ones that no checkpoint has."""
        return ".b_" in self.weight

    @property
    def neuron_axes(self) -> tuple[int, ...]:
        """Where the neurons are among the weight's axes."""
        return tuple(i for i, name in enumerate(self.axes.split()) if name != "1")


@dataclass(frozen=True)
class Site:
    """One kind of neuron. A neuron is a coordinate of ``hook``; ``heads`` says how that axis is laid out."""

    name: str
    """``q``, ``k``, ``v`` or ``mlp``."""
    structure: Structure
    hook: str
    """Hook point within a block: ``[batch, pos, head, d_head]`` for attention, ``[batch, pos, d_mlp]`` else."""
    heads: Literal["query", "key_value"] | None
    """Which heads the neurons belong to (neuron = head * d_head + index); None for the feed-forward."""
    silencing: tuple[Slices, ...]
    """What to set to zero for the outputs of the neuron at zero: of the feed-forward its row of W_out, since an
    activation function need not send 0 to 0."""
    tuning: tuple[Slices, ...]
    """All that belongs to a neuron and may be tuned: columns that read, biases, rows that write. First the matrix whose
    width says how many neurons there are."""
    writes: bool
    """Whether its neurons add to the residual stream; those of queries and keys only steer attention's pattern."""

    def hook_name(self, layer: int) -> str:
        """The full name of this site's hook point in one layer."""
        return f"blocks.{layer}.{self.hook}"


def _attention(letter: str, heads: Literal["query", "key_value"]) -> Site:
    matrix, bias = Slices(f"attn.W_{letter}", "head 1 index"), Slices(f"attn.b_{letter}", "head index")
    hook, both = f"attn.hook_{letter.lower()}", (matrix, bias)
    return Site(letter.lower(), "attention", hook, heads, both, both, writes=letter == "V")


_READ, _BIAS, _WRITE = Slices("mlp.W_in", "1 neuron"), Slices("mlp.b_in", "neuron"), Slices("mlp.W_out", "neuron 1")
GATE = Slices("mlp.W_gate", "1 neuron")
"""Not part of a neuron as PLND defines it; tuned with it on request."""

_TABLE = {
    "q": _attention("Q", "query"),
    "k": _attention("K", "key_value"),
    "v": _attention("V", "key_value"),
    "mlp": Site("mlp", "feed_forward", "mlp.hook_post", None, (_WRITE,), (_READ, _BIAS, _WRITE), True),
}
SITES: Mapping[str, Site] = MappingProxyType(_TABLE)
"""The sites by name; :func:`add_site` adds one."""


def add_site(site: Site) -> None:
    """Add a row, for this process; ValueError for a name that the table has.

    Sets, detections and hooks then have that site; those saved without it have no neurons there. A measure gives its
    scores under its name; one that does not finds none of its neurons active.
    """
    if site.name in _TABLE:
        raise ValueError(f"There is a site {site.name!r} already: {_TABLE[site.name]}.")
    _TABLE[site.name] = site


def remove_site(name: str) -> None:
    """Take out a row that was added."""
    del _TABLE[name]


def require_sites(names: Any) -> tuple[str, ...]:
    """``names`` as a tuple in the table's order; ValueError for a name that is not a site."""
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in names if name not in SITES]
    if unknown:
        raise ValueError(f"There is no site {unknown[0]!r}; sites are {listed(SITES, unknown[0])}.")
    return tuple(name for name in SITES if name in names)
