import contextlib
import copy

import pytest
import torch
from transformer_lens import TransformerLensKeyValueCache

from mwork_lens.model import SITES, weight
from mwork_lens.model.hooks import hooked
from mwork_lens.neurons import NeuronSet, NeuronSpace, ablate

from ..tiny import FAMILIES, KINDS, installed, some_neurons, tiny, tokens

OUT = {"q": ["attn.W_Q", "attn.b_Q"], "k": ["attn.W_K", "attn.b_K"], "v": ["attn.W_V", "attn.b_V"]}


@pytest.fixture
def llama():
    return copy.deepcopy(tiny("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_set_is_zeroed(family):
    model, neurons = tiny(family), some_neurons(tiny(family))
    names = [site.hook_name(layer) for layer in range(2) for site in SITES.values()]
    before = {}
    keep = [(name, lambda activation, hook: before.update({hook.name: activation.clone()})) for name in names]
    with model.hooks(fwd_hooks=keep), ablate(model, neurons):
        _, after = model.run_with_cache(tokens(7), names_filter=names)
    for name, site, layer in [(s.hook_name(layer), s.name, layer) for layer in range(2) for s in SITES.values()]:
        mask = neurons.masks[site][layer]
        now, was = after[name].flatten(2), before[name].flatten(2)
        assert (was != 0).all()
        assert torch.equal(now, torch.where(mask, 0, was))


@pytest.mark.parametrize("family", KINDS)
def test_off_neurons_equal_zero_weights(family):
    """Nothing else changes: the same logits as a model whose weights into (q, k, v) or out of (mlp) them are zero."""
    model, ids = tiny(family), tokens(9)
    neurons = some_neurons(model)
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for site, mask in neurons.masks.items():
            for layer, row in enumerate(mask):
                if site == "mlp":
                    edited.blocks[layer].mlp.W_out[row] = 0
                    continue
                heads = row.view(-1, model.cfg.d_head)
                matrix, bias = (weight(edited, layer, name) for name in OUT[site])
                matrix.masked_fill_(heads[:, None], 0)
                bias.masked_fill_(heads, 0)
    expected = edited(ids)
    assert not torch.allclose(model(ids), expected)
    torch.testing.assert_close(model.run_with_hooks(ids, fwd_hooks=neurons.hooks()), expected, rtol=1e-10, atol=1e-12)
    with ablate(model, neurons):
        torch.testing.assert_close(model(ids), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", KINDS)
def test_a_key_value_cache_changes_nothing(family):
    model, ids = tiny(family), tokens(8)[None]
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", batch_size=1)
    with ablate(model, some_neurons(model)):
        whole = model(ids)
        parts = [ids[:, :5], ids[:, 5:6], ids[:, 6:7], ids[:, 7:]]
        steps = [model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part)) for part in parts]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", KINDS)
def test_the_model_is_as_before_after_any_exit(family, stop):
    model, ids = tiny(family), tokens(9)
    before = model(ids)

    def use():
        with ablate(model, some_neurons(model)) as switched:
            assert switched is model
            assert not torch.equal(model(ids), before)
            if stop:
                raise stop

    with pytest.raises(stop) if stop else contextlib.nullcontext():
        use()
    assert installed(model) == {}
    assert torch.equal(model(ids), before)


def test_the_loss_changes_only_with_the_set(llama):
    ids = tokens(12)
    baseline = llama(ids, return_type="loss")
    neurons = some_neurons(llama, share=0.1)
    with ablate(llama, neurons - neurons):
        assert torch.equal(llama(ids, return_type="loss"), baseline)
    with ablate(llama, neurons):
        assert (llama(ids, return_type="loss") - baseline).abs() > 1e-3


@pytest.mark.parametrize("how", ["add_hook", "context"])
@pytest.mark.parametrize("first", ["users", "ablation"])
def test_own_hooks_work_beside_an_ablation(llama, how, first):
    """A hook of the user adds one; before the ablation its sum is zeroed, after it one is left."""
    name, ids = "blocks.0.mlp.hook_post", tokens(6)
    mask = some_neurons(llama).masks["mlp"][0]
    neurons = NeuronSet.from_list(NeuronSpace.of(llama), [(0, "mlp", i) for i in mask.nonzero().flatten().tolist()])
    _, clean = llama.run_with_cache(ids)

    def add_one(activation, hook):
        return activation + 1

    def users():
        if how == "context":
            return llama.hooks(fwd_hooks=[(name, add_one)])
        llama.add_hook(name, add_one)
        return llama.hooks()

    def value():
        return llama.run_with_cache(ids)[1][name]

    if first == "users":
        with users():
            with ablate(llama, neurons):
                assert torch.equal(value(), torch.where(mask, 0, clean[name] + 1))
            assert torch.equal(value(), clean[name] + 1)
    else:
        with ablate(llama, neurons):
            with users():
                assert torch.equal(value(), torch.where(mask, 1, clean[name] + 1))
            if how == "context":
                assert torch.equal(value(), torch.where(mask, 0, clean[name]))
    assert installed(llama) == ({name: 1} if how == "add_hook" else {})
    assert torch.equal(value(), clean[name] + 1 if how == "add_hook" else clean[name])


def test_ablations_nest(llama):
    a, b, ids = some_neurons(llama, seed=1), some_neurons(llama, seed=2), tokens(6)
    with ablate(llama, a | b):
        expected = llama(ids)
    with ablate(llama, a), ablate(llama, b):
        assert torch.equal(llama(ids), expected)


def test_an_unknown_hook_point_is_refused(llama):
    hook = some_neurons(llama).hooks()[0][1]
    with (
        pytest.raises(ValueError, match=r"tiny-llama has no hook point 'blocks\.2\.attn\.hook_q'"),
        hooked(llama, [("blocks.0.attn.hook_q", hook), ("blocks.2.attn.hook_q", hook)]),
    ):
        pytest.fail("the block was entered")
    assert installed(llama) == {}
