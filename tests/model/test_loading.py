"""What is loaded is what a checkpoint holds, and computes what transformers computes; all else is refused in words."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import FunctionType

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mwork_lens as mw
from mwork_lens.model import checkpoints, comparing, conversion

from ..tiny import HOOKED, SMALL, gemma, small_model, words

KIND = "HookedTransformer" if HOOKED else "TransformerBridge"
needs_hooked = pytest.mark.skipif(not HOOKED, reason="this TransformerLens has no HookedTransformer")
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 60, "n_positions": 64}


def loaded(source, **options):
    """Loaded on the CPU; TransformerLens's own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return mw.load_model(source, device="cpu", **options)


def jittered(model, seed=0):
    """Gains, biases and multipliers that matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def gpt2(**options):
    torch.manual_seed(0)
    return jittered(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT, **options})).eval())


def model_dir(folder, model=None, tokenizer=True):
    """A directory as transformers writes it."""
    (small_model() if model is None else model).save_pretrained(folder)
    if tokenizer:
        words().save_pretrained(folder)
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# what computes the same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral", "Phi3"])
def test_a_model_in_memory_is_copied_and_stays_as_it_is(kind, dtype):
    options = {"head_dim": 4} if kind in ("Qwen3", "Mistral") else {"pad_token_id": 0}
    theirs = jittered(small_model(kind, **options)).train()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    model = loaded(theirs, dtype=dtype)
    assert type(model).__name__ == KIND
    assert not model.training
    assert theirs.training
    assert {value.dtype for value in theirs.state_dict().values()} == {torch.float32}
    if dtype == "float32":
        ids = torch.arange(1, 12)[None]
        torch.testing.assert_close(model(ids), theirs.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_a_bridge_is_not_made_of_the_callers_model(caplog):
    theirs = jittered(gemma())
    ids = torch.arange(3, 11)[None]
    before, modules = theirs(ids).logits, dict(theirs.named_modules())
    model = loaded(theirs, tokenizer=words())
    assert type(model).__name__ == "TransformerBridge"
    assert caplog.text.count("raw TransformerBridge") == 1
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda activation, hook: activation * 0)]):
        assert not torch.allclose(model(ids), before)
        assert torch.equal(theirs(ids).logits, before)
    assert dict(theirs.named_modules()) == modules


@needs_hooked
def test_a_model_without_a_hooked_transformer_says_why(caplog):
    loaded(gemma(), tokenizer=words())
    assert "no official TransformerLens model" in caplog.text


def test_the_callers_tokenizer_is_not_changed():
    tokenizer = words()
    before = copy.deepcopy(tokenizer.init_kwargs)
    assert loaded(small_model(), tokenizer=tokenizer).tokenizer is not tokenizer
    assert tokenizer.init_kwargs == before


def test_a_bridge_without_a_tokenizer():
    model = loaded(gemma())
    assert model.tokenizer is None
    assert mw.importance(model, torch.arange(3, 11))["q"].shape == (2, 16)


@needs_hooked
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpt2_of_todays_transformers_is_hooked(tmp_path, dtype):
    model = loaded(model_dir(tmp_path / "gpt2", gpt2()), dtype=dtype)
    assert type(model).__name__ == "HookedTransformer"
    assert model.cfg.n_ctx == 64


def test_a_model_that_is_hooked_already_is_returned():
    model = loaded(small_model())
    assert mw.load_model(model) is model


# names


def test_no_name_decides_the_architecture(tmp_path, monkeypatch):
    """Directories, temporary folders and names that say another architecture."""
    for name in ("gpt2-mine", "llama-3", "google-gemma-2-2b", "wav2vec2-base"):
        folder = tmp_path / name / "tmp"
        folder.mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        for model, kind in ((gpt2(), "GPT2LMHeadModel"), (small_model(), "LlamaForCausalLM")):
            place = model_dir(tmp_path / name / kind / name, model)
            edit_json(place / "config.json", _name_or_path="meta-llama/Llama-2-7b-hf")
            hooked = loaded(place)
            assert type(hooked).__name__ == KIND
            assert hooked.cfg.model_name == name
            assert getattr(hooked.cfg, "original_architecture", None) or hooked.cfg.architecture == kind
            model.config._name_or_path = "meta-llama/Llama-2-7b-hf"
            assert type(loaded(model)).__name__ == KIND


def hub(tmp_path, monkeypatch, name, model):
    """A hub cache, made by hand, that holds one model."""
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    model_dir(repository / "snapshots" / "0123", model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "snapshots" / "0123"


@pytest.mark.parametrize("name", ["somebody/a-llama-fine-tune", "openai-community/gpt2"])
def test_a_hub_name_is_loaded_like_its_files(tmp_path, monkeypatch, name):
    theirs = gpt2() if "gpt2" in name else jittered(small_model())
    folder = hub(tmp_path, monkeypatch, name, theirs)
    model, ids = loaded(name), torch.arange(1, 12)[None]
    assert type(model).__name__ == KIND
    assert model.cfg.model_name == name.split("/")[-1]
    assert torch.equal(model(ids), loaded(folder)(ids))
    edit_weights(folder, lambda weights: weights.popitem())
    with pytest.raises(ValueError, match=f"{name}.*has no weights for"):
        loaded(name)


@needs_hooked
def test_a_short_official_name_is_found_in_the_hub_cache(tmp_path, monkeypatch):
    hub(tmp_path, monkeypatch, "openai-community/gpt2", gpt2())
    with pytest.raises(ValueError, match=r"gpt3-smal.*not a model.*"):
        loaded("gpt3-smal")
    name = conversion.transformer_lens()[1].make_model_alias_map()["gpt2-small"]
    hub(tmp_path / "other", monkeypatch, name, gpt2())
    assert loaded("gpt2-small").cfg.n_layers == 2


# contexts


@pytest.mark.parametrize(("kind", "options"), [("Mistral", {"head_dim": 4}), ("Qwen3", {"head_dim": 4}), ("Llama", {})])
def test_the_context_is_the_configurations(kind, options):
    model = loaded(small_model(kind, **options, max_position_embeddings=32768), tokenizer=words())
    assert model.cfg.n_ctx == 32768
    # masks and rotary tables grow with the texts, not with the context
    assert sum(buffer.numel() for buffer in model.buffers()) < 1e5
    with pytest.warns(UserWarning, match=r"longer than 30000 tokens .*context 32768"):
        text = mw.model.Encoded.of(model, {"fr": [torch.full((32769,), 3)]}, 30000)
    assert len(text["fr"][0]) == 30000


def test_documents_beyond_a_table_of_positions_are_refused():
    model = loaded(gpt2())
    with pytest.raises(ValueError, match="65 tokens, more than the context of 64"):
        mw.model.run_blocks(model, torch.full((1, 65), 3))


# checkpoints


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"has no weights for model\.layers\.1\.mlp\.up_proj"),
        (lambda w: w.pop("model.norm.weight"), r"has no weights for model\.norm"),
        (lambda w: w.pop("lm_head.weight"), r"has no weights for lm_head"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(3)}),
            r"another shape: model\.norm\.weight \[3\], not \[16\]",
        ),
        (
            lambda w: w.update({"transformer.norm.weight": w.pop("model.norm.weight")}),
            r"model\.norm.*transformer\.norm",
        ),
        (lambda w: [w.pop(name) for name in list(w) if ".0." in name], r"and \d+ more"),
    ],
)
def test_weights_that_are_not_there_are_named(tmp_path, change, words):
    folder = model_dir(tmp_path / "broken")
    edit_weights(folder, change)
    for _ in range(2):
        with pytest.raises(ValueError, match=words) as raised:
            loaded(folder)
        assert str(folder) in str(raised.value)


def test_tied_embeddings_need_no_unembedding_and_left_over_weights_are_one_warning(tmp_path):
    folder = model_dir(tmp_path / "tied", jittered(small_model(tie_word_embeddings=True)))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model, ids = loaded(folder), torch.arange(1, 12)[None]
    assert torch.equal(model(ids), loaded(folder)(ids))
    edit_weights(folder, lambda weights: weights.update({f"vision.{i}": torch.ones(2) for i in range(5)}))
    with pytest.warns(UserWarning, match=r"knows nothing: vision\.0, vision\.1, vision\.2 and 2 more") as caught:
        loaded(folder)
    assert sum("vision" in str(each.message) for each in caught) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, content in (("config.json", b"{"), ("model.safetensors", b"x" * 40)):
        folder = model_dir(tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be loaded"):
            loaded(folder)
    folder = model_dir(tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cut, model\.safetensors cannot be loaded"):
        loaded(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for content in ("{", '{"version": "1.0"}', '{"model": {"type": "WordLevel", "vocab": 3}}'):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"cut' has no tokenizer that can be loaded"):
            loaded(folder)
    folder = model_dir(tmp_path / "settings")
    settings = json.loads((folder / "config.json").read_text())
    for content in ([1], {**settings, "num_attention_heads": "four"}, {**settings, "num_hidden_layers": -1}):
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"settings cannot be loaded"):
            loaded(folder)
    folder = model_dir(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Path}))
    with pytest.raises(ValueError, match=r"pickled cannot be loaded: .* a pickle that holds more than tensors"):
        loaded(folder)
    folder = model_dir(tmp_path / "words", tokenizer=False)
    with pytest.raises(ValueError, match=r"has no tokenizer that can be loaded.*tokenizer="):
        loaded(folder)
    assert loaded(folder, tokenizer=words()).cfg.n_layers == 2


def test_one_part_of_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "model-00001-of-00003.gguf").touch()
    with pytest.raises(ValueError, match="one of several parts"):
        loaded(tmp_path / "model-00001-of-00003.gguf")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_warned_of():
    with pytest.warns(UserWarning, match="ids up to 10, its embedding 9 rows"):
        loaded(small_model(vocab_size=9), tokenizer=words())


# what cannot be loaded


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "float33"}, "float33"),
        ({"dtype": "int32"}, "int32"),
        ({"device": "gpu"}, "no device gpu here"),
        ({"device": "meta"}, "'meta' holds no numbers"),
        ({"tokenizer": "gpt2"}, "tokenizer='gpt2' is not a tokenizer"),
        ({"tokenizer": words().backend_tokenizer}, "is not a tokenizer: give one that transformers has loaded"),
        pytest.param(
            {"device": "cuda"},
            "no device cuda here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU"),
        ),
    ],
)
def test_options_that_cannot_be_had_are_said(options, match):
    with pytest.raises(ValueError, match=match):
        mw.load_model(small_model(), **options)


@pytest.mark.parametrize("source", [None, 3, torch.nn.Linear(2, 2), [small_model], b"demo"])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(ValueError, match=f"load_model cannot take {type(source).__name__}"):
        mw.load_model(source)


def test_paths_that_are_not_there(tmp_path):
    for name, match in (("nowhere.gguf", "nowhere"), (".", "config.json"), ("missing", "missing")):
        with pytest.raises(FileNotFoundError, match=match):
            loaded(tmp_path / name)


def test_paths_that_are_no_directory_of_a_model(tmp_path):
    for blank in ("", " "):
        with pytest.raises(ValueError, match="names no model"):
            loaded(blank)
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give the directory"):
        loaded(model_dir(tmp_path / "whole") / "model.safetensors")
    (tmp_path / "text.GGUF").write_text("text")
    with pytest.raises(ValueError, match=r"text\.GGUF is not a GGUF file"):
        loaded(tmp_path / "text.GGUF")
    assert loaded(model_dir(tmp_path / "named.gguf")).cfg.model_name == "named.gguf"


def other_kinds():
    small = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 60}
    heads = {**small, "num_attention_heads": 4, "intermediate_size": 24}
    yield (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_ff": 24, "num_layers": 2, "vocab_size": 60},
        "encoder-decoder",
    )
    yield "BertForMaskedLM", heads, "not a causal language model|not causal"
    yield "BertLMHeadModel", heads, "not causal"
    yield "MambaForCausalLM", small, "layer 0 has no attention pattern"
    yield "ViTModel", {**heads, "vocab_size": None}, "not a causal language model"


@pytest.mark.parametrize(("kind", "options", "match"), other_kinds())
def test_other_kinds_of_models_are_refused(tmp_path, kind, options, match):
    options = {name: value for name, value in options.items() if value is not None}
    model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**options)).eval()
    with pytest.raises(ValueError, match=match):
        loaded(model, tokenizer=words())
    with pytest.raises(ValueError, match=match):
        loaded(model_dir(tmp_path / "other", model))


class Adapter(torch.nn.Module):
    """As peft wraps a linear layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora_A = base_layer, torch.nn.Linear(16, 16, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, states):
        return self.base_layer(states) + self.lora_A(states)


