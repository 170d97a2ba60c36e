"""Fingerprints of weights: whatever holds them, in whatever order."""

import copy
import hashlib

import pytest
import torch

import mwork_lens as mw
from mwork_lens.model import Fingerprint, bridge_on, model_record, require_same_model, shown_model
from mwork_lens.model.bit_sums import bit_sums
from mwork_lens.neurons import NeuronSpace

from ..decoders import DECODERS, decoder_model
from ..decoders.row import transformers_model
from ..tiny import HOOKED, spelled
from ..words import words

ROWS = {str(row): row for row in DECODERS if not row.refused and row.can_be_built}
STORED = {
    "LlamaForCausalLM": lambda layer: (
        *(layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight),
        *(layer.mlp.up_proj.weight, layer.mlp.down_proj.weight),
    ),
    "GPT2LMHeadModel": lambda layer: (
        *(layer.attn.c_attn.weight.chunk(3, dim=1)[2], layer.attn.c_proj.weight),
        *(layer.mlp.c_fc.weight, layer.mlp.c_proj.weight),
    ),
    "Phi3ForCausalLM": lambda layer: (
        layer.self_attn.qkv_proj.weight[-layer.self_attn.num_key_value_heads * layer.self_attn.head_dim :],
        *(layer.self_attn.o_proj.weight, layer.mlp.gate_up_proj.weight.chunk(2)[1], layer.mlp.down_proj.weight),
    ),
    "GPTNeoXForCausalLM": lambda layer: (
        layer.attention.query_key_value.weight.unflatten(0, (layer.attention.config.num_attention_heads, 3, -1))[:, 2],
        *(layer.attention.dense.weight, layer.mlp.dense_h_to_4h.weight, layer.mlp.dense_4h_to_h.weight),
    ),
}
"""By architecture: W_V, W_O, W_in, W_out of a transformers layer; fused and interleaved ones taken apart."""


def sums(tensor):
    """By PyTorch, entry by entry."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts = tensor.contiguous(), tensor.bfloat16().contiguous()
    return tuple(int(part.view(integers[part.element_size()]).sum(dtype=torch.int64)) for part in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sums_of_bits_do_not_depend_on_layout(dtype):
    whole = (torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    whole[0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-30, 3.0, -1.5, 1 + 2**-9], dtype=dtype)
    huge = torch.randn(2, 700, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    for tensor in (whole, whole.transpose(0, 2), whole[:, :, 2:5], whole[1:, ::3], huge[:, :, 1:], huge[:, 1:].mT):
        assert bit_sums(tensor) == sums(tensor)


@pytest.mark.parametrize("name", STORED)
def test_fingerprints_are_of_the_weights_that_transformers_stores(name):
    theirs = transformers_model.__wrapped__(ROWS[name], torch.float32)
    stack = next(module for module in theirs.modules() if isinstance(module, torch.nn.ModuleList))
    by_kind = zip(*(STORED[name](layer) for layer in stack), strict=True)  # of all layers W_V, then W_O, ...
    totals = zip(*(sums(matrix.detach()) for kind in by_kind for matrix in kind), strict=True)
    hashes = (hashlib.sha256(repr([*part]).encode()).hexdigest()[:16] for part in totals)
    expected = Fingerprint("float32", *hashes)
    assert Fingerprint.of(decoder_model(ROWS[name], torch.float32)) == expected
    tokenizer = words()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    bridge = bridge_on(theirs, tokenizer)
    assert Fingerprint.of(bridge) == expected
    assert Fingerprint.of(bridge.to(torch.bfloat16)).agrees(expected)


@pytest.mark.skipif(not HOOKED, reason="folds the weights of a HookedTransformer")
def test_folded_weights_are_other_weights_and_say_so():
    model = spelled("llama")
    for block in model.blocks:
        block.ln1.w.data *= 1.5
        block.ln2.w.data *= 0.5
    folded = copy.deepcopy(model)
    folded.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    ours, theirs = (NeuronSpace.of(each, fingerprint=True) for each in (model, folded))
    assert not ours.fingerprint.agrees(theirs.fingerprint)
    with pytest.warns(UserWarning, match=r"\(unprocessed\) are used with .*\(norms folded\)"):
        ours.require_compatible(theirs)


def test_a_record_names_its_model_and_says_unknown_where_it_does_not_know():
    model = spelled("llama")
    record, exact = model_record(model), Fingerprint.of(model).exact
    assert record["dtype"] == "torch.float64"
    assert shown_model(record) == f"tiny-llama (float64 {exact[:8]})"
    older = {"model": "tiny-llama"}
    assert shown_model(older) == "tiny-llama (weights unknown)"
    with pytest.warns(
        UserWarning, match=f"run does not say .* tiny-llama .* unknown, and it goes on with float64 {exact}"
    ):
        require_same_model(older, record, "run", stacklevel=2)
    require_same_model(record, record, "run", stacklevel=2)


def test_results_show_the_weights_beside_the_name(tmp_path):
    model = spelled("llama")
    texts = {"en": ["a b c d", "b c a a"], "zh": ["e f g h", "h g f f"]}
    short = f"tiny-llama (float64 {Fingerprint.of(model).exact[:8]})"
    detection = mw.detect(model, texts, progress=False)
    means = mw.collect_means(model, texts, progress=False)
    others = {"en": ["d d c b a", "b b d a"], "zh": ["h h e g", "f e e h"]}
    effects = mw.effect_matrix(model, {"zh": detection.active("zh", quorum=0.5)}, others, progress=False)
    ratio = mw.language_ratio(model, texts, languages=["en", "zh"], identifier="script", directions=2, progress=False)
    for result in (detection, detection.active("zh"), means, ratio):
        assert short in repr(result)
    for result in (detection, means, effects, ratio):
        result.save(tmp_path / result.result_kind)
        assert Fingerprint.of(model).exact in (tmp_path / result.result_kind / "cfg.json").read_text(encoding="utf-8")
        identity = type(result).load(tmp_path / result.result_kind)._identity()
        assert identity["model"]["fingerprint"]["exact"] == Fingerprint.of(model).exact
