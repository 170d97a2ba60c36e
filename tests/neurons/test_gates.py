"""Interventions on the gate's activation equal the feed-forward computed by hand with another one."""

import contextlib
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional

import mwork_lens as mw
from mwork_lens.model.hooks import hooked

from ..decoders import DECODERS, decoder_model
from ..decoders.row import transformers_model
from ..tiny import HOOKED, KINDS, installed, some_neurons, spelled, tiny, tokens

CORPUS = {
    "fr": [tokens(9), tokens(4, 1)],
    "zh": [tokens(7, 50), tokens(11, 51)],
    "en": [tokens(6, 90)],
}
QUIET = {"progress": False}
HOOKED_ONLY = pytest.mark.skipif(not HOOKED, reason="TransformerLens 4 has no HookedTransformer")
MODES = ["add", "replace"]


@cache
def firing_of(family):
    return mw.collect_firing(tiny(family), CORPUS, **QUIET)


def feed_forward_neurons(model, share=0.4, language="fr"):
    some = some_neurons(model, share).restrict(sites=["mlp"])
    return mw.NeuronSet(some.space, some.masks, {"language": language})


def changed(gate, mask, mean, mode, factor):
    return torch.where(mask, gate + factor * mean if mode == "add" else mean, gate)


def activation(model):
    name = model.cfg.act_fn
    tanh = "tanh" if name == "gelu_pytorch_tanh" else "none"
    return functional.silu if name == "silu" else lambda x: functional.gelu(x, approximate=tanh)


@contextlib.contextmanager
def by_hand(model, change):
    """The model with ``change(layer, a)`` in place of a, in feed-forwards that are computed here."""

    def forward(layer, mlp):
        def output(module, inputs, _):
            (x,) = inputs
            act = activation(model)
            if model.cfg.gated_mlp:
                product = change(layer, act(x @ mlp.W_gate)) * (x @ mlp.W_in) + mlp.b_in
            else:
                product = change(layer, act(x @ mlp.W_in + mlp.b_in))
            return product @ mlp.W_out + mlp.b_out

        return mlp.register_forward_hook(output)

    handles = [forward(layer, block.mlp) for layer, block in enumerate(model.blocks)]
    yield model
    for handle in handles:
        handle.remove()


@HOOKED_ONLY
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", KINDS)
def test_logits_are_those_of_the_feed_forward_by_hand(family, mode):
    model, ids, firing = tiny(family), tokens(9), firing_of(family)
    neurons, factor = feed_forward_neurons(model), {"add": 1.7}.get(mode)
    before, mask = model(ids), neurons.masks["mlp"]
    if model.cfg.gated_mlp:
        assert all(block.mlp.b_in.any() for block in model.blocks)
    with by_hand(model, lambda layer, a: a):
        torch.testing.assert_close(model(ids), before, rtol=1e-10, atol=1e-10)
    with by_hand(model, lambda layer, a: changed(a, mask[layer], firing.means("zh")[layer], mode, factor)):
        expected = model(ids)
    assert not torch.allclose(expected, before, rtol=1e-3)
    options = {"values": firing, "language": "zh", "factor": factor}
    hooks = neurons.hooks(mode, **options)
    torch.testing.assert_close(model.run_with_hooks(ids, fwd_hooks=hooks), expected, rtol=1e-10, atol=1e-10)
    with mw.ablate(model, neurons, mode, **options):
        torch.testing.assert_close(model(ids), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(model(ids), before)
    assert installed(model) == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["LlamaForCausalLM-biases", "Phi3ForCausalLM-long-rope"])
