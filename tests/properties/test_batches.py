"""Batch size, order, padding and which documents share a batch do not matter."""

import random

import torch

import mwork_lens as mw

from ..decoders import decoder_model
from ..tiny import some_neurons
from . import QUIET, documents, rows

RELATIVE = 1e-5
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Of losses: transformers computes norms and rotary angles in float32, whatever the model's type."""


def close_to_the_cut(model, texts, site, top):
    """On how many documents each neuron's score lies within rounding of the lowest that is active."""
    close = 0
    for ids in texts:
        scores = mw.importance(model, ids, verify=False)[site]
        cut = scores.topk(max(1, int(top * scores.shape[1]))).values[:, -1:]
        close = close + ((scores / cut - 1).abs() < RELATIVE).int()
    return close


@rows()
def test_batches_move_no_score_no_loss_and_no_count(row):
    model, texts, draw = decoder_model(row), documents(row), random.Random(0)
    neurons = {"some": some_neurons(model)}
    options = {"scores": "exact", "verify": False, **QUIET}
    alone = mw.detect(model, {"a": texts}, batch_size=1, **options)
    nats = mw.effect_matrix(model, neurons, {"a": texts}, batch_size=1, **QUIET).nats["some"]["a"][0]
    for batch_size in (2, 5):
        order = draw.sample(range(len(texts)), len(texts))
        corpus = {"a": [texts[i] for i in order], "b": [texts[order[0]]]}
        found = mw.detect(model, corpus, batch_size=batch_size, **options)
        for site in row.sites:
            torch.testing.assert_close(
                found.mean_scores["a"][site], alone.mean_scores["a"][site], rtol=RELATIVE, atol=1e-12
            )
            moved = (found.counts["a"][site] - alone.counts["a"][site]).abs()
            if moved.any():
                assert (moved <= close_to_the_cut(model, texts, site, top=0.2)).all()
        losses = mw.effect_matrix(model, neurons, corpus, batch_size=batch_size, **QUIET).nats["some"]["a"][0]
        torch.testing.assert_close(losses, nats[order], rtol=ROUNDING[row.dtype], atol=0)


@rows()
def test_batches_change_no_completion(row):
    """Padding is on the left there."""
    model, texts = decoder_model(row), [ids[:12] for ids in documents(row)]
    alone = [
        completion.tokens for completion in mw.generate(model, texts, max_new_tokens=5, use_cache=False, batch_size=1)
    ]
    for order in ([4, 0, 3, 1, 2], [1, 2, 0, 4, 3]):
        together = mw.generate(
            model, [texts[i] for i in order], max_new_tokens=5, use_cache=False, batch_size=len(texts)
        )
        assert [completion.tokens for completion in together] == [alone[i] for i in order]
