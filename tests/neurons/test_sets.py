import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mwork_lens as mw
from mwork_lens.model.sites import SITES
from mwork_lens.neurons import Fingerprint, NeuronSet, NeuronSpace, ablate, warn_of_other_weights

from ..made_up import LABELS, SPACE, members, neuron_set
from ..tiny import spelled, tiny

WIDTHS = {"q": 12, "k": 6, "v": 6, "mlp": 5}
LAYERS = range(3)
ALL = {(layer, site, index) for site, width in WIDTHS.items() for layer in LAYERS for index in range(width)}

triples = st.sets(st.sampled_from(sorted(ALL)))


@settings(deadline=None, max_examples=40)
@given(triples, triples)
def test_algebra_is_that_of_python_sets(a, b):
    x, y = neuron_set(a), neuron_set(b)
    results = [(x, a), (x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (x - y, a - b), (~x, ALL - a)]
    for found, expected in results:
        assert members(found) == expected
        assert len(found) == len(expected)
        assert {neuron for neuron in ALL if neuron in found} == expected
        assert found == neuron_set(expected)
    assert (x == y) == (a == b)


@settings(deadline=None, max_examples=40)
@given(triples, st.sets(st.sampled_from(LAYERS)), st.sets(st.sampled_from(list(WIDTHS))))
def test_restrict_keeps_the_chosen_layers_and_sites(a, layers, sites):
    expected = {(layer, site, index) for layer, site, index in a if layer in layers and site in sites}
    assert members(neuron_set(a).restrict(layers=layers, sites=sites)) == expected


@settings(deadline=None, max_examples=40)
@given(triples)
def test_tables_hold_every_neuron_once(a):
    neurons = neuron_set(a)
    frame, counts = neurons.to_frame(), neurons.counts()
    assert len(frame) == len(a)
    assert set(zip(frame["layer"], frame["site"], frame["neuron"], strict=True)) == a
    assert all(frame["structure"] == frame["site"].map(lambda site: SITES[site].structure))
    heads = frame[frame["head"].notna()]
    assert set(heads["site"]) == {site for _, site, _ in a} - {"mlp"}
    assert all(heads["head"] * SPACE.d_head + heads["index"] == heads["neuron"])
    assert all(heads["index"] < SPACE.d_head)
    per_cell = Counter((layer, site) for layer, site, _ in a)
    assert all(counts.loc[layer, site] == per_cell[layer, site] for layer in LAYERS for site in WIDTHS)


@pytest.mark.parametrize("outside", [(-1, "mlp", 0), (3, "mlp", 0), (0, "mlp", -1), (0, "k", 6), (0, "gate", 0)])
def test_neurons_that_the_model_lacks(outside):
    assert outside not in ~NeuronSet.empty(SPACE)
    with pytest.raises(ValueError, match="made-up has no neuron") as error:
        neuron_set([(0, "q", 0), outside])
    assert str(outside) in str(error.value)


def test_restrict_refuses_layers_and_sites_that_are_not_there():
    everything = ~NeuronSet.empty(SPACE)
    with pytest.raises(ValueError, match="not 3"):
        everything.restrict(layers=[0, 3])
    with pytest.raises(ValueError, match="'gate'"):
        everything.restrict(sites=["q", "gate"])


@pytest.mark.parametrize("chosen", [set(), {(0, "q", 11), (2, "mlp", 4), (1, "v", 0)}, ALL])
def test_save_and_load_round_trip(tmp_path, chosen):
    origin = {"language": "fr", "kind": "specific", "against": ["en", "zh-Hant"], "quorum": 0.9, "seed": 3}
    saved = neuron_set(chosen, **origin).restrict(layers=LAYERS)
    saved.save(tmp_path / "set")
    loaded = NeuronSet.load(tmp_path / "set")
    assert loaded == saved
    assert members(loaded) == chosen
    assert dict(loaded.origin) == {**origin, "layers": [0, 1, 2], "sites": list(WIDTHS)}
    assert repr(loaded) == repr(saved)


def test_save_never_overwrites(tmp_path):
    neuron_set({(0, "q", 0)}).save(tmp_path / "set")
    with pytest.raises(FileExistsError, match="set exists already"):
        neuron_set(ALL).save(tmp_path / "set")
    assert members(NeuronSet.load(tmp_path / "set")) == {(0, "q", 0)}
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        NeuronSet.load(tmp_path / "elsewhere")


def test_what_a_set_was_made_from_can_change_without_it():
    masks = {site: torch.zeros(3, width, dtype=torch.bool) for site, width in WIDTHS.items()}
    origin = {"language": "fr"}
    neurons = NeuronSet(SPACE, masks, origin)
    masks["q"][0, 0] = True
    masks.pop("mlp")
    origin["language"] = "en"
    assert members(neurons) == set()
    assert list(neurons.masks) == list(WIDTHS)
    assert neurons.origin["language"] == "fr"


@pytest.mark.parametrize("change", [{"d_mlp": 6}, {"n_layers": 4}, {"n_key_value_heads": 4}])
def test_sets_of_other_sizes_are_refused(change):
    other = NeuronSet.empty(replace(SPACE, **change, model="larger"))
    with pytest.raises(ValueError, match=r"made-up .* do not fit larger"):
        neuron_set(ALL) | other
    with pytest.raises(ValueError, match="do not fit made-up"):
        NeuronSet(SPACE, other.masks)
    with pytest.raises(ValueError, match="do not fit tiny-llama"):
        ablate(tiny("llama"), other)


@pytest.mark.usefixtures("unchecked")
def test_only_a_set_is_ablated():
    for wrong in (None, {"mlp": [1]}, [neuron_set(ALL)]):
        with pytest.raises(ValueError, match=r"neurons=.*: it must be a NeuronSet"):
            ablate(tiny("llama"), wrong)


@pytest.mark.parametrize("change", [{"model": "finetuned"}, {"processing": "norms folded"}])
def test_the_same_sizes_in_another_model_warn(change):
    other = neuron_set({(0, "q", 0)}, replace(SPACE, **change))
    with pytest.warns(UserWarning, match=next(iter(change.values()))):
        both = neuron_set({(1, "k", 2)}) | other
    assert members(both) == {(0, "q", 0), (1, "k", 2)}


def test_one_model_on_another_of_the_same_sizes_warns():
    neurons = neuron_set({(0, "q", 0)}, NeuronSpace.of(tiny("llama")))
    with pytest.warns(UserWarning, match="tiny-llama .* used with tiny-mistral"):
        ablate(tiny("mistral"), neurons)


def test_other_weights_under_the_same_name_warn_where_much_is_read(tmp_path):
    model, text = spelled("llama"), {"en": ["a b c d a b"]}
    neurons = mw.detect(model, text, progress=False).active("en")
    both = {**text, "zh": ["e f g h"]}
    means = mw.collect_means(model, both, progress=False)
    steering = {"toward": "zh", "away": "en", "identify": "script", "max_new_tokens": 1, "progress": False}
    uses = [
        lambda model: mw.effect_matrix(model, {"en": neurons}, {"en": ["d a c b"]}, progress=False),
        lambda model: mw.tune(model, neurons, text["en"], steps=1, learning_rate=1e-2, progress=False).delta.revert(
            model
        ),
        lambda model: mw.generations(model, {"en": neurons}, text, identify="script", progress=False),
        lambda model: mw.inspect(model, neurons, text, token_languages=LABELS, progress=False),
        lambda model: mw.steer(model, dict.fromkeys(both, neurons), means, text["en"], **steering),
    ]
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.blocks[1].mlp.W_out[3] *= 1.1
    for use in uses:
        use(model)
        with pytest.warns(UserWarning, match="tiny-llama .* with other weights"):
            use(tuned)
    ablate(tuned, neurons)
    tuned.cfg.ungroup_grouped_query_attention = True  # of which a set would be refused
    warn_of_other_weights(tuned, [])
    tuned.cfg.ungroup_grouped_query_attention = False
    with pytest.warns(UserWarning, match="other weights"), pytest.raises(FileNotFoundError, match="no GGUF file"):
        mw.export_edited(tuned, neurons, tmp_path / "edited", source=tmp_path / "no.gguf", tokenizer=model.tokenizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_weights_in_another_dtype_are_the_same(dtype):
    model = tiny("llama", torch.bfloat16)
    prints = [Fingerprint.of(one) for one in (copy.deepcopy(model).to(torch.float32), copy.deepcopy(model).to(dtype))]
    assert prints[0].agrees(prints[1])
    assert not prints[0].agrees(Fingerprint.of(tiny("llama", torch.float32)))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("num_experts", 8, "mixture of experts"),
        ("load_in_4bit", True, "4-bit"),
        ("ungroup_grouped_query_attention", True, r"set_ungroup_grouped_query_attention\(False\)"),
        ("d_mlp", 19, "20 neurons in mlp.W_out of layer 0 where its configuration says 19"),
        ("n_key_value_heads", 4, "16 neurons in attn.W_K of layer 0 where its configuration says 32"),
    ],
)
def test_models_without_such_neurons_are_refused(field, value, reason):
    model = copy.deepcopy(tiny("llama"))
    assert NeuronSpace.of(model).widths == {"q": 32, "k": 16, "v": 16, "mlp": 20}
    setattr(model.cfg, field, value)
    with pytest.raises(ValueError, match=f"tiny-llama .*{reason}"):
        NeuronSpace.of(model)