def test_on_a_bridge_they_are_those_of_transformers_own_weights(name, mode):
    """With a bias in x·W_in, and where both products come from one weight."""
    row = next(row for row in DECODERS if str(row) == name)
    model, theirs, ids = decoder_model(row), transformers_model(row), tokens(9)
    firing, neurons = mw.collect_firing(model, CORPUS, **QUIET), feed_forward_neurons(model)
    assert firing.biases is None
    factor, mask, means = {"add": -0.6}.get(mode), neurons.masks["mlp"], firing.means("fr")

    def by_hand(layer, x):
        mlp = theirs.model.layers[layer].mlp
        both = mlp.gate_up_proj(x).chunk(2, -1) if hasattr(mlp, "gate_up_proj") else None
        gate, up = both or (mlp.gate_proj(x), mlp.up_proj(x))
        return mlp.down_proj(changed(functional.silu(gate), mask[layer], means[layer], mode, factor) * up)

    names = [f"blocks.{layer}.mlp.{end}" for layer in range(2) for end in ("hook_in", "hook_out")]
    seen = {}
    keep = [(name, lambda activation, hook=None, name=name: seen.update({name: activation})) for name in names]
    with torch.no_grad():
        before = model(ids[None])
        with mw.ablate(model, neurons, mode, values=firing, factor=factor), hooked(model, keep):
            after = model(ids[None])
        for layer in range(2):
            x, out = (seen[f"blocks.{layer}.mlp.{end}"] for end in ("hook_in", "hook_out"))
            torch.testing.assert_close(out, by_hand(layer, x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(before, after, rtol=1e-2)
    assert torch.equal(model(ids[None]), before)


@HOOKED_ONLY
def test_neurons_outside_the_set_and_special_tokens_keep_every_bit():
    model, firing = spelled("llama"), firing_of("llama")
    ids = model.to_tokens("a b c")
    neurons = feed_forward_neurons(model)
    kept = []
    keep = [("blocks.0.mlp.hook_post", lambda activation, hook=None: kept.append(activation))]
    model.run_with_hooks(ids, fwd_hooks=keep)
    with mw.ablate(model, neurons, "add", values=firing, positions="content"):
        model.run_with_hooks(ids, fwd_hooks=keep)
    before, after = kept
    same, mask = before == after, neurons.masks["mlp"][0]
    assert same[:, 0].all()
    assert same[..., ~mask].all()
    assert not same[:, 1:, mask].any()


@HOOKED_ONLY
def test_hooks_go_together_with_those_of_the_user_and_of_other_sets():
    """u is what hooks before these leave of it; two directions that are added are added both."""
    model, ids, firing = tiny("llama"), tokens(9), firing_of("llama")
    neurons = feed_forward_neurons(model)
    double = [(f"blocks.{layer}.mlp.hook_pre_linear", lambda u, hook=None: 2 * u) for layer in range(2)]
    twice = neurons.hooks("replace", values=replace(firing.gate_values("fr"), biases=None))
    once = neurons.hooks("replace", values=firing.gate_values("fr"))
    seen = []
    keep = [("blocks.0.mlp.hook_post", lambda activation, hook=None: seen.append(activation))]
    for hooks in ([*double, *twice], [*once]):
        with hooked(model, [*hooks, *keep]):
            model(ids)
    mask = neurons.masks["mlp"][0]
    bias = model.blocks[0].mlp.b_in[mask]
    torch.testing.assert_close(seen[0][..., mask], 2 * (seen[1][..., mask] - bias), rtol=1e-10, atol=1e-12)

    whole = neurons.hooks("add", values=firing.gate_values("fr", against=["zh", "en"]), factor=2.0)
    parts = [
        *neurons.hooks("add", values=firing, language="fr", factor=2.0),
        *neurons.hooks("add", values=firing, language="zh", factor=-1.0),
        *neurons.hooks("add", values=firing, language="en", factor=-1.0),
    ]
    logits = [model.run_with_hooks(ids, fwd_hooks=hooks) for hooks in (whole, parts)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
    others = firing.gate_values("fr", against="others")
    assert torch.equal(others.values, firing.gate_values("fr", against=["zh", "en"]).values)


@HOOKED_ONLY
@pytest.mark.parametrize("mode", MODES)
def test_step_by_step_with_a_cache_the_logits_are_the_same(mode):
    from transformer_lens import TransformerLensKeyValueCache

    model, ids, firing = tiny("gemma3"), tokens(8)[None], firing_of("gemma3")
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", batch_size=1)
    with mw.ablate(model, feed_forward_neurons(model), mode, values=firing):
        whole = model(ids)
        parts = [ids[:, :5], ids[:, 5:6], ids[:, 6:]]
        steps = [model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part)) for part in parts]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-10, atol=1e-10)


