"""Tiny random models of each architecture family, as HookedTransformers in float64 and of transformers; a tokenizer."""

import copy
import warnings
from functools import cache
from importlib.metadata import version

import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import WhitespaceSplit

from mwork_lens.neurons import NeuronSet, NeuronSpace

from .words import words

HOOKED = version("transformer-lens") < "4"
"""TransformerLens up to 3.9; later ones make bridges only."""
COMMON = {
    "n_layers": 2,
    "d_model": 24,
    "n_heads": 4,
    "d_head": 8,
    "d_mlp": 20,
    "d_vocab": 50,
    "n_ctx": 64,
    "act_fn": "silu",
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "rotary_adjacent_pairs": False,
    "final_rms": True,
    "gated_mlp": True,
}
GEMMA = {"n_key_value_heads": 2, "use_normalization_before_and_after": True, "act_fn": "gelu_pytorch_tanh"}
LOCAL = {"use_local_attn": True, "window_size": 5}
PLAIN = {"normalization_type": "LN", "gated_mlp": False, "final_rms": False, "act_fn": "gelu"}
FAMILIES = {
    "llama": {"n_key_value_heads": 2},
    "mistral": {"n_key_value_heads": 2, **LOCAL, "attn_types": ["local", "local"]},
    "qwen2": {"n_key_value_heads": 2},
    "qwen3": {"n_key_value_heads": 2, "use_qk_norm": True},
    "gemma2": {**GEMMA, **LOCAL, "attn_types": ["global", "local"], "attn_scores_soft_cap": 3.0},
    "gemma3": {
        **GEMMA,
        **LOCAL,
        "attn_types": ["local", "global"],
        "use_qk_norm": True,
        "rotary_base": 1000000,
        "rotary_base_local": 10000,
    },
    "gpt2": {**PLAIN, "positional_embedding_type": "standard", "rotary_dim": None},
    "gptj": {**PLAIN, "rotary_dim": 4, "rotary_adjacent_pairs": True, "parallel_attn_mlp": True},
    "neox": {**PLAIN, "rotary_dim": 4, "parallel_attn_mlp": True},
    "phi": {**PLAIN, "rotary_dim": 4, "parallel_attn_mlp": True},
    "bloom": {**PLAIN, "positional_embedding_type": "alibi", "rotary_dim": None, "post_embedding_ln": True},
    "olmo2": {"original_architecture": "Olmo2ForCausalLM"},
    "sinks": {"use_attention_sinks": True, "n_key_value_heads": 2},
    "clipped": {"clip_qkv": 0.8},
}


@cache
@torch.inference_mode(False)
def tiny(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, n_layers: int = 2, d_head: int = 8):
    """A tiny model with weights large enough that attention is far from uniform."""
    pytest.importorskip("transformer_lens.HookedTransformer", reason="TransformerLens 4 has no HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    given = {**COMMON, **FAMILIES[family], "n_layers": n_layers, "d_head": d_head}
    if family == "olmo2":
        given["d_model"] = given["n_heads"] * d_head  # the width of its norms across heads
    options = {key: value for key, value in given.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = HookedTransformerConfig(**options, dtype=dtype, device="cpu", model_name=f"tiny-{family}", seed=seed)
        model = HookedTransformer(cfg)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        gain = name.endswith(".w")
        scale = 0.3 if gain or parameter.ndim == 1 or ".b_" in name else 1.5 / parameter.shape[-2] ** 0.5
        parameter.data = (noise * scale + (1 if gain else 0)).to(dtype)
    return model.eval()


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    """Token ids of one document."""
    return torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(seed))


def residual(model, ids, layer):
    """The residual stream after ``layer`` blocks, by TransformerLens's own cache."""
    _, cache = model.run_with_cache(ids[None])
    name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
    return cache[name][0]


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


def gemma():
    config = transformers.Gemma3TextConfig(**{**SMALL, "head_dim": 4})
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(config).eval()


def spelled(family, **options):
    """A tiny model that reads and writes the letters a to h."""
    model, tokenizer = copy.deepcopy(tiny(family, **options)), words()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.init_kwargs |= {"name_or_path": "words", "add_bos_token": True}
    model.set_tokenizer(tokenizer, default_padding_side="left")
    model.cfg.d_vocab = 50
    model.unembed.b_U.data[11:] = -1e9
    return model


def some_neurons(model, share=0.3, seed=0):
    space = NeuronSpace.of(model)
    generator = torch.Generator().manual_seed(seed)
    masks = {site: torch.rand(space.n_layers, w, generator=generator) < share for site, w in space.widths.items()}
    return NeuronSet(space, masks)


def installed(model):
    return {name: len(point.fwd_hooks) for name, point in model.hook_dict.items() if point.fwd_hooks}


KINDS = ["llama", "gemma3", "gpt2"]
