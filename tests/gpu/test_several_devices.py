"""A model over several GPUs gives what it gives on one: its layers' tensors are never mixed."""

import pandas as pd
import pytest
import torch

import mwork_lens as mw

from ..model.test_placement import everything, saved
from ..tiny import some_neurons

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
BY_HAND = {"": 0, "model.layers.1": 1, "model.layers.2": 1, "model.norm": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("qwen"), "Qwen3")


@pytest.mark.parametrize("device_map", ["auto", BY_HAND], ids=["auto", "by hand"])
def test_everything_is_as_on_one_device(folder, device_map):
    one, several = mw.load_model(folder, device="cuda:0"), mw.load_model(folder, device_map=device_map)
    assert len({parameter.device for parameter in several.parameters()}) > 1
    for ours, theirs in zip(everything(several), everything(one), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)
    assert mw.check_scores(several, progress=False)["relative"].to_numpy().max() < 1e-4


@pytest.mark.parametrize("device_map", ["auto", BY_HAND], ids=["auto", "by hand"])
def test_tuning_reaches_every_device(folder, device_map):
    one, several = mw.load_model(folder, device="cuda:0"), mw.load_model(folder, device_map=device_map)
    texts, options = ["le chien rouge", "un deux homme"], {"steps": 2, "learning_rate": 1e-2}
    ours, theirs = (mw.tune(each, some_neurons(each), texts, **options).delta for each in (several, one))
    assert ours is not None
    assert theirs is not None
    for name, values in theirs.new.items():
        torch.testing.assert_close(ours.new[name], values)
    ours.revert(several)
