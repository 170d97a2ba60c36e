"""Closed forms that differ from ablation are found before anything rests on them; those that do not are left alone."""

import copy
import warnings
from contextlib import nullcontext
from itertools import product
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

import mwork_lens as mw
from mwork_lens.detection import checking
from mwork_lens.detection.checking import require_exact
from mwork_lens.detection.layer_kinds import layer_kinds

from ..faults import FAULTS, has
from ..tiny import FAMILIES, installed, tiny, tokens

QUIET = {"progress": False}
CASES = [(name, family) for name, family in product(FAULTS, FAMILIES) if has(tiny(family), FAULTS[name].needs)]


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(checking, "_verified", WeakKeyDictionary())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_fault_in_the_reading_of_a_layer_is_found(name, family, dtype, monkeypatch):
    FAULTS[name].plant(monkeypatch)
    sites = "|".join(FAULTS[name].sites)
    with pytest.raises(ValueError, match=rf"({sites}) neuron \d+ of layer 1 .*layers=\[0\] scores those"):
        require_exact(tiny(family, dtype), "stream", None, [0, 1], 4)


EXACT = [
    *product(FAMILIES, [torch.float32, torch.bfloat16], ["stream"]),
    *product(["gemma2", "gemma3", "olmo2"], [torch.float32], ["structure"]),
    *product(["gemma2", "gemma3", "olmo2"], [torch.float64], ["stream"]),
]


@pytest.mark.parametrize(("family", "dtype", "measure"), EXACT)
def test_no_neuron_of_an_exact_model_differs(family, dtype, measure):
    checks = mw.check_scores(tiny(family, dtype), measure=measure)
    wide = checks[checks.dtype != "bfloat16"]
    assert wide.relative.max() < 2e-5
    assert checks.exact.all()
    assert set(zip(checks.layer, checks.site, strict=True)) == set(product(range(2), ("q", "k", "v", "mlp")))
    assert (checks.dtype == "bfloat16").any() == (dtype == torch.bfloat16)


def state(model):
    weights = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    return weights, flags, installed(model), model.cfg.dtype, torch.get_rng_state().tolist(), torch.is_grad_enabled()


def test_a_bar_shows_the_layers(capsys):
    mw.check_scores(tiny("llama"), progress=False)
    assert not capsys.readouterr().err
    mw.check_scores(tiny("llama"), layers=[1])
    assert "checking: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_check_leaves_nothing_behind(dtype, wrong, monkeypatch):
    model = copy.deepcopy(tiny("gemma3", dtype))
    model.blocks[1].train()
    if wrong:
        monkeypatch.setattr("mwork_lens.detection.replaying.Ablation._zero", lambda *_, hook: 1 / 0)
    before, tensors = state(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError) if wrong else nullcontext():
        mw.check_scores(model)
    assert state(model) == before
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.blocks[1].modules())


def test_a_check_moves_no_bit_of_later_scores():
    """BLOOM's blocks keep the longest table of ALiBi that they have needed, whose sums round otherwise."""
    model, ids = copy.deepcopy(tiny("bloom", torch.float32)), tokens(12)
    unverified = mw.importance(model, ids, verify=False)
    for scores in (mw.importance(model, ids), mw.importance(model, ids)):
        assert all(torch.equal(scores[site], values) for site, values in unverified.items())


def test_each_model_setting_and_reach_is_checked_once(monkeypatch):
    made, checks = [], checking._checks
    monkeypatch.setattr(checking, "_checks", lambda *given: [made.append(given[1:]), *checks(*given)][1:])
    model, other = tiny("gemma2", torch.float32), tiny("gemma2", torch.float32, seed=1)
    screen = mw.measures.Selection(top=0.2)
    mw.detect(model, {"en": [tokens(4), tokens(5)]}, **QUIET)  # the window has five tokens
    mw.detect(model, {"en": [tokens(4)]}, top=0.3, **QUIET)
    assert made == [("stream", screen, [0, 1], 5)]
    mw.detect(model, {"en": [tokens(6)]}, **QUIET)
    assert made[1:] == [("stream", screen, [0, 1], 21)]
    mw.importance(model, tokens(9), measure="structure", layers=[1])
    assert made[2:] == [("structure", None, [1], 5), ("structure", None, [1], 21)]
    mw.importance(other, tokens(4))
    assert made[4:] == [("stream", None, [0, 1], 5)]


