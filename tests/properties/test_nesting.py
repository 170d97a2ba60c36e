"""Ablations and edited weights are left in any order, and stay in their thread."""

import random
from contextlib import ExitStack

import torch

import mwork_lens as mw

from ..decoders import decoder_model, document
from ..tiny import installed, some_neurons
from . import ALL, rows

TWO = ("LlamaForCausalLM", "SmolLM3ForCausalLM")
"""A HookedTransformer with TransformerLens 3.9, and a bridge."""


def nestings(row):
    """A thousand on two decoders where all are tested, few on the others."""
    return 1000 if ALL and str(row) in TWO else 20


def interventions(model):
    """Factories of contexts, by name; each may be open several times."""
    sets = [some_neurons(model, 0.2, seed) for seed in range(3)]
    halves, name = [], "blocks.1.mlp.hook_post"
    return {
        **{f"off {i}": lambda neurons=neurons: mw.ablate(model, neurons) for i, neurons in enumerate(sets)},
        **{f"edited {i}": lambda neurons=neurons: mw.edit_weights(model, neurons) for i, neurons in enumerate(sets)},
        "scaled": lambda: mw.ablate(model, sets[0], "scale", factor=0.5),
        "spared": lambda: mw.ablate(model, sets[1], positions="content"),
        "own": lambda: model.hooks(fwd_hooks=[(name, lambda activation, hook: halves.append(1) or activation * 0.5)]),
    }


@torch.no_grad()
@rows(TWO)
def test_nestings_leave_the_model_as_it_was(row):
    """What is open decides what the model computes, and not in what order it was opened or what was left since."""
    model, ids, draw, known = decoder_model(row), document(row, 6)[None], random.Random(0), {}
    possible, weights = interventions(model), {name: p.clone() for name, p in model.named_parameters()}
    untouched, hooks = model(ids), installed(model)

    def reference(names):
        if names not in known:
            with ExitStack() as stack:
                for name in names:
                    stack.enter_context(possible[name]())
                known[names] = model(ids)
        return known[names]

    for _ in range(nestings(row)):
        opened = {}
        for _ in range(draw.randint(3, 8)):
            left = [name for name in possible if name not in opened]
            if opened and (not left or draw.random() < 0.4):
                opened.pop(draw.choice([*opened])).__exit__(None, None, None)
            else:
                name = draw.choice(left)
                opened[name] = possible[name]()
                opened[name].__enter__()
        now = model(ids)
        for name in draw.sample([*opened], len(opened)):
            opened[name].__exit__(None, None, None)
        assert torch.equal(now, reference(tuple(sorted(opened))))
    assert installed(model) == hooks
    assert torch.equal(model(ids), untouched)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
