"""The rows as a page of documentation."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import mwork_lens
from mwork_lens.model.sites import SITES

from . import DECODERS, Decoder

PAGE = Path(mwork_lens.__file__).parent / "measures" / "decoders.md"
GENERATIONS = ("3.9", "4.3")
_REASONS = {
    "mixture of experts": ("mixture of experts", "feed-forward neurons differ from token to token"),
    "latent attention": ("latent attention", "queries, keys and values have no columns of their own"),
    "no attention pattern": ("no attention pattern", "recurrent, convolutional and linear layers have no softmax"),
    "recurrent": ("recurrent", "the same layers run again and again"),
    "would differ": ("another model", "TransformerLens computes another model than transformers; seen at loading"),
    "TransformerBridge": ("not loaded", "TransformerLens cannot load it"),
    "rotary function": ("unknown rotation", "how queries and keys are rotated cannot be read"),
    "from its last layer": ("other logits", "what it does after its last layer is not known"),
    "multi_query=True": ("not loaded", "TransformerLens cannot load it"),
    "same neurons in every layer": (
        "layers differ",
        "some layers have neurons of other widths, or share keys and values; `layers=` scores all others, exactly",
    ),
}
"""What the words of an error stand for, in short and in full."""
_OTHER = ("part without closed form", "what this part of a layer does to neurons has no closed form here")
_OWN = (
    "TransformerLens' own",
    "for modules that come from elsewhere (minGPT, nanoGPT, training code of one's own) or for weights of early SoLU "
    "models; TransformerLens has no class to build one from. `TransformerLensNative`, which it has, is tested",
)
_COUNTED = ("exact", "the same as an exact one", "refused", "custom code, which is never run", "its own")
_INTRODUCTION = """\
# Decoders: exact, or refused

Which decoder-only text architectures of TransformerLens's registries can be scored, with TransformerLens 3.9 and 4.3.
*Exact* means: on tiny random models in double precision every score of every neuron of every layer equals what zeroing
that neuron through a hook changes, to 1e-5 (transformers computes norms and rotary angles in single precision) and on
documents longer than every window, chunk and original length of rotary embedding in the model; a document scores the
same beside a longer one; and the logits read out of the residual stream are those of transformers (of its own model,
those of TransformerLens). *Refused* means that loading or `detect` raises an error that says why. Options that change
what an architecture computes are tested as variants. This page is written from the list of tests
(`python -m tests.decoders --write`).
"""


def page() -> str:
    """The whole page."""
    names = sorted({row.architecture for row in DECODERS}, key=lambda name: (name.lower(), name))
    counts = [_counts(names, generation) for generation in GENERATIONS]
    lines = [
        _INTRODUCTION,
        _cells("TransformerLens", *_COUNTED),
        _cells(*["---"] * (1 + len(_COUNTED))),
        *(_cells(generation, *count) for generation, count in zip(GENERATIONS, counts, strict=True)),
        "",
        _cells("architecture", *GENERATIONS, "variants tested"),
        _cells(*["---"] * 4),
        *(_line(name) for name in names),
        "",
        "Reasons:",
        "",
        *dict.fromkeys(f"* *{short}*: {full}." for short, full in [*_REASONS.values(), _OTHER, _OWN]),
    ]
    return "\n".join(lines) + "\n"


def _cells(*values: object) -> str:
    return f"| {' | '.join(map(str, values))} |"


def _rows(name: str, generation: str) -> list[Decoder]:
    return [row for row in DECODERS if row.architecture == name and generation in row.generations]


def _counts(names: Iterable[str], generation: str) -> list[int]:
    """By the row of each architecture that has its usual options, the first."""
    first = {name: rows[0] for name in names if (rows := _rows(name, generation))}
    exact = {name for name, row in first.items() if row.can_be_built and not row.refused}
    notes = [row.note for row in first.values() if row.note]
    same = sum(note.removeprefix("same as ") in exact for note in notes)
    custom, own = notes.count("custom code"), notes.count("TransformerLens' own")
    return [len(exact), same, len(first) - len(exact) - same - custom - own, custom, own]


def _line(name: str) -> str:
    variants = dict.fromkeys(row.variant for row in DECODERS if row.architecture == name and row.variant)
    return _cells(name, *(_state(_rows(name, generation)) for generation in GENERATIONS), "; ".join(variants))


def _state(rows: Sequence[Decoder]) -> str:
    """What holds of one architecture, in one generation."""
    if not rows:
        return "not tested"
    if not rows[0].can_be_built:
        return rows[0].note
    exact, refused = ([row for row in rows if bool(row.refused) == refused] for refused in (False, True))
    states = ["exact" for row in exact if row.sites == tuple(SITES)]
    states += [f"exact in {', '.join(row.sites)}" for row in exact if row.sites != tuple(SITES)]
    for row in refused:
        states.append(f"refused{f' ({row.variant})' if row.variant else ''}: {_reason(row.refused)}")
    return "; ".join(dict.fromkeys(states))


def _reason(words: str) -> str:
    known = next((short for part, (short, _) in _REASONS.items() if part in words), None)
    return known or f"{_OTHER[0]} (`{words.split(' ')[0]}`)"