@pytest.mark.parametrize("score", [mw.importance, lambda model, ids, **more: mw.detect(model, {"en": [ids]}, **more)])
def test_a_model_that_is_read_wrongly_is_scored_in_its_exact_layers_or_unverified(score, monkeypatch):
    FAULTS["scale"].plant(monkeypatch)
    model = tiny("qwen2", torch.float32)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^tiny-qwen2 is not scored exactly: [qk] neuron \d+ of layer 1 scores"):
            score(model, tokens(9))
    score(model, tokens(9), layers=[0])
    score(model, tokens(9), verify=False)
    score(model, tokens(9), formulation="paper")


def test_a_detection_records_what_was_not_verified_and_which_layers_were_scored():
    model, corpus = tiny("llama", n_layers=3), {"en": [tokens(9)], "fr": [tokens(12)]}
    exact = {"scores": "exact", **QUIET}
    full, part = mw.detect(model, corpus, **exact), mw.detect(model, corpus, layers=[2, 0], verify=False, **exact)
    assert not {"verify", "layers"} & full.settings.keys()
    assert part.settings["verify"] is False
    assert part.settings["layers"] == part.layers == part.active("en").origin["layers"] == [0, 2]
    scores = mw.importance(model, tokens(9), layers=[0, 2])
    for site, counts in part.counts["en"].items():
        assert torch.equal(counts[[0, 2]], full.counts["en"][site][[0, 2]])
        assert not counts[1].any()
        assert part.mean_scores["en"][site][1].isnan().all()
        torch.testing.assert_close(part.mean_scores["en"][site][[0, 2]], full.mean_scores["en"][site][[0, 2]])
        torch.testing.assert_close(scores[site][[0, 2]], full.mean_scores["en"][site][[0, 2]])
        assert scores[site][1].isnan().all()


def test_layers_that_were_not_scored_are_left_out_of_tables_and_refused_by_controls():
    model, corpus = tiny("llama", n_layers=3), {"en": [tokens(9)], "fr": [tokens(12)]}
    full, part = mw.detect(model, corpus, **QUIET), mw.detect(model, corpus, layers=[0, 2], **QUIET)
    for table in (part.to_frame(), mw.neuron_counts(part), mw.agreement(full, part)):
        assert set(table.layer) == {0, 2}
    assert part.to_frame().mean_score.notna().all()
    mw.all_controls(part.specific("fr"), part)
    for control in (mw.matched_control, mw.top_control):
        with pytest.raises(ValueError, match=r"neurons in layer 1, which the detection has not scored"):
            control(full.active("fr"), part)


@pytest.mark.usefixtures("unchecked")
def test_layers_are_those_of_the_model():
    assert set(mw.check_scores(tiny("llama"), layers=np.array([1])).layer) == {1}
    for layers in ([], [2], [-1]):
        with pytest.raises(ValueError, match=r"has layers 0 to 1"):
            mw.check_scores(tiny("llama"), layers=layers)


def test_the_length_of_a_check_is_in_the_context():
    for length in (-3, 0, 1, 65):
        with pytest.raises(ValueError, match=r"length=.* must be from 2 tokens to the context of tiny-llama, 64"):
            mw.check_scores(tiny("llama"), length=length)


def test_layers_of_one_kind_differ_in_their_weights_only():
    assert layer_kinds(tiny("gpt2", n_layers=4)) == [[0, 1, 2, 3]]
    assert layer_kinds(alternating()) == [[0, 2], [1, 3]]


def alternating():
    cfg = copy.deepcopy(tiny("gemma3").cfg)
    cfg.n_layers, cfg.attn_types = 4, ["local", "global"] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(tiny("gemma3"))(cfg)


def test_a_model_made_in_inference_mode_is_refused_in_words():
    with torch.inference_mode():
        model = copy.deepcopy(tiny("llama"))
    with pytest.raises(ValueError, match=r"was made in inference mode.* make it outside of torch.inference_mode"):
        mw.detect(model, {"en": [tokens(5)]}, progress=False)
