"""What a model does at its end, on bridges and HookedTransformers: the same logits in everything that reads them."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

import mwork_lens as mw
from mwork_lens.model import (
    all_logits,
    differentiable_logits,
    label_masses,
    lm_head,
    log_normalizer,
    require_same_readout,
    run_blocks,
    token_losses,
    top_tokens,
    wrapped_model,
)

from ..decoders.a_to_gr import GPT, GROUPED, SIZES
from ..decoders.h_to_z import IDS, OPT, WIDE
from ..decoders.row import GENERATION, Decoder, decoder_model, document

CAP = {"final_logit_softcapping": 3.0}
HEADS = (
    Decoder("LlamaForCausalLM", GROUPED),
    Decoder("CohereForCausalLM", {**GROUPED, **IDS, "logit_scale": 0.3}, generations=("4.3",)),
    Decoder("Cohere2ForCausalLM", {**GROUPED, **IDS, "logit_scale": 3.0}, generations=("4.3",)),
    Decoder("GraniteForCausalLM", {**GROUPED, **IDS, "logits_scaling": 3.0}),
    Decoder("Gemma2ForCausalLM", {**WIDE, **IDS, **CAP}),
    Decoder("VaultGemmaForCausalLM", {**WIDE, **IDS, **CAP}),
    Decoder("NanoChatForCausalLM", {**GROUPED, **IDS, **CAP}),
    Decoder("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 50, "logit_scale": 3.0}),
    Decoder("OPTForCausalLM", OPT),
    Decoder("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "narrow embedding"),
    Decoder("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 16}, "norm, narrow embedding"),
    Decoder("ModernBertDecoderForCausalLM", {**SIZES, **IDS, "decoder_bias": True}),
    Decoder("GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    Decoder("PhiForCausalLM", {**SIZES, **IDS}),
)
ROWS = [row for row in HEADS if GENERATION in row.generations]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_reads_logits_reads_the_models_own(row):
    model, ids = decoder_model(row), document(row, 12)
    with torch.inference_mode():
        own = (wrapped_model(model) or model)(ids[None])
        logits = getattr(own, "logits", own)[0]
        last = run_blocks(model, ids[None])[0]

        def same(value, expected):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))

        same(all_logits(model, last), logits)
        same(differentiable_logits(model, last), logits)
        same(token_losses(model, last[:-1], ids[1:]), cross_entropy(logits[:-1], ids[1:], reduction="none"))
        same(log_normalizer(model, last), logits.logsumexp(-1))
        values, top = top_tokens(model, last, 5)
        same(values, logits.topk(5).values)
        assert torch.equal(top, logits.topk(5).indices)
        members = one_hot(torch.arange(50) % 3).t().double()
        same(label_masses(model, last, members), logits.softmax(-1) @ members.t())
        assert all_logits(model, last, normalize=False).isfinite().all()
    require_same_readout(model)


@pytest.mark.parametrize("row", ROWS[:4], ids=str)
def test_single_precision(row):
    model, ids = decoder_model(row, torch.float32), document(row, 12)
    with torch.inference_mode():
        own = (wrapped_model(model) or model)(ids[None])
        logits = getattr(own, "logits", own)[0]
        difference = all_logits(model, run_blocks(model, ids[None])[0]) - logits
    assert difference.abs().max() < 1e-5 * logits.abs().max()


def granite(**options):
    return decoder_model(Decoder("GraniteForCausalLM", {**GROUPED, **IDS, **options}))


def test_a_head_that_is_read_wrongly_is_refused_before_anything_is_computed(monkeypatch):
    model = granite(logits_scaling=3.0)
    monkeypatch.setattr(lm_head, "_SCALES", {})
    with pytest.raises(ValueError, match=r"logits of GraniteForCausalLM cannot be computed.*\(by 2 of the largest\)"):
        mw.detect(model, {"fr": [torch.arange(3, 9)]}, progress=False)


def test_a_scale_that_turns_the_order_of_logits_round_is_refused():
    model = granite(logits_scaling=3.0)
    wrapped_model(model).config.logits_scaling = -3.0
    with pytest.raises(ValueError, match=r"multiplies its logits by -0\.333333, which has to be above 0"):
        top_tokens(model, torch.zeros(1, 32, dtype=torch.float64), 3)


def test_neurons_before_a_nonlinear_head_promote_no_tokens():
    (row,) = (row for row in HEADS if row.architecture == "ModernBertDecoderForCausalLM")
    with pytest.raises(ValueError, match="a dense layer with a nonlinearity before its unembedding"):
        mw.inspect(decoder_model(row), [(0, "mlp", 1)], {"fr": [torch.arange(3, 9)]})