@HOOKED_ONLY
def test_an_effect_matrix_adds_each_sets_own_language(tmp_path):
    model, firing, neurons = tiny("gpt2"), firing_of("gpt2"), feed_forward_neurons(tiny("gpt2"))
    sets = {"fr": neurons, "zh": mw.NeuronSet(neurons.space, neurons.masks, {"language": "zh"})}
    options = {"mode": "add", "values": firing, "checkpoint": tmp_path, **QUIET}
    effects = mw.effect_matrix(model, sets, CORPUS, **options)
    assert effects.settings["mode"] == "add"
    ids = CORPUS["en"][0]
    for name in sets:
        hooks = neurons.hooks("add", values=firing.gate_values(name))
        logits = model.run_with_hooks(ids, fwd_hooks=hooks)[0].log_softmax(-1)
        nats = -logits[:-1].gather(1, ids[1:, None]).sum()
        torch.testing.assert_close(effects.nats[name]["en"][0, 0], nats, rtol=1e-9, atol=0)


@HOOKED_ONLY
def test_what_firing_says_of_gates_is_saved_and_merged(tmp_path):
    model, whole = tiny("llama"), firing_of("llama")
    parts = [mw.collect_firing(model, CORPUS, shard=(i, 2), batch_size=1, **QUIET) for i in range(2)]
    merged = mw.Firing.merge(parts)
    merged.save(tmp_path / "firing")
    for firing in (merged, mw.Firing.load(tmp_path / "firing")):
        assert list(firing.gated) == [True, True]
        assert torch.equal(firing.biases, torch.stack([block.mlp.b_in for block in model.blocks]))
        torch.testing.assert_close(firing.gate_values("fr").values, whole.means("fr"))
    with pytest.raises(ValueError, match="part of a corpus"):
        parts[0].gate_values("en")
    with pytest.raises(ValueError, match="gates differ"):
        mw.Firing.merge([parts[0], replace(parts[1], biases=None)])
    assert list(firing_of("gpt2").gated) == [False, False]


@HOOKED_ONLY
def test_bad_options_are_refused_at_once():
    model, firing = tiny("llama"), firing_of("llama")
    neurons, everything = feed_forward_neurons(model), some_neurons(model)
    values, means = firing.gate_values("fr"), mw.collect_means(model, CORPUS, **QUIET)
    for message, which, mode, options in [
        ("needs values=, e.g. collect_firing", neurons, "add", {}),
        ("a factor belongs to 'scale', which needs one, and to 'add'", neurons, "replace", {"factor": 2.0}),
        ("needs values of collect_firing, not Activations", neurons, "add", {"values": means}),
        ("needs values of collect_firing, not dict", neurons, "replace", {"values": {"mlp": values.values}}),
        ("needs values of collect_means, not Firing", neurons, "mean", {"values": firing}),
        (r"the set has \d+ of q: restrict\(sites=\['mlp'\]\)", everything, "add", {"values": firing, "language": "fr"}),
        ("'th'; there are fr, zh, en", neurons, "add", {"values": firing, "language": "th"}),
        ("language='zh': GateValues are of one language", neurons, "add", {"values": values, "language": "zh"}),
        ("needs language=", neurons & neurons, "add", {"values": firing}),
        ("do not fit", neurons, "add", {"values": firing_of("gpt2")}),
    ]:
        with pytest.raises(ValueError, match=message):
            mw.ablate(model, which, mode, **options)
    for against in ("fr", ["fr", "en"], [], ["th"]):
        with pytest.raises(ValueError, match=r"against=|'th'"):
            firing.gate_values("fr", against=against)
    with pytest.raises(ValueError, match=r"values have shape \(1, 20\)"):
        replace(values, values=values.values[:1], biases=None)


@HOOKED_ONLY
def test_values_of_gates_are_refused_where_no_product_shows():
    model, of_gates = tiny("gpt2"), replace(firing_of("gpt2").gate_values("fr"), gated=[True, True])
    hooks = feed_forward_neurons(model).hooks("add", values=of_gates)
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.0\.mlp\.hook_pre_linear'"):
        mw.ablate(model, feed_forward_neurons(model), "add", values=of_gates).__enter__()
    alone = [(name, function) for name, function in hooks if name.endswith("hook_post")]
    with pytest.raises(
        ValueError, match=r"values are of gated neurons, and blocks\.0\.mlp\.hook_pre_linear shows none"
    ):
        model.run_with_hooks(tokens(4), fwd_hooks=alone)
