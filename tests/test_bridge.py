"""The closed forms on raw bridges, whose modules are those of transformers, against ablation through hooks."""

import contextlib
import io
import warnings
from itertools import product
from weakref import WeakKeyDictionary

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge

import mwork_lens as mw
from mwork_lens.detection import checking, importance
from mwork_lens.detection.checking import require_exact
from mwork_lens.measures.plnd import sides
from mwork_lens.model.forward import run_blocks
from mwork_lens.model.hooks import hooked
from mwork_lens.model.sites import SITES
from mwork_lens.neurons import NeuronSpace

from .decoders.a_to_gr import GEMMA_4, GROUPED, NEO, SIZES
from .faults import FAULTS, has

GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 20, "vocab_size": 50, "n_positions": 64}
FAMILIES = {
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 5},
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": 3.0},
    "Gemma3": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "GPT2": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTNeoX": {**SIZES, "rotary_pct": 0.5},
    "Phi": {**SIZES, "partial_rotary_factor": 0.5},
    "GPTNeo": NEO,
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50},
    "Olmo2": GROUPED,
    "Granite": {**GROUPED, "residual_multiplier": 0.5, "attention_multiplier": 0.5},
}
OPTIONS = {**FAMILIES, "OpenAIGPT": GPT, "Gemma4": GEMMA_4}
CONFIGS = {"Gemma3": "Gemma3Text", "Gemma4": "Gemma4Text"}
MODELS = {"GPT2": "GPT2LMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel"}


def words():
    """A tokenizer, without which a bridge looks for one on the hub."""
    model = Tokenizer(WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2}, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "eos_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special)
    tokenizer.init_kwargs |= {"name_or_path": "tiny", "add_bos_token": True}
    return tokenizer


def bridge(family):
    config = getattr(transformers, f"{CONFIGS.get(family, family)}Config")(**OPTIONS[family])
    torch.manual_seed(0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        theirs = getattr(transformers, MODELS.get(family, f"{family}ForCausalLM"))(config).double().eval()
        theirs.config.architectures = [type(theirs).__name__]
        for parameter in theirs.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        booted = TransformerBridge.boot_transformers(
            family, hf_model=theirs, tokenizer=words(), dtype=torch.float64, device="cpu"
        )
    return mw.load_model(booted)


@torch.inference_mode()
def ablated(model, ids, layer, site, neuron, point="{}"):
    output = {"q": "attn.hook_pattern", "k": "attn.hook_pattern", "v": "hook_attn_out", "mlp": "hook_mlp_out"}[site]

    def zero(activation, hook=None):
        flat = activation.flatten(2).clone()
        flat[..., neuron] = 0
        return flat.view(activation.shape)

    def run(hooks):
        kept = []
        keep = (f"blocks.{layer}.{output}", lambda activation, hook=None: kept.append(activation.clone()))
        with hooked(model, [*hooks, keep]):
            run_blocks(model, ids[None])
        return kept[0][0]

    change = run([(point.format(SITES[site].hook_name(layer)), zero)]) - run([])
    return (change.square().sum() / len(ids)).sqrt().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_equal_ablation_on_a_bridge(family):
    """To 1e-5: transformers computes rotary angles and RMS norms in float32, whatever the model's type."""
    model, ids = bridge(family), torch.arange(3, 15)
    scores = importance(model, ids)
    for site, width in NeuronSpace.of(model).widths.items():
        for layer in range(2):
            for neuron in range(0, width, 7):
                truth = ablated(model, ids, layer, site, neuron)
                assert scores[site][layer, neuron].item() == pytest.approx(truth, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2"])
def test_the_papers_form_takes_a_rotated_coordinate_off_the_scores_of_a_bridge(family):
    model, ids = bridge(family), torch.arange(3, 15)
    scores = importance(model, ids, formulation="paper")
    for site, layer, neuron in product(("q", "k"), range(2), (0, 3, 12)):
        truth = ablated(model, ids, layer, site, neuron, point=f"blocks.{layer}.attn.hook_rot_{site}")
        assert scores[site][layer, neuron].item() == pytest.approx(truth, rel=1e-5, abs=1e-9)


PLANTED = [
    ("scale", "Llama"),
    ("groups of k", "Qwen2"),
    ("groups of v", "GPTNeoX"),
    ("gain of k", "Qwen3"),
    ("gain of post-norm", "Gemma3"),
    ("post-norm", "Gemma2"),
    ("gain of post-norm", "OpenAIGPT"),
    ("gain of post-norm", "Gemma4"),
    ("rotation", "Phi"),
    ("multiplier", "Granite"),
    ("norm of values", "Gemma4"),
]


@pytest.mark.parametrize(
    ("fault", "family", "dtype"),
    [
        *((*each, torch.float32) for each in PLANTED),
        *((*each, torch.bfloat16) for each in (*PLANTED[-2:], ("scale", "GPTNeo"))),
    ],
)
def test_a_fault_in_the_reading_of_a_bridge_is_found(fault, family, dtype, monkeypatch):
    model = bridge(family).to(dtype)
    FAULTS[fault].plant(monkeypatch)
    assert has(model, FAULTS[fault].needs)
    with pytest.raises(ValueError, match=rf"({'|'.join(FAULTS[fault].sites)}) neuron \d+ of layer 1 .*layers=\[0\]"):
        require_exact(model, "stream", None, [0, 1], 4)


def test_queries_that_grow_are_compared_beyond_the_length_where_they_begin_to(monkeypatch):
    growing = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "llama_4_scaling_beta": 0.1}
    options = {"rope_parameters": {**growing, "original_max_position_embeddings": 64}, "max_position_embeddings": 256}
    monkeypatch.setitem(OPTIONS, "Ministral3", {**GROUPED, "head_dim": 8, "sliding_window": None, **options})
    model = bridge("Ministral3")
    mw.importance(model, torch.arange(100) % 40 + 3)
    monkeypatch.setattr(checking, "_verified", WeakKeyDictionary())
    monkeypatch.setattr(sides, "query_growth", lambda model, layer: None)
    mw.importance(model, torch.arange(40) % 40 + 3)
    with pytest.raises(ValueError, match=r"q neuron .* 80 tokens"):
        mw.importance(model, torch.arange(100) % 40 + 3)


FAR = {"max_position_embeddings": 512, "sliding_window": 128}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [2.0, 3.0, 4.0, 6.0]}
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128, **FACTORS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "options"),
    [("Gemma2", FAR), ("Phi3", {"rope_parameters": LONG_ROPE, "max_position_embeddings": 512, "pad_token_id": 0})],
)
def test_beyond_far_boundaries_masks_and_tables_are_compared_at_a_few_positions(family, options, dtype, monkeypatch):
    monkeypatch.setattr(checking, "LONGEST", 64)
    monkeypatch.setitem(OPTIONS, family, {**OPTIONS.get(family, GROUPED), **options})
    model = bridge(family).to(dtype)
    before = importance(model, torch.arange(3, 15), verify=False)
    checks = mw.check_scores(model, length=144)
    assert set(checks.site) == {"q", "k"}
    assert checks.relative.max() < 2e-5
    after = importance(model, torch.arange(3, 15), verify=False)
    assert all(torch.equal(after[site], scores) for site, scores in before.items())
    FAULTS["rotation"].plant(monkeypatch)
    checks = mw.check_scores(model, length=144)
    assert not checks.exact[checks.layer == 1].all()
    assert checks.exact[checks.layer == 0].all()