NOT_PLAIN = r"q_proj\.weight is not a dense tensor of floats"


def reweigh(attention, change):
    attention.q_proj.weight = torch.nn.Parameter(change(attention.q_proj.weight.detach()), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda attention: setattr(attention, "q_proj", Adapter(attention.q_proj)), "holds adapters: merge them"),
        (lambda attention: reweigh(attention, lambda weight: weight.to_sparse()), NOT_PLAIN),
        (lambda attention: reweigh(attention, lambda weight: weight.to(torch.float8_e4m3fn)), NOT_PLAIN),
    ],
)
def test_weights_in_memory_that_are_not_plain_are_refused(change, match):
    model = small_model()
    change(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match=match):
        loaded(model, tokenizer=words())


def test_a_model_with_fewer_layers_than_it_says_is_not_blamed_on_others():
    model = small_model()
    model.model.layers = model.model.layers[:1]
    with pytest.raises(ValueError, match=r"has 1 layers where its config\.num_hidden_layers says 2"):
        loaded(model, tokenizer=words())
    model.config.num_hidden_layers = 1
    assert loaded(model, tokenizer=words()).cfg.n_layers == 1


def test_weights_on_the_meta_device_are_said():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match="meta device, without weights"):
        loaded(model)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 9")])
def test_too_little_memory_is_said_and_never_a_bridge(tmp_path, monkeypatch, error, caplog):
    def fails(*_, **__):
        raise error

    folder = model_dir(tmp_path / "large")
    for place in ("observe", "hooked_or_bridge"):
        with monkeypatch.context() as patched:
            patched.setattr(f"mwork_lens.model.loading.{place}", fails)
            with pytest.raises(ValueError, match="not enough memory on cpu"):
                loaded(folder)
    if HOOKED:
        monkeypatch.setattr("transformer_lens.loading_from_pretrained.convert_llama_weights", fails)
        with pytest.raises(ValueError, match="not enough memory on cpu"):
            loaded(folder)
    assert "TransformerBridge" not in caplog.text


