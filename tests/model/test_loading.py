import warnings

import pytest
import torch
from transformer_lens import HookedTransformer

import mwork_lens as mw

from ..tiny import gemma, small_model, tiny, words


def test_hooked_model_is_returned_as_it_is():
    assert mw.load_model(tiny("llama")) is tiny("llama")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_loaded_model_becomes_a_hooked_transformer_with_its_logits(kind):
    options = {"head_dim": 4} if kind in ("Qwen3", "Mistral") else {}
    theirs = small_model(kind, **options)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    model = mw.load_model(theirs, device="cpu")
    assert isinstance(model, HookedTransformer)
    ids = torch.arange(1, 12)[None]
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)
    model.blocks[0].attn.W_Q.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_model_without_a_hooked_transformer_is_a_bridge(caplog):
    theirs = gemma()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mw.load_model(theirs, tokenizer=words(), device="cpu")
    assert type(model).__name__ == "TransformerBridge"
    assert "no official TransformerLens model" in caplog.text


def test_bad_sources_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        mw.load_model(tmp_path / "nowhere.gguf")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        mw.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        mw.load_model(tmp_path / "missing")
    with pytest.raises(ValueError, match="float33"):
        mw.load_model("demo", dtype="float33")
    with pytest.raises(ValueError, match=r"gpt3-smal.*not a model"):
        mw.load_model("gpt3-smal")
