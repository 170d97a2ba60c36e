"""Threads that use one model: calls wait for each other, and what a block of another thread would change is refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mwork_lens as mw

from ..decoders import decoder_model, document
from ..tiny import installed, some_neurons
from . import QUIET, documents, rows


def in_a_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@rows(("LlamaForCausalLM", "SmolLM3ForCausalLM"))
def test_calls_of_several_threads_wait_for_each_other(row):
    model, corpus = decoder_model(row), {"a": documents(row)}
    sets = [some_neurons(model, seed=seed) for seed in range(2)]

    def effect(neurons):
        return mw.effect_matrix(model, {"some": neurons}, corpus, batch_size=1, **QUIET).nats["some"]["a"]

    def scores(neurons):
        return mw.detect(model, corpus, batch_size=1, **QUIET).mean_scores["a"]["mlp"]

    hooks, work = installed(model), [(call, neurons) for neurons in sets for call in (effect, scores)]
    alone = [call(neurons) for call, neurons in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: each[0](each[1]), work))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert installed(model) == hooks


BLOCKS = {
    "ablate": lambda model, neurons, delta: mw.ablate(model, neurons),
    "edit_weights": lambda model, neurons, delta: mw.edit_weights(model, neurons),
    "applied": lambda model, neurons, delta: delta.applied(model),
}


@pytest.mark.parametrize("block", BLOCKS)
@rows(("LlamaForCausalLM",))
def test_a_block_that_another_thread_has_opened_is_told(row, block):
    model, ids = decoder_model(row), document(row)
    neurons = some_neurons(model).restrict(sites=["q", "k", "v"])  # ModernBert's feed-forward weights are fused
    delta = mw.tune(model, neurons, [ids], steps=1, learning_rate=1e-2, **QUIET).delta
    delta.revert(model)
    calls = {
        "losses": lambda: mw.language_losses(model, {"a": [ids]}),
        "generate": lambda: mw.generate(model, [ids[:5]], max_new_tokens=1),
        "apply": lambda: delta.apply(model),
        **{name: lambda other=other: other(model, neurons, delta).__enter__() for name, other in BLOCKS.items()},
    }
    calls |= {"a pass of its own": lambda: model(ids[None])} if block == "ablate" else {}
    expected = model(ids[None])
    with BLOCKS[block](model, neurons, delta):
        changed = mw.language_losses(model, {"a": [ids]}).nats_per_token.item()
        for call in calls.values():
            with pytest.raises(ValueError, match=r"Another thread has \w+ in a `with` block .*deepcopy"):
                in_a_thread(call)
    assert torch.equal(in_a_thread(lambda: model(ids[None])), expected)
    assert in_a_thread(calls["losses"]).nats_per_token.item() != changed


@rows(("LlamaForCausalLM",))
def test_a_call_waits_for_one_that_ablates(row):
    """What is ablated within a call ends by itself, so that others need not be refused."""
    model, corpus = decoder_model(row), {"a": documents(row)}
    expected = mw.language_losses(model, corpus).nats_per_token.item()
    asked = []

    with ThreadPoolExecutor(1) as pool:

        def ask(step):
            asked.append(pool.submit(lambda: mw.language_losses(model, corpus).nats_per_token.item()))

        neurons = some_neurons(model).restrict(sites=["q", "k", "v"])
        tuned = mw.tune(model, neurons, corpus["a"], steps=1, learning_rate=1e-2, callbacks=[ask], **QUIET)
        tuned.delta.revert(model)
        tuned_or_not = asked[0].result()
    assert mw.language_losses(model, corpus).nats_per_token.item() == expected
    with tuned.delta.applied(model):
        assert tuned_or_not in (expected, mw.language_losses(model, corpus).nats_per_token.item())