@needs_hooked
@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.AcceleratorError("device-side assert"), "transformer_lens"),
        (RuntimeError("x"), "x"),
        (KeyError("x"), "x"),
    ],
)
def test_faults_that_are_not_of_transformer_lens_are_never_a_bridge(monkeypatch, error, where, caplog):
    def fails(*_, **__):
        raise error

    fails = FunctionType(fails.__code__, {"__name__": where}, None, None, fails.__closure__)
    convert = "transformer_lens.loading_from_pretrained.convert_llama_weights"
    for place in (convert, "mwork_lens.model.comparing.run_blocks"):
        with monkeypatch.context() as patched:
            patched.setattr(place, fails)
            with pytest.raises(type(error), match=str(error)):
                loaded(small_model())
    assert "TransformerBridge" not in caplog.text


@needs_hooked
def test_what_transformer_lens_cannot_convert_is_a_bridge_and_says_why(caplog):
    """Another width than it presumes, a bias that it needs, an architecture that it does not know."""
    without_biases = small_model("GPTNeoX", attention_bias=False)
    with pytest.raises(ValueError, match=r"cannot convert it .*einops.*TransformerBridge does not take it"):
        loaded(without_biases, tokenizer=words())
    loaded(gpt2(n_inner=20), tokenizer=words())
    assert "cannot convert it (blocks.0.mlp.W_in is [16, 20], it presumes [16, 64])" in caplog.text
    loaded(small_model("Granite"), tokenizer=words())
    assert "cannot convert it (GraniteForCausalLM is not currently supported)" in caplog.text


