import copy

import pytest
import torch

from mwork_lens.model.unembedding import all_logits, label_masses, log_normalizer, token_losses, top_tokens

from ..tiny import FAMILIES, residual, tiny, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_reads_the_models_own_logits(family):
    model, ids = tiny(family), tokens(20)
    logits = model(ids[None])[0]
    last = residual(model, ids, 2)
    values, top = top_tokens(model, last, 7)
    assert torch.equal(top, logits.topk(7).indices)
    torch.testing.assert_close(values, logits.topk(7).values)
    log_probabilities = all_logits(model, last) - log_normalizer(model, last)[:, None]
    torch.testing.assert_close(log_probabilities, logits.log_softmax(-1))


def test_a_soft_cap_on_the_logits_counts():
    cfg = tiny("gemma2").cfg
    cfg.output_logits_soft_cap, before = 2.0, cfg.output_logits_soft_cap
    try:
        test_the_last_layer_reads_the_models_own_logits("gemma2")
    finally:
        cfg.output_logits_soft_cap = before


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_are_an_error_of_everything_that_reads_them(value):
    model, ids = copy.deepcopy(tiny("llama")), tokens(6)
    model.unembed.W_U.data[0, 7] = value
    last = residual(model, ids, 2)
    members = torch.ones(1, model.cfg.d_vocab, dtype=last.dtype)
    uses = [lambda: token_losses(model, last, ids), lambda: log_normalizer(model, last)]
    uses += [lambda: label_masses(model, last, members), lambda: top_tokens(model, last, 3)]
    for use in uses:
        with pytest.raises(ValueError, match=r"The logits of .* are not numbers"):
            use()


def test_a_token_without_a_logit_has_no_loss():
    """Models made for an exercise may write fewer tokens than they read."""
    model = copy.deepcopy(tiny("llama"))
    model.unembed.W_U.data = model.unembed.W_U.data[:, :20]
    model.unembed.b_U.data = model.unembed.b_U.data[:20]
    with pytest.raises(ValueError, match="has no logit for token 20: its unembedding has 20 of"):
        token_losses(model, residual(model, tokens(2), 2), torch.tensor([3, 20]))


@pytest.mark.parametrize("k", [1, 3, 20, 700])
def test_parts_of_the_vocabulary_give_the_exact_top(monkeypatch, k):
    """Chunks of every size, a remainder that fills no group, and more than a part holds."""
    model = copy.deepcopy(tiny("llama"))
    monkeypatch.setattr("mwork_lens.model.unembedding.TOKENS_AT_ONCE", 301)
    monkeypatch.setattr("mwork_lens.model.unembedding.ROWS_AT_ONCE", 4)
    monkeypatch.setattr("mwork_lens.model.unembedding.GROUP", 8)
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(24, 1003, generator=generator, dtype=torch.float64)
    model.unembed.W_U = torch.nn.Parameter(unembedding)
    model.unembed.b_U = torch.nn.Parameter(torch.linspace(-1, 1, 1003, dtype=torch.float64))
    hidden = torch.randn(9, 24, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        logits = model.unembed(model.ln_final(hidden[None]))[0]
        values, ids = top_tokens(model, hidden, k)
        assert torch.equal(ids, logits.topk(k).indices)
        torch.testing.assert_close(values, logits.topk(k).values)
        members = torch.nn.functional.one_hot(torch.arange(1003) % 3).t().double()
        masses = label_masses(model, hidden, members)
        torch.testing.assert_close(masses, logits.softmax(-1) @ members.t())
