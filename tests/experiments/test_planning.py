"""What a run takes, against the table that the rates come from, real models' sizes and a real file."""

import json
import re

import pytest
import torch

import mwork_lens as mw
from mwork_lens.cli import app
from mwork_lens.detection.detection import result_bytes
from mwork_lens.experiments.planning import LANES, Shape, plan
from mwork_lens.model.memory import readable
from mwork_lens.neurons import NeuronSpace
from mwork_lens.settings import PlanConfig, Rates

from ..tiny import SMALL, gemma, small_model, tiny


@pytest.fixture(scope="module")
def eight():
    return Shape.read("8B")


@pytest.mark.parametrize(
    ("length", "exponentials", "lanes", "forward"),
    [(128, 0.02, 0.05, 0.09), (256, 0.07, 0.20, 0.19), (512, 0.30, 0.78, 0.37), (1024, 1.2, 3.1, 0.75)],
)
def test_one_layer_of_8b(eight, length, exponentials, lanes, forward):
    """Milliseconds of a document in one layer, by hand: 218 M weights, H · D · l² / 2 exponentials per site."""
    number = eight.exponentials(length) * length / eight.layers
    assert 1e3 * number / 3.6e12 == pytest.approx(exponentials, rel=0.2)
    assert 1e3 * LANES * number / 28e12 == pytest.approx(lanes, rel=0.2)
    weights = 2 * eight.block_parameters / eight.layers
    assert weights == pytest.approx(2 * 218e6, rel=0.01)
    assert 1e3 * weights * length / 600e12 == pytest.approx(forward, rel=0.05)


def test_stored_shapes_are_those_of_their_names(eight):
    seventy = Shape.read("70B")
    assert eight.parameters == 8_030_261_248
    assert seventy.parameters == 70_553_706_496
    assert seventy.neurons == 80 * (64 * 128 + 2 * 8 * 128 + 28672)


@pytest.mark.parametrize("make", [gemma, small_model, lambda: small_model("Qwen2", tie_word_embeddings=True)])
def test_a_configuration_has_the_sizes_of_its_model(make, tmp_path):
    theirs = make()
    theirs.config.save_pretrained(tmp_path)
    shape = Shape.read(str(tmp_path))
    assert shape == Shape.read(str(tmp_path / "config.json"))
    assert shape.parameters == sum(each.numel() for each in theirs.parameters())
    ends = theirs.get_input_embeddings(), theirs.get_output_embeddings()
    tables = {id(table.weight): table.weight.numel() for table in ends}
    assert shape.block_parameters == shape.parameters - sum(tables.values())


def test_longer_documents_cost_more_scores_and_more_devices_less_time():
    hours = [plan(PlanConfig(tokens_per_document=length)).to_frame().loc["detect", "hours"] for length in (128, 512)]
    assert hours[0] < hours[1]
    one, eight = (plan(PlanConfig(devices=devices)).to_frame()["hours"] for devices in (1, 8))
    assert (one / eight).tolist() == pytest.approx([8, 8])


def test_70b_on_eight_devices():
    planned = plan(PlanConfig(shape="70B", devices=8))
    assert (planned.processes, planned.devices_per_process) == (2, 3)
    frame = planned.to_frame()
    # 2 x 68.5e9 operations and attention to 512 positions, 320e6 tokens, 600e12 a second, two at a time
    hours = (2 * 68.45e9 + 1.34e9) * 320e6 / 600e12 / 7200
    assert frame.loc["detect", "forward_hours"] == pytest.approx(hours, rel=0.01)
    assert frame.loc["detect", "device_gb"] < 80
    assert frame.loc["detect", "result_gb"] == result_bytes(3_112_960, 32) / 1e9


def test_rates_say_where_they_come_from():
    ours, mine = plan(PlanConfig()), plan(PlanConfig(), Rates(flops=300e12, memory=141e9))
    assert mine.forward_seconds == pytest.approx(2 * ours.forward_seconds)
    assert mine.rates_used().loc[["flops", "memory"], "source"].tolist() == ["given", "given"]
    assert "assumed" in ours.rates_used().loc["flops", "source"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_size_of_a_result_is_that_of_its_file(family, tmp_path):
    model = tiny(family, torch.float32, d_head=256)
    text = {language: [torch.arange(1, 20), torch.arange(3, 30)] for language in ("en", "fr", "ru")}
    detection = mw.detect(model, text, verify=False, progress=False)
    detection.save(tmp_path / "detection")
    size = (tmp_path / "detection" / "tensors.safetensors").stat().st_size
    assert size == pytest.approx(result_bytes(NeuronSpace.of(model).total, 3), rel=0.3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**SMALL, "model_type": "nothing"}, "not the configuration of a language model"),
        ({**SMALL, "model_type": "mixtral", "num_local_experts": 4}, "mixture of experts"),
        ({}, "not the configuration"),
    ],
)
def test_what_has_no_plan_is_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Shape.read(str(tmp_path))


def test_a_model_that_no_device_holds_is_refused():
    with pytest.raises(ValueError, match="141 GB of weights in bfloat16, which take 3 devices of 80 GB"):
        plan(PlanConfig(shape="70B", devices=2))
    with pytest.raises(FileNotFoundError, match="stored shape"):
        plan(PlanConfig(shape="7B"))
    with pytest.raises(ValueError, match="it must be above 0"):
        Rates(bandwidth=0.0)


def test_the_command_prints_the_plan(capsys):
    app(["plan", "--devices", "2", "--bandwidth", "2e12"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "Not measured on a GPU" in printed
    assert "Written" not in printed
    assert "2e+12" in printed
    assert "given" in printed


def test_the_bar_of_a_run_says_time_memory_and_size(capsys):
    model = tiny("llama", torch.float32)
    mw.detect(model, {"en": [torch.arange(1, 20)], "fr": [torch.arange(3, 30)]}, verify=False, progress=True)
    shown = capsys.readouterr().err.split("\r")[-1]
    size = readable(result_bytes(NeuronSpace.of(model).total, 2))
    assert f"detecting ({size} of results) fr: 100%" in shown
    assert re.search(r"00:00.*peak memory [\d.]+ [GM]B", shown)