def test_weights_that_are_not_finite_are_said():
    model = small_model()
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        loaded(model)


# custom code

CODE = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast as Words
class Mine(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = Mine
"""


def with_code(folder, canary, **config):
    model_dir(folder)
    (folder / "mine.py").write_text(CODE.format(canary=str(canary)))
    code = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    edit_json(folder / "config.json", auto_map=code, **config)
    return folder


def test_custom_code_is_refused_in_one_line_and_never_run(tmp_path):
    canary = tmp_path / "ran"
    mine = {"architectures": ["MineForCausalLM"]}
    for number, config in enumerate([{**mine, "model_type": "mine"}, mine, {}]):
        folder = with_code(tmp_path / f"model{number}", canary, **config)
        with pytest.raises(ValueError, match=r"custom code \(.*MineForCausalLM\).*mw\.load_model\(model") as raised:
            loaded(folder)
        assert "\n" not in str(raised.value)
    folder = model_dir(tmp_path / "tokenizer")
    (folder / "mine.py").write_text(CODE.format(canary=str(canary)))
    edit_json(
        folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": [None, "mine.Words"]}
    )
    with pytest.raises(ValueError, match=r"tokenizer of .* is custom code.*tokenizer="):
        loaded(folder)
    assert not canary.exists()


def test_code_that_the_library_has_itself_is_not_needed(tmp_path):
    """Old checkpoints of Phi and Falcon still name their code."""
    folder = with_code(tmp_path / "model", tmp_path / "ran")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    assert type(loaded(folder)).__name__ == KIND
    assert not (tmp_path / "ran").exists()


def test_yes_piped_into_the_command_line_runs_nothing(tmp_path):
    folder = with_code(tmp_path / "model", tmp_path / "ran", architectures=["MineForCausalLM"], model_type="mine")
    (tmp_path / "en.txt").write_text("a b c\n" * 4)
    command = [sys.executable, "-m", "mwork_lens", "detect", "--model", str(folder), "--corpus", str(tmp_path)]
    done = subprocess.run(command, input="y\ny\ny\n", capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode
    assert "custom code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config", [[], "llama", {"auto_map": "mine.Mine"}])
def test_a_configuration_that_holds_no_settings_is_an_error_of_its_folder(tmp_path, config):
    folder = model_dir(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model cannot be loaded: .*(no settings|model_type)"):
        loaded(folder)


@pytest.mark.parametrize("kind", ["Model", "ForSequenceClassification"])
def test_a_model_in_memory_without_an_unembedding_is_refused(kind):
    theirs = getattr(transformers, f"Llama{kind}")(transformers.LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match=rf"\(Llama{kind}\) has no unembedding"):
        loaded(theirs)


# multimodal checkpoints


def multimodal(kind):
    text = {**SMALL, "head_dim": 4}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    if kind == "Gemma3":
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    else:
        config = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**SMALL), vision_config=transformers.CLIPVisionConfig(**vision)
        )
    torch.manual_seed(0)
    return jittered(getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval())


@pytest.mark.parametrize("kind", ["Gemma3", "Llava"])
def test_multimodal_checkpoints_give_their_text_model(tmp_path, kind):
    theirs, ids = multimodal(kind), torch.arange(1, 12)[None]
    with torch.inference_mode():
        expected = theirs(input_ids=ids).logits
    folder = model_dir(tmp_path / "model", theirs)
    for source in (folder, theirs, multimodal(kind)):
        model = loaded(source, tokenizer=words())
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
        assert model.cfg.n_layers == 2
    name = next(name for name in load_file(folder / "model.safetensors") if "1.mlp.up_proj" in name)
    edit_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=r"has no weights for .*layers\.1\.mlp\.up_proj"):
        loaded(folder)


def test_a_multimodal_model_with_other_logits_than_its_text_model_is_said():
    """Llava leaves out Granite's division of the logits, which its losses would then be without."""
    text = transformers.GraniteConfig(**SMALL, logits_scaling=4.0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    theirs = jittered(transformers.LlavaForConditionalGeneration(config).eval())
    said = "LlavaForConditionalGeneration gives other logits than its text model GraniteForCausalLM, by 300%"
    with pytest.warns(UserWarning, match=said):
        loaded(theirs)


# planted faults: what the comparison must find

WINDOW = {"head_dim": 4, "sliding_window": 40}


def fault_in_memory(monkeypatch, kind, change):
    """The named fault in what TransformerLens converts."""
    name = f"transformer_lens.loading_from_pretrained.convert_{kind}_weights"
    convert = getattr(conversion.transformer_lens()[1], f"convert_{kind}_weights")

    def wrong(model, cfg):
        weights = convert(model, cfg)
        change(weights, cfg)
        return weights

    monkeypatch.setattr(name, wrong)


def scaled(name, factor=1.02):
    def change(weights, cfg):
        weights[name] = weights[name] * factor

    return change


def without(name):
    return lambda weights, cfg: weights.pop(name)


def configured(**options):
    return lambda weights, cfg: [setattr(cfg, name, value) for name, value in options.items()]


def swapped(weights, cfg):
    weights["blocks.1.attn._W_K"] = weights["blocks.1.attn._W_K"].flip(0)


FAULTS = [
    ("Llama", {}, "llama", scaled("blocks.1.attn.W_Q")),
    ("Llama", {}, "llama", scaled("blocks.0.mlp.W_in")),
    ("Llama", {}, "llama", swapped),
    ("Llama", {}, "llama", without("blocks.1.ln2.w")),
    ("Llama", {}, "llama", configured(rotary_base=9000, eps=1e-6)),
    ("Qwen2", {}, "qwen2", without("blocks.1.attn.b_Q")),
    ("Qwen2", {}, "qwen2", without("blocks.0.attn._b_V")),
    ("Qwen3", {"head_dim": 4}, "qwen3", without("blocks.0.attn.k_norm.w")),
    ("GPT2", {}, "gpt2", without("blocks.1.mlp.b_in")),
    ("GPT2", {}, "gpt2", without("ln_final.b")),
    ("GPT2", {}, "gpt2", scaled("pos_embed.W_pos")),
    ("Mistral", WINDOW, "mistral", configured(window_size=41)),
    ("Mistral", WINDOW, "mistral", configured(use_local_attn=False, attn_types=["global"] * 2)),
]


@needs_hooked
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "options", "converter", "change"), FAULTS)
def test_a_fault_in_the_conversion_is_found(monkeypatch, caplog, kind, options, converter, change, dtype):
    theirs = gpt2() if kind == "GPT2" else jittered(small_model(kind, **options))
    assert type(loaded(theirs, dtype=dtype)).__name__ == "HookedTransformer"
    fault_in_memory(monkeypatch, converter, change)
    model = loaded(theirs, tokenizer=words(), dtype=dtype)
    assert type(model).__name__ == "TransformerBridge"
    assert "would differ" in caplog.text


