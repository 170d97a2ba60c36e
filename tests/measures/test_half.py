"""Patterns in half precision, whose softmax loses small weights: the scores of the weights themselves."""

import os
from contextlib import suppress

import pytest
import torch

from mwork_lens.measures.plnd.attention import READS, Geometry
from mwork_lens.measures.plnd.qk_dense import exact_squares
from mwork_lens.model import TokenBatch

from ..tiny import tiny, tokens

LENGTH = 24
BACKENDS = ["plain", "triton"]


def loud(family, factor, dtype):
    """What hook points show where attention lies ``factor`` times as far apart: in a dtype, and before rounding."""
    model, ids = tiny(family, torch.float32), tokens(LENGTH)[None]
    _, cache = model.run_with_cache(ids)
    geometry = Geometry.of(model, 1)
    q, k, pattern = (cache[f"blocks.1.{name}"] for name in READS)
    q, k, content = (q * factor).to(dtype), k.to(dtype), torch.ones(LENGTH, dtype=torch.bool)
    attention = geometry.attention(q[0].double(), k[0].double(), pattern[0].double(), content)
    scores, cap = attention.scores, geometry.cap
    scores = cap * torch.tanh(scores / cap) if cap else scores
    weights = scores.masked_fill(pattern[0] == 0, -torch.inf).softmax(-1)
    truth = geometry.attention(q[0].double(), k[0].double(), weights, content)
    return geometry, dict(zip(READS, (q, k, weights[None].to(dtype)), strict=True)), truth


def squares(backend, geometry, seen):
    batch = TokenBatch(
        torch.zeros(1, LENGTH, dtype=torch.int64), torch.ones(1, LENGTH, dtype=torch.bool), (LENGTH,), (0,)
    )
    if backend == "triton":
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("Triton compiles on this machine")
        from mwork_lens.measures.plnd.batched import pattern_squares

        return {site: each[0] for site, each in pattern_squares(geometry, seen, batch).items()}
    (attention,) = geometry.documents(seen, batch)
    return {site: exact_squares(attention, site) for site in ("q", "k")}


@pytest.mark.parametrize("factor", [1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_half_precision_lost_come_back(backend, dtype, factor):
    geometry, seen, truth = loud("llama", factor, dtype)
    if dtype == torch.float16 and factor > 1:
        assert (truth.pattern[truth.pattern > 0] < torch.finfo(dtype).tiny).any()
    for site, ours in squares(backend, geometry, seen).items():
        score, wanted = ours.double().sqrt(), exact_squares(truth, site).sqrt()
        error = (score - wanted).abs() / wanted.clamp(min=1e-3 * wanted.max())
        assert error.max() < 8 * torch.finfo(dtype).eps, site


@pytest.mark.parametrize("backend", ["plain", "triton"])
def test_in_a_window_lost_weights_are_right_or_said(backend):
    """Which keys a window hides cannot be told from those that float16 lost; the kernels say so with a NaN."""
    geometry, seen, truth = loud("mistral", 12, torch.float16)
    ours: dict = {}
    with suppress(ValueError):
        ours = squares(backend, geometry, seen)
    for site, each in ours.items():
        wanted, told = exact_squares(truth, site).sqrt(), ~each.isnan()
        assert ((each.double().sqrt() - wanted).abs()[told] <= 2e-2 * wanted.max()).all()
