"""What a checkpoint's files hold beside what transformers shows of them."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import mwork_lens as mw

from ..tiny import small_model, words

IDS = torch.arange(3, 20)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(name="folder")
def model_folder(tmp_path):
    small_model().save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    return tmp_path


def loaded(source):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return mw.load_model(source, device="cpu")


def stored(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model):
    with torch.inference_mode():
        return model(IDS[None])[0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("as_pickle", [False, True])
def test_weights_of_8_bits_without_a_word_in_the_configuration_are_refused(folder, dtype, as_pickle):
    stored(folder, lambda weights: weights.update({UP: (weights[UP] * 10).round().to(dtype)}))
    if as_pickle:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"stores {UP} as {name}\. Quantised weights have no columns"):
        loaded(folder)


def test_several_sets_of_weights_are_said_where_they_differ(folder):
    """As after fine-tuning, when the old files were left beside the new ones."""
    weights = load_file(folder / "model.safetensors")
    torch.save({name: weight.bfloat16() for name, weight in weights.items()}, folder / "pytorch_model.bin")
    expected = logits(loaded(folder))  # the same in another precision
    torch.save({**weights, UP: weights[UP] * 1.001}, folder / "pytorch_model.bin")
    with pytest.warns(UserWarning, match=r"holds two models: pytorch_model\.bin has other .* than model\.safetensors"):
        assert torch.equal(logits(loaded(folder)), expected)
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    loaded(folder)  # which is not read
    tuned = small_model()
    tuned.lm_head.weight.data *= 2
    tuned.save_pretrained(folder / "tuned", max_shard_size="8KB")
    for file in (folder / "tuned").glob("model*"):
        file.rename(folder / file.name)
    with pytest.warns(UserWarning, match=r"holds two models: model\.safetensors\.index\.json has other"):
        assert torch.equal(logits(loaded(folder)), expected)


@pytest.mark.parametrize("gone", [(), ("model.safetensors",), ("model.safetensors", "config.json")])
def test_adapters_are_not_taken_for_a_model_nor_left_out_of_one(folder, gone):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"holds adapters of someone/base \(adapter_config\.json\): merge them"):
        loaded(folder)


def test_an_unembedding_that_should_be_the_embedding_is_used_and_said(folder):
    expected = logits(loaded(folder))
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match=r"holds an unembedding of its own .*tie_word_embeddings"):
        assert torch.equal(logits(loaded(folder)), expected)


def test_generation_settings_that_cannot_be_read_are_not_left_out(folder):
    """Nothing else would say what ends a text."""
    (folder / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        loaded(folder)


def test_an_index_without_a_map_says_so(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded: there is no 'weight_map'"):
        loaded(folder)
