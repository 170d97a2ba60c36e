"""The released code's scores, which are there to be compared with."""

import pytest
import torch

import mwork_lens as mw
from mwork_lens.measures.plnd.published import released

from ..tiny import tiny, tokens


def test_the_released_scores_follow_their_definition():
    """One head at a time, from the model's hook points (Zhao et al. 2024, released code)."""
    model, document = tiny("llama"), tokens(19)
    _, cache = model.run_with_cache(document)
    scores = mw.importance(model, document, formulation="released")
    for layer in range(2):
        at = f"blocks.{layer}."
        q, k = (cache[at + f"attn.hook_rot_{name}"][0] for name in "qk")
        raw = cache[at + "attn.hook_attn_scores"][0]
        by_query_head = torch.empty(4, 8, dtype=torch.float64)
        for head in range(4):
            for d in range(8):
                delta = q[:, head, d, None] * k[None, :, head // 2, d]
                change = torch.softmax(raw[head] - delta, -1) - torch.softmax(raw[head], -1)
                by_query_head[head, d] = change.norm()
        flat = by_query_head.flatten()
        torch.testing.assert_close(scores["q"][layer], flat)
        # index // 2 of the query heads' list, as the released code takes it
        torch.testing.assert_close(scores["k"][layer], flat.view(16, 2).amax(-1))
        mixed = cache[at + "attn.hook_z"][0].abs().sum(0).flatten()
        torch.testing.assert_close(scores["v"][layer], mixed.view(16, 2).amax(-1))
        up = cache[at + "ln2.hook_normalized"][0] * model.blocks[layer].ln2.w @ model.blocks[layer].mlp.W_in
        torch.testing.assert_close(scores["mlp"][layer], up.abs().sum(0))


@pytest.mark.parametrize("family", ["gemma2", "bloom", "sinks"])
def test_what_has_no_paper_form_is_refused(family):
    with pytest.raises(ValueError, match=f"tiny-{family}"):
        released(tiny(family), 0)


def test_a_detection_says_which_formulation():
    detection = mw.detect(tiny("llama"), {"en": [tokens(9)]}, formulation="released", progress=False)
    assert detection.settings["formulation"] == "released"
    assert "measure" not in detection.settings
