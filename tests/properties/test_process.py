"""Settings of the process that would change results do not, or are refused."""

import copy

import pytest
import torch

import mwork_lens as mw

from ..decoders import decoder_model
from ..tiny import some_neurons
from . import QUIET, documents, rows

ONE = ("LlamaForCausalLM",)


@pytest.fixture(params=["high", "medium"])
def rounded_products(request):
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


@rows(ONE, only=True)
def test_products_are_not_rounded(row, rounded_products):
    """Some processors then multiply in bfloat16, and GPUs in TF32."""
    preferred = lambda: (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)  # noqa: E731
    model, corpus, within = decoder_model(row, torch.float32), {"a": documents(row)}, []
    before, neurons = preferred(), some_neurons(model)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: within.append(preferred()) or x)]):
        mw.effect_matrix(model, {"some": neurons}, corpus, **QUIET)
    assert {*within} == {("ieee", "ieee")}
    assert preferred() == before
    assert torch.get_float32_matmul_precision() == rounded_products


@rows(ONE, only=True)
def test_another_default_device_is_said(row):
    model, corpus = decoder_model(row, torch.float32), {"a": documents(row)}
    neurons = some_neurons(model)
    calls = {
        "detect": lambda: mw.detect(model, corpus, **QUIET),
        "generate": lambda: mw.generate(model, corpus["a"], max_new_tokens=1),
        "ablate": lambda: mw.ablate(model, neurons).__enter__(),
        "edit": lambda: mw.edit_weights(model, neurons).__enter__(),
        "losses": lambda: mw.language_losses(model, corpus),
    }
    expected = calls["losses"]()
    with torch.device("meta"):
        for call in calls.values():
            with pytest.raises(ValueError, match=r"New tensors go to meta by default .*with torch.device\('cpu'\)"):
                call()
        with torch.device("cpu"):
            assert calls["losses"]().equals(expected)


@rows((*ONE, "SmolLM3ForCausalLM"), only=True)
def test_a_compiled_model_is_refused(row):
    """Compiled code may leave out hooks that were added since."""
    model, corpus = decoder_model(row), {"a": documents(row)}
    neurons, within = some_neurons(model), copy.deepcopy(model)
    message = r"The model is compiled \(torch.compile\)"
    within.blocks[0].attn.compile()
    for compiled in (torch.compile(model), within):
        for call in (
            lambda m=compiled: mw.language_losses(m, corpus),
            lambda m=compiled: mw.detect(m, corpus, **QUIET),
            lambda m=compiled: mw.ablate(m, neurons).__enter__(),
            lambda m=compiled: mw.edit_weights(m, neurons).__enter__(),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    mw.language_losses(model, corpus)