LONG = {"rope_type": "longrope", "attention_factor": 1.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4}


@needs_hooked
@pytest.mark.parametrize(
    ("kind", "options", "change", "match"),
    [
        ("Mistral", {"sliding_window": 3000, "head_dim": 4}, configured(window_size=3001), "3001 tokens, not to 3000"),
        ("Mistral", {"sliding_window": 3000, "head_dim": 4}, configured(), ""),
        ("Phi3", {"rope_parameters": {**LONG, "short_factor": [1.0, 1.0], "long_factor": [1.0, 4.0]}}, None, "angles"),
    ],
)
def test_faults_beyond_the_lengths_that_are_computed(monkeypatch, caplog, kind, options, change, match):
    theirs = jittered(small_model(kind, max_position_embeddings=8192, pad_token_id=0, **options))
    if change is not None:
        fault_in_memory(monkeypatch, kind.lower(), change)
    model = loaded(theirs, tokenizer=words())
    assert type(model).__name__ == ("TransformerBridge" if match else "HookedTransformer")
    assert match in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bridge_that_differs_is_refused(monkeypatch, dtype):
    """A bridge of a model whose weights, window or unembedding are not those that were observed."""

    def scale(theirs):
        theirs.model.layers[1].self_attn.scaling *= 1.02

    def bias(theirs):
        theirs.model.layers[0].self_attn.q_proj.bias.data.zero_()

    def unembedding(theirs):
        theirs.lm_head.weight.data *= 1.2

    on, theirs = conversion.bridge_on, jittered(small_model("Qwen2"))
    monkeypatch.setattr(conversion, "transformer_lens", lambda: (_ for _ in ()).throw(conversion.NotConvertible("no")))
    for fault in (scale, bias, unembedding):

        def planted(model, tokenizer, fault=fault):
            fault(model)
            return on(model, tokenizer)

        monkeypatch.setattr(conversion, "bridge_on", planted)
        with pytest.raises(ValueError, match=r"has it wrong: as a TransformerBridge .*would differ by"):
            loaded(theirs, tokenizer=words(), dtype=dtype)


def test_falcon_with_alibi_is_refused():
    """Which bridges of both generations compute wrongly."""
    options = {"alibi": True, "multi_query": False, "parallel_attn": False, "new_decoder_architecture": False}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    torch.manual_seed(0)
    theirs = jittered(transformers.FalconForCausalLM(transformers.FalconConfig(**small, **options)).eval())
    with pytest.raises(ValueError, match="has it wrong"):
        loaded(theirs, tokenizer=words())


def test_the_comparison_leaves_half_precision_weights_as_they_are():
    theirs = jittered(small_model("Mistral", **WINDOW)).to(torch.bfloat16)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    comparing.observe(theirs, "x")
    after = theirs.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in theirs.modules())


def test_errors_without_words_have_a_line():
    assert checkpoints.first_line(KeyError()) == "KeyError"
