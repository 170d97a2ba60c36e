import contextlib
import copy
import warnings

import pytest
import torch
import transformers

import mwork_lens as mw
from mwork_lens.model import SITES, weight
from mwork_lens.neurons.weights import Entries

from ..tiny import FAMILIES, SMALL, small_model, some_neurons, tiny, tokens, words

OTHERS = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24},
    "GPTNeoX": {},
    "Bloom": {"n_layer": 2, "n_head": 4, "intermediate_size": 64},
    "Phi3": {"pad_token_id": 0, "num_key_value_heads": 2},
    "Gemma3": {"num_key_value_heads": 2, "head_dim": 4},
    "GraniteMoeHybrid": {
        "layer_types": ["attention", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 20,
        "position_embedding_type": "rope",
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_weights_give_the_logits_of_zeroing_hooks(family):
    model, neurons, ids = tiny(family), some_neurons(tiny(family)), tokens(11)
    before, weights = model(ids), copy.deepcopy(model.state_dict())
    with mw.ablate(model, neurons):
        hooked = model(ids)
    with mw.edit_weights(model, neurons):
        torch.testing.assert_close(model(ids), hooked, rtol=1e-10, atol=1e-12)
        assert any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not torch.allclose(hooked, before)
    assert torch.equal(model(ids), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_weights_are_restored_bit_for_bit_after_an_error_and_when_nested():
    model, ids = tiny("gemma3", torch.bfloat16), tokens(9)
    a, b, before = some_neurons(model, seed=1), some_neurons(model, seed=2), model(ids)
    with mw.edit_weights(model, a | b):
        both = model(ids)

    def fail():
        with mw.edit_weights(model, a), mw.edit_weights(model, b):
            assert torch.equal(model(ids), both)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("first_left", ["outer", "inner"])
def test_ctrl_c_at_any_write_puts_every_weight_back(monkeypatch, first_left):
    """Also within the clean-up, and where two edits share weights and are left in either order."""
    model = tiny("llama")
    a, b = some_neurons(model, seed=1), some_neurons(model, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write, calls = Entries.write, []

    def change(at):
        def interrupted(self, values):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            write(self, values)

        calls.clear()
        monkeypatch.setattr(Entries, "write", interrupted)
        outer, inner = mw.edit_weights(model, a), mw.edit_weights(model, b)
        with contextlib.ExitStack() as stack:
            stack.enter_context(outer)
            stack.enter_context(inner)
            if first_left == "outer":
                stack.pop_all()
                stack.push(inner)
                stack.push(outer)

    change(0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(calls) > 20
    for at in range(1, len(calls) + 1):
        with pytest.raises(KeyboardInterrupt):
            change(at)
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same), at


def test_only_the_sets_weights_change():
    model = tiny("llama")
    neurons = mw.NeuronSet.from_list(mw.NeuronSpace.of(model), [(1, "k", 9), (0, "mlp", 3)])
    with mw.edit_weights(model, neurons):
        assert (weight(model, 1, "attn.W_K")[1, :, 1] == 0).all()
        assert (weight(model, 0, "mlp.W_out")[3] == 0).all()
        zeros = sum(
            int((weight(model, layer, part.weight) == 0).sum())
            for layer in range(2)
            for s in SITES.values()
            for part in s.silencing
            if ".W_" in part.weight
        )
    assert zeros == 2 * model.cfg.d_model


def raw_bridge(kind):
    config = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")
    theirs = transformers.AutoModelForCausalLM.from_config(
        config(**{**SMALL, "num_key_value_heads": 4, **OTHERS[kind]}), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        tokenizer = words()
        tokenizer.init_kwargs |= {"name_or_path": kind, "add_bos_token": True}
        theirs.config.architectures = [type(theirs).__name__]
        bridge = TransformerBridge.boot_transformers(kind, hf_model=copy.deepcopy(theirs), tokenizer=tokenizer)
        return mw.load_model(bridge), theirs


@pytest.mark.parametrize("kind", OTHERS)
def test_raw_bridges_are_edited_and_exported(kind, tmp_path):
    """Fused projections and Conv1D layouts included."""
    model, theirs = raw_bridge(kind)
    neurons, ids = some_neurons(model), tokens(9)[None]
    before = theirs(ids).logits
    with mw.ablate(model, neurons):
        hooked = model(ids)
    with mw.edit_weights(model, neurons):
        torch.testing.assert_close(model(ids), hooked, rtol=1e-5, atol=1e-5)
    mw.export_edited(model, neurons, tmp_path / "edited", source=theirs, tokenizer=words())
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "edited", attn_implementation="eager")
    torch.testing.assert_close(exported(ids).logits, hooked, rtol=1e-4, atol=1e-4)
    assert torch.equal(theirs(ids).logits, before)
    assert mw.NeuronSet.load(tmp_path / "edited" / "neurons") == neurons


def test_an_exported_directory_loads_as_the_edited_model(tmp_path):
    theirs = small_model("Llama")
    theirs.save_pretrained(tmp_path / "source")
    words().save_pretrained(tmp_path / "source")
    model = mw.load_model(tmp_path / "source", device="cpu")
    neurons, ids = some_neurons(model), tokens(9)
    mw.export_edited(model, neurons, tmp_path / "edited", source=tmp_path / "source")
    with mw.ablate(model, neurons):
        hooked = model(ids)
    torch.testing.assert_close(mw.load_model(tmp_path / "edited", device="cpu")(ids), hooked, rtol=1e-4, atol=1e-5)
    with pytest.raises(FileExistsError):
        mw.export_edited(model, neurons, tmp_path / "edited", source=tmp_path / "source")


def test_an_exported_model_is_compared_without_rounded_products(tmp_path):
    """Whatever the process prefers: else it would differ where a processor multiplies in bfloat16."""
    theirs, precisions = small_model("Llama"), []
    model = mw.load_model(theirs, device="cpu")

    def read(module, *_):
        if isinstance(module, type(theirs)):
            precisions.append(torch.backends.mkldnn.matmul.fp32_precision)

    seen = torch.nn.modules.module.register_module_forward_hook(read)
    torch.set_float32_matmul_precision("medium")
    try:
        mw.export_edited(model, some_neurons(model), tmp_path / "edited", source=theirs, tokenizer=words())
    finally:
        torch.set_float32_matmul_precision("highest")
        seen.remove()
    assert {*precisions} == {"ieee"}


def test_another_models_weights_are_not_exported(tmp_path):
    model = mw.load_model(small_model("Llama"), device="cpu")
    other = small_model("Llama")
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="standard deviation"):
        mw.export_edited(model, some_neurons(model), tmp_path / "edited", source=other, tokenizer=words())
    assert not (tmp_path / "edited").exists()
