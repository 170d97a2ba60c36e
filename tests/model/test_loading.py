import copy
import warnings

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens import HookedTransformer

import mwork_lens as mw

from ..tiny import tiny

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}


def small_model(kind="Llama", **options):
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **options})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def test_hooked_model_is_returned_as_it_is():
    assert mw.load_model(tiny("llama")) is tiny("llama")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_loaded_model_becomes_a_hooked_transformer_with_its_logits(kind):
    options = {"head_dim": 4} if kind in ("Qwen3", "Mistral") else {}
    theirs = small_model(kind, **options)
    kept = {name: value.clone() for name, value in theirs.state_dict().items()}
    model = mw.load_model(theirs, device="cpu")
    assert isinstance(model, HookedTransformer)
    ids = torch.arange(1, 12)[None]
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)
    model.blocks[0].attn.W_Q.data.zero_()
    assert all(torch.equal(value, kept[name]) for name, value in theirs.state_dict().items())


def test_model_without_a_hooked_transformer_is_a_bridge(caplog):
    theirs = gemma()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mw.load_model(theirs, tokenizer=words(), device="cpu")
    assert type(model).__name__ == "TransformerBridge"
    assert "no official TransformerLens model" in caplog.text


def words():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<unk>", *"abcdefgh"])}
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<pad>"}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def spelled(family, **options):
    """A tiny model that reads and writes the letters a to h."""
    model, tokenizer = copy.deepcopy(tiny(family, **options)), words()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    model.set_tokenizer(tokenizer, default_padding_side="left")
    model.cfg.d_vocab = 50
    model.unembed.b_U.data[11:] = -1e9
    return model


def gemma():
    config = transformers.Gemma3TextConfig(**{**SMALL, "head_dim": 4})
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(config).eval()


def test_bad_sources_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        mw.load_model(tmp_path / "nowhere.gguf")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        mw.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        mw.load_model(tmp_path / "missing")
    with pytest.raises(ValueError, match="float33"):
        mw.load_model("demo", dtype="float33")
    with pytest.raises(ValueError, match=r"gpt3-smal.*no model"):
        mw.load_model("gpt3-smal")
