"""What a user has done to a model is in the results, or is refused: hooks, switches, weights, copies."""

import copy
import math

import pytest
import torch
import transformers

import mwork_lens as mw
from mwork_lens.model import state
from mwork_lens.model.conversion import bridge_on
from mwork_lens.neurons.weights import Entries

from ..decoders import decoder_model, document
from ..tiny import HOOKED, installed, some_neurons
from . import QUIET, documents, rows
from .state import changes, state_of
from .test_independence import results

TWO = ("LlamaForCausalLM", "SmolLM3ForCausalLM")


def half(activation, hook=None):
    return activation * 0.5


@rows(TWO, only=True)
def test_hooks_of_the_users_are_in_losses_and_scores_or_refused(row):
    """What was verified without them does not hold with them."""
    model, ids = decoder_model(row), document(row)
    untouched = mw.importance(model, ids)
    for name in ("blocks.0.attn.hook_z", "blocks.0.hook_resid_pre", "blocks.1.mlp.hook_post"):
        with model.hooks(fwd_hooks=[(name, half)]), torch.no_grad():
            expected = -model(ids[None])[0].log_softmax(-1)[:-1].gather(1, ids[1:, None]).mean()
            losses = mw.language_losses(model, {"a": [ids]})
            assert mw.check_scores(model).exact.all()
            mw.importance(model, ids)
        torch.testing.assert_close(losses.nats_per_token.item(), expected.item())
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", half)]),
        pytest.raises(ValueError, match=r"mlp neuron \d+ of layer 0 .* changes"),
    ):
        mw.importance(model, ids)
    assert all(torch.equal(scores, untouched[site]) for site, scores in mw.importance(model, ids).items())


def on_unembedding(model):
    return model.hooks(fwd_hooks=[("unembed.hook_out", half)])


def on_model(model):
    class Hooked:
        def __enter__(self):
            self.handle = model.register_forward_hook(lambda module, inputs, output: output * 0.5)

        def __exit__(self, *_):
            self.handle.remove()

    return Hooked()


@pytest.mark.parametrize("hooked", [on_unembedding, on_model])
@rows(TWO, only=True)
def test_hooks_that_would_be_left_out_are_refused(row, hooked):
    model, ids = decoder_model(row), document(row)
    neurons = some_neurons(model)
    for call in (
        lambda: mw.language_losses(model, {"a": [ids]}),
        lambda: mw.tune(model, neurons, [ids], steps=1, learning_rate=1e-2, **QUIET),
    ):
        with hooked(model), pytest.raises(ValueError, match=r"A hook is on the unembedding of .*would be left out"):
            call()
        if hooked is on_unembedding:
            assert installed(model) == {}


SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in")


@pytest.mark.parametrize("name", SWITCHES)
@rows(TWO, only=True)
def test_switches_of_transformer_lens_stay_and_change_nothing(row, name):
    model = decoder_model(row)
    neurons = some_neurons(model)
    expected = results(model, row, neurons)
    getattr(model, f"set_{name}")(True)
    for ours, theirs in zip(results(model, row, neurons), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert [getattr(model.cfg, each, False) for each in SWITCHES] == [each == name for each in SWITCHES]


@pytest.mark.skipif(not HOOKED, reason="a bridge has no such switch")
@rows(("LlamaForCausalLM",), only=True)
def test_a_model_with_widened_heads_writes_the_same(row):
    model, prompts = decoder_model(row), [ids[:9] for ids in documents(row)]
    expected = mw.generate(model, prompts, max_new_tokens=4)
    model.set_ungroup_grouped_query_attention(True)
    assert mw.generate(model, prompts, max_new_tokens=4) == expected
    assert model.cfg.ungroup_grouped_query_attention


@rows(TWO, only=True)
def test_logits_that_are_not_numbers_are_said(row):
    model, ids = decoder_model(row), document(row)
    model.unembed.W_U.data[0, 7] = math.nan
    neurons = some_neurons(model)
    calls = {
        "losses": lambda: mw.language_losses(model, {"a": [ids]}),
        "effects": lambda: mw.effect_matrix(model, {"some": neurons}, {"a": [ids]}, **QUIET),
        "greedy": lambda: mw.generate(model, [ids[:5]], max_new_tokens=1),
        "sampled": lambda: mw.generate(model, [ids[:5]], max_new_tokens=1, temperature=1.0),
    }
    for call in calls.values():
        with pytest.raises(
            ValueError, match=rf"The logits of {row.architecture} are not numbers: its weights hold NaN"
        ):
            call()


@pytest.mark.parametrize("family", ["Mamba", "Rwkv"])
def test_a_recurrent_model_is_refused_before_it_is_run(family):
    options = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**options))
    model, passes = bridge_on(theirs.eval()), []
    theirs.register_forward_pre_hook(lambda *_: passes.append(1))
    for call in (
        lambda: mw.generate(model, [torch.arange(3, 9)], max_new_tokens=2),
        lambda: mw.language_losses(model, {"a": [torch.arange(3, 9)]}),
    ):
        with pytest.raises(ValueError, match="layer 0 has no attention pattern"):
            call()
    assert not passes


@torch.no_grad()
@rows(TWO, only=True)
def test_a_copy_made_in_an_ablation_says_so_after_it(row):
    model, ids = decoder_model(row), document(row)[None]
    untouched, neurons = model(ids), some_neurons(model)
    with mw.ablate(model, neurons):
        copied, ablated = copy.deepcopy(model), model(ids)
        assert torch.equal(copied(ids), ablated)
    with pytest.raises(ValueError, match=r"copy of .* made in a `with` block .*copy the model outside of the block"):
        copied(ids)
    copied.reset_hooks()
    assert torch.equal(copied(ids), untouched)
    assert torch.equal(model(ids), untouched)


@rows(("LlamaForCausalLM",), only=True)
def test_an_interruption_while_all_is_put_back_is_too_late(row, monkeypatch):
    """Ctrl-C at the very end of a call."""
    model, ids = decoder_model(row).train(), document(row)
    before, restore, calls = state_of(model), state._restore, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        restore(*arguments)

    monkeypatch.setattr(state, "_restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mw.language_losses(model, {"a": [ids]})
    assert not changes(before, state_of(model))


@rows(("LlamaForCausalLM",), only=True)
def test_a_change_of_weights_that_is_interrupted_at_any_write_is_taken_back(row, monkeypatch):
    model, ids = decoder_model(row), document(row)
    delta = mw.tune(model, some_neurons(model), [ids], steps=1, learning_rate=1e-2, **QUIET).delta
    delta.revert(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    write, calls = Entries.write, []

    def interrupted(self, values):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        write(self, values)

    monkeypatch.setattr(Entries, "write", interrupted)
    for at in range(1, 2 * len(delta.neurons) + 1):
        calls.clear()
        with pytest.raises(KeyboardInterrupt), delta.applied(model):
            pass
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()), at
