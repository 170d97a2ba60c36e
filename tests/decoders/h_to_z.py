"""The rows of architectures from HrmText on."""

import torch

from .a_to_gr import GROUPED, SIZES
from .row import Decoder

WIDE = {**GROUPED, "head_dim": 12}
FOUR = {"num_hidden_layers": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
OPT = {"hidden_size": 32, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50, **IDS}
OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": 32}
GPT_1 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64}
XGLM = {"d_model": 32, "ffn_dim": 20, "num_layers": 2, "attention_heads": 4, "vocab_size": 50, **IDS}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 1, "vocab_size": 50, "max_seq_len": 64}
ANGLES = {"rope_theta": 10000.0, "original_max_position_embeddings": 8}
YARN = {**ANGLES, "rope_type": "yarn", "factor": 4.0}
LLAMA_3 = {**ANGLES, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    **ANGLES,
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
GROWING = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def _row(name: str, options: dict, variant: str = "", **more) -> Decoder:
    return Decoder(f"{name}ForCausalLM", options, variant, **{"length": 14, **more})


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MANY = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
EXPERTS_DIFFER, NO_ATTENTION = "is a mixture of experts", "has no attention pattern"
CUSTOM = "custom code"


def _experts(name: str, options: dict, variant: str = "") -> Decoder:
    return _row(name, {**IDS, **options}, variant, refused=EXPERTS_DIFFER)


def _recurrent(name: str, options: dict, refused: str = NO_ATTENTION) -> Decoder:
    return _row(name, {**IDS, **options}, refused=refused)


def _unbuilt(note: str, *names: str) -> tuple[Decoder, ...]:
    return tuple(_row(name, {}, note=note) for name in names)


H_TO_Z = (
    _row("HunYuanDenseV1", {**WIDE, **IDS}, generations=("4.3",)),
    _row("HunYuanDenseV1", {**WIDE, **IDS}, refused="would differ", generations=("3.9",)),
    _row("Jais2", {**WIDE, **IDS}),
    _row("Llama", GROUPED),
    _row("Llama", {**WIDE, "attention_bias": True, "mlp_bias": True}, "biases"),
    _row("Llama", {**GROUPED, "rope_parameters": YARN}, "yarn"),
    _row("Llama", {**GROUPED, "rope_parameters": LLAMA_3}, "scaled rotation"),
    _row("Llama", {**GROUPED, "rope_parameters": {**ANGLES, "rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
    _row("Llama", {**GROUPED, "rope_parameters": LONG}, "long-rope"),
    _row("Ministral3", {**WIDE, **IDS, "sliding_window": 5}, "window"),
    _row(
        "Ministral3", {**WIDE, **IDS, "sliding_window": None, "rope_parameters": GROWING}, "growing queries", length=20
    ),
    _row("Mistral", {**WIDE, "sliding_window": 5}, "window"),
    _row("Mistral", {**GROUPED, "sliding_window": None}),
    _row("Mpt", MPT),
    _row("Mpt", {**MPT, "attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.5}}, "clipped"),
    _row("Nemotron", {**WIDE, **IDS, "partial_rotary_factor": 0.5, "attention_bias": True, "mlp_bias": True}, "biases"),
    _row("Nemotron", {**WIDE, **IDS, "partial_rotary_factor": 0.5}),
    _row("Olmo", {**GROUPED, **IDS}),
    _row("Olmo", {**GROUPED, **IDS, "clip_qkv": 0.8}, "clipped"),
    _row("Olmo2", {**GROUPED, **IDS}),
    _row("Olmo3", {**GROUPED, **FOUR, **IDS, "sliding_window": 5}),
    _row("Phi", {**SIZES, **IDS, "partial_rotary_factor": 0.5}),
    _row("Phi", {**GROUPED, **IDS, "partial_rotary_factor": 0.5}, "grouped heads"),
    _row("Phi3", {**GROUPED, **IDS}),
    _row("Phi3", {**GROUPED, **IDS, "rope_parameters": LONG, "original_max_position_embeddings": 8}, "long-rope"),
    _row("Phi3", {**GROUPED, **IDS, "sliding_window": 5, "partial_rotary_factor": 0.5}, "window, partial rotation"),
    _row("Qwen2", {**GROUPED, **IDS}),
    _row("Qwen2", {**GROUPED, **FOUR, **IDS, **WINDOW, "max_window_layers": 2}, "windows in two layers"),
    _row("Qwen3", {**WIDE, **IDS}),
    _row("Qwen3", {**WIDE, **FOUR, **IDS, **WINDOW, "max_window_layers": 2, "attention_bias": True}, "windows, biases"),
    _row("SeedOss", {**WIDE, **IDS}),
    _row("SeedOss", {**WIDE, **IDS, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True}, "biases"),
    _row("SmolLM3", {**GROUPED, **IDS, "no_rope_layers": [1, 0]}),
    _row("SmolLM3", {**GROUPED, **IDS, **WINDOW, "no_rope_layers": [1, 0], "attention_bias": True}, "windows, biases"),
    _row("StableLm", {**GROUPED, **IDS}),
    _row("StableLm", {**GROUPED, **IDS, "qk_layernorm": True}, "norms by head"),
    _row("StableLm", {**GROUPED, **IDS, "use_parallel_residual": True, "use_qkv_bias": True}, "parallel, biases"),
    _row("Starcoder2", {**GROUPED, **IDS, "sliding_window": 5}),
    _row("Starcoder2", {**GROUPED, **IDS, "sliding_window": None, "use_bias": False}, "without biases"),
    _row(
        "VaultGemma",
        {
            **WIDE,
            **IDS,
            "sliding_window": 5,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    _row("ModernBertDecoder", {**SIZES, **IDS, "global_attn_every_n_layers": 2, "local_attention": 8}, "windows"),
    _row("NanoChat", {**GROUPED, **IDS}),
    Decoder("OpenAIGPTLMHeadModel", {**GPT_1, "afn": "gelu"}),
    Decoder("OpenAIGPTLMHeadModel", {**GPT_1, "afn": "relu"}, "ReLU"),
    _row("OPT", OPT),
    _row("OPT", {**OPT, "word_embed_proj_dim": 16}, "projected embedding"),
    _row("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "normed sums"),
    _row("OPT", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}, "without biases"),
    _row("XGLM", XGLM, dtype=torch.float32),
    _row("Phi", {**SIZES, **IDS, "qk_layernorm": True}, "norms of queries", refused="q_layernorm"),
)
NATIVE = {"d_model": 32, "d_head": 8, "n_layers": 2, "n_ctx": 64, "n_heads": 4, "d_vocab": 50, "d_mlp": 20}
OWN = (
    Decoder("TransformerLensNative", {**NATIVE, "act_fn": "gelu"}),
    Decoder(
        "TransformerLensNative",
        {**NATIVE, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "n_key_value_heads": 2},
        "gated, RMS norms, grouped heads",
    ),
    Decoder(
        "TransformerLensNative",
        {**NATIVE, "act_fn": "solu_ln", "normalization_type": "LNPre"},
        "SoLU",
        generations=("4.3",),
    ),
    Decoder(
        "TransformerLensNative",
        {**NATIVE, "act_fn": "gelu", "positional_embedding_type": "rotary"},
        "rotary",
        refused="rotary function",
    ),
)
REFUSED = (
    _recurrent("Jamba", {**GROUPED, "num_experts": 2, "use_mamba_kernels": False}),
    _experts("JetMoe", {**GROUPED, **EXPERTS, "kv_channels": 8}),
    _experts("Laguna", GROUPED),
    _recurrent("Lfm2Moe", {**GROUPED, **MANY, "layer_types": ["conv", "full_attention"]}),
    _experts("Llama4", {**WIDE, **EXPERTS, "intermediate_size_mlp": 20}),
    _experts("MiniMaxM2", {**WIDE, **EXPERTS}),
    _experts("Mixtral", {**GROUPED, **EXPERTS}),
    _recurrent("NemotronH", {**WIDE, "layers_block_type": ["mamba", "attention"]}),
    _experts("Olmoe", {**GROUPED, **MANY}),
    _experts("Qwen2Moe", {**GROUPED, **MANY, "shared_expert_intermediate_size": 8}),
    _experts("Qwen3Moe", {**WIDE, **MANY}),
    _recurrent("Qwen3Next", {**WIDE, **MANY, **HYBRID}),
    _recurrent("Qwen3_5Moe", {**WIDE, **MANY, **HYBRID}),
    _recurrent("HrmText", GROUPED, "is recurrent"),
    _recurrent("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    _recurrent("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}),
    _recurrent("Mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "num_heads": 8, "head_dim": 8}),
    _recurrent("OlmoHybrid", GROUPED),
    _recurrent("Qwen3_5", {**WIDE, **HYBRID}),
    _recurrent("RecurrentGemma", {**GROUPED, "num_hidden_layers": 3, "lru_width": 32}),
    _recurrent("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}),
    _recurrent(
        "Youtu",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
        },
        "has latent attention",
    ),
    _recurrent("Zamba2", {**SIZES, "layer_types": ["mamba", "mamba"]}),
)
UNBUILT = (
    *_unbuilt(CUSTOM, "HyenaDNA", "InternLM2", "MPT", "OpenELM", "Ouro", "PhiMoE", "Qwen", "Raven", "RWKV7"),
    Decoder("QWenLMHeadModel", note=CUSTOM),
    *_unbuilt("same as JetMoeForCausalLM", "JetMoE"),
    *_unbuilt("same as GPTNeoForCausalLM", "Neo"),
    *_unbuilt("same as GPTNeoXForCausalLM", "NeoX"),
    *_unbuilt("TransformerLens' own", "MinGPT", "NanoGPT", "NeelSoluOld"),
    Decoder("TransformerLensPretrain", note="TransformerLens' own"),
)
H_TO_Z += OWN + REFUSED + UNBUILT
