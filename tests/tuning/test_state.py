"""What tuning does not depend on: gradient and training mode, NumPy's numbers, who else writes."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import transformers

import mwork_lens as mw
from mwork_lens.model import bridge_on, settled
from mwork_lens.tuning.result import Tuned, checkpoints_in

from ..store.test_files import other_process
from ..tiny import tiny, words
from .test_tuning import OPTIONS, TEXTS, fresh, some


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_mode_does_not_matter(mode):
    losses = []
    for context in (mode(), contextlib.nullcontext()):
        model = fresh()
        with context:
            texts = [text.clone() for text in TEXTS]
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            tuned = mw.tune(model, some(model), texts, **OPTIONS, held_out=texts)
            assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
            tuned.delta.revert(model)
        losses.append(([step.loss for step in tuned.steps], tuned.held_out))
        assert not any(parameter.is_inference() for parameter in model.parameters())
    assert losses[0] == losses[1]


def test_weights_made_in_inference_mode_are_refused():
    model = fresh()
    with torch.inference_mode():
        model.ln_final.w = torch.nn.Parameter(model.ln_final.w.clone(), requires_grad=False)
    with pytest.raises(ValueError, match=r"ln_final\.w of .* was made in inference mode: load it outside"):
        mw.tune(model, some(model), TEXTS, **OPTIONS)


def test_a_model_in_training_mode_is_tuned_without_dropout_and_stays_in_it():
    losses = []
    for training_mode in (False, True):
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=4, n_positions=64, vocab_size=60, resid_pdrop=0.5, embd_pdrop=0.5,
            attn_pdrop=0.5,
        )  # fmt: skip
        torch.manual_seed(0)
        model = bridge_on(transformers.GPT2LMHeadModel(config), words())
        model.train(training_mode)
        model.blocks[0].eval()
        every = [*model.modules(), *model.original_model.modules()]
        model.original_model.train(training_mode)
        before = [module.training for module in every]
        neurons = some(model, [(0, "q", 3), (1, "v", 2), (1, "mlp", 5)])
        tuned = mw.tune(model, neurons, TEXTS, **OPTIONS, held_out=TEXTS)
        assert [module.training for module in every] == before
        losses.append([step.loss for step in tuned.steps])
    assert losses[0] == losses[1]


def test_numbers_of_numpy_are_settings(tmp_path):
    model = fresh()
    options = {"learning_rate": np.float64(0.01), "weight_decay": np.float64(0.1), "steps": 2}
    tuned = mw.tune(model, some(model), TEXTS, **options, progress=False, checkpoint=tmp_path / "c")
    tuned.save(tmp_path / "tuned")
    again = Tuned.load(tmp_path / "tuned")
    assert again.settings["recipe"] == tuned.settings["recipe"]
    assert {type(value) for value in again.settings["recipe"].values()} <= {int, float, bool, str, type(None)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": math.nan}, r"weight_decay=nan"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
        ({"evaluate_every": 1, "held_out": TEXTS, "patience": -1}, "patience=-1"),
    ],
)
def test_settings_that_would_be_silently_wrong(options, message):
    model = fresh()
    with pytest.raises(ValueError, match=message):
        mw.tune(model, some(model), TEXTS, **{**OPTIONS, **options})


def test_a_checkpoint_in_the_home_directory_is_found_again_and_belongs_to_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = fresh()
    tuned = mw.tune(model, some(model), TEXTS, **OPTIONS, steps=3, checkpoint="~/c", checkpoint_every=2)
    tuned.delta.revert(model)
    with other_process(tmp_path / "c"), pytest.raises(FileExistsError, match="written by another process"):
        mw.tune(model, some(model), TEXTS, **OPTIONS, steps=3, checkpoint="~/c", checkpoint_every=2)
    seen = []
    again = mw.tune(
        model, some(model), TEXTS, **OPTIONS, steps=3, checkpoint="~/c", checkpoint_every=2, callbacks=[seen.append]
    )
    assert not seen
    assert [step.loss for step in again.steps] == [step.loss for step in tuned.steps]


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path):
    for name in ("step-1000000", "step-999999", "step-2.part", "step-x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-999999", "step-1000000"]


def test_what_a_call_changes_in_a_weight_stays_where_a_module_keeps_a_view_of_it():
    """As TransformerLens 4 keeps parts of fused matrices."""
    model = copy.deepcopy(tiny("llama", torch.float32))
    mlp = model.blocks[0].mlp
    vars(mlp)["part"], before = mlp.W_out.data[:3], mlp.W_out.detach().clone()
    with settled(model):
        mlp.W_out.data += 1
    assert torch.equal(mlp.W_out, before + 1)
