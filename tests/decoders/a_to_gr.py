"""The rows of architectures up to Granite."""

from .row import Decoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
MIXTURE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_d_ssm": 64}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
BY_KIND = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": LINEAR}
COHERE = {**GROUPED, "logit_scale": 0.3}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 20, "vocab_size": 50, "n_positions": 64}
NEO = {
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 5,
}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}
FALCON = {
    "hidden_size": 32,
    "ffn_hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
GEMMA = {**GROUPED, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 12}
GEMMA_4 = {
    **GROUPED,
    **WINDOW,
    "head_dim": 8,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 50,
}
GEMMA_4_SHARED = {
    **GEMMA_4,
    "num_hidden_layers": 4,
    "layer_types": 2 * WINDOW["layer_types"],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
SAME = "scores and sets have the same neurons in every layer"
GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
GRANITE_4 = {
    **GRANITE,
    **MAMBA,
    "layer_types": ["attention", "attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 20,
    "position_embedding_type": "rope",
}

A_TO_GR = (
    Decoder("AfmoeForCausalLM", {**GROUPED, **MIXTURE, "moe_intermediate_size": 20}, refused="mixture of experts"),
    Decoder("ApertusForCausalLM", {**GROUPED, "rope_parameters": LLAMA_3}),
    Decoder("ApertusForCausalLM", {**GROUPED, "attention_bias": True}, "biases"),
    Decoder("ArceeForCausalLM", {**GROUPED, "head_dim": 8}),
    Decoder("ArceeForCausalLM", {**GROUPED, "head_dim": 8, "attention_bias": True, "mlp_bias": True}, "biases"),
    Decoder("ArceeForCausalLM", {**GROUPED, "rope_parameters": YARN}, "yarn"),
    Decoder("ArceeForCausalLM", {**GROUPED, "rope_parameters": LONG_ROPE}, "long-rope"),
    Decoder("BaichuanForCausalLM", note="custom code"),
    Decoder("BaiChuanForCausalLM", note="custom code"),
    Decoder("BambaForCausalLM", {**GROUPED, **MAMBA, "attn_layer_indices": [1]}, refused="no attention pattern"),
    Decoder("BitNetForCausalLM", GROUPED),
    Decoder("BloomForCausalLM", BLOOM),
    Decoder("BloomForCausalLM", {**BLOOM, "apply_residual_connection_post_layernorm": True}, "stream normed"),
    Decoder("BloomForCausalLM", {**BLOOM, "n_head": 6, "hidden_size": 48}, "6 heads"),
    Decoder(
        "BloomForCausalLM",
        {**BLOOM, "pretraining_tp": 2, "slow_but_exact": True},
        "slow but exact",
        refused="would differ",
    ),
    Decoder("BloomModel", note="same as BloomForCausalLM"),
    Decoder("CodeGenForCausalLM", {**GPT, "rotary_dim": 4}),
    Decoder("CodeGenForCausalLM", {**GPT, "rotary_dim": 8}, "fully rotated"),
    Decoder("Cohere2ForCausalLM", {**COHERE, **WINDOW}, generations=("4.3",)),
    Decoder("Cohere2ForCausalLM", {**COHERE, **WINDOW}, refused="would differ", generations=("3.9",)),
    Decoder("CohereForCausalLM", COHERE, generations=("4.3",)),
    Decoder("CohereForCausalLM", COHERE, refused="would differ", generations=("3.9",)),
    Decoder("CohereForCausalLM", {**COHERE, "use_qk_norm": True}, "normed queries", generations=("4.3",)),
    Decoder("DeepseekV2ForCausalLM", {**SIZES, **MIXTURE, **LATENT}, refused="latent attention"),
    Decoder(
        "DeepseekV3ForCausalLM",
        {**SIZES, **MIXTURE, **LATENT, "n_group": 1, "topk_group": 1},
        refused="latent attention",
    ),
    Decoder("DeepseekV4ForCausalLM", {**SIZES, **MIXTURE}, refused="latent attention"),
    Decoder("Ernie4_5_MoeForCausalLM", {**GROUPED, "moe_num_experts": 4, "moe_k": 2}, refused="mixture of experts"),
    Decoder("Ernie4_5ForCausalLM", {**GROUPED, "head_dim": 8}),
    Decoder("Ernie4_5ForCausalLM", {**GROUPED, "head_dim": 16, "use_bias": True}, "biases"),
    Decoder("Exaone4ForCausalLM", {**GROUPED, **WINDOW, "sliding_window_pattern": 2}),
    Decoder(
        "Exaone4ForCausalLM",
        {**GROUPED, "sliding_window": None, "layer_types": ["full_attention", "full_attention"]},
        "no window",
    ),
    Decoder("ExaoneForCausalLM", note="custom code"),
    Decoder("FalconForCausalLM", FALCON),
    Decoder("FalconForCausalLM", {**FALCON, "bias": True}, "biases"),
    Decoder("FalconForCausalLM", {**FALCON, "parallel_attn": False}, "sequential"),
    Decoder("FalconForCausalLM", {**FALCON, "multi_query": False}, "all heads"),
    Decoder(
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "multi_query": False, "num_kv_heads": 2},
        "groups",
        refused="would differ",
    ),
    Decoder(
        "FalconForCausalLM",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "multi_query": False,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
        },
        "groups, one norm",
        refused="TransformerBridge",
    ),
    Decoder("FalconForCausalLM", {**FALCON, "alibi": True}, "ALiBi"),
    Decoder(
        "FalconForCausalLM",
        {
            **FALCON,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
            "num_attention_heads": 6,
            "hidden_size": 48,
        },
        "ALiBi, sequential",
    ),
    Decoder("FalconH1ForCausalLM", {**GROUPED, **MAMBA}, refused="mamba beside attention"),
    Decoder(
        "FalconMambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50},
        refused="no attention pattern",
    ),
    Decoder("FlexOlmoForCausalLM", {**GROUPED, **MIXTURE}, refused="mixture of experts"),
    Decoder("Gemma1ForCausalLM", note="same as GemmaForCausalLM"),
    Decoder("Gemma2ForCausalLM", {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}),
    Decoder("Gemma2ForCausalLM", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}, "no caps"),
    Decoder("Gemma3ForCausalLM", GEMMA),
    Decoder(
        "Gemma3ForCausalLM",
        {**GEMMA, "final_logit_softcapping": 4.0, "rope_parameters": BY_KIND},
        "cap, scaled rotation",
    ),
    Decoder("Gemma4ForCausalLM", GEMMA_4),
    Decoder(
        "Gemma4ForCausalLM",
        {
            **GEMMA_4,
            "hidden_size_per_layer_input": 0,
            "attention_bias": True,
            "final_logit_softcapping": 4.0,
            "rope_parameters": {
                **BY_KIND,
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e3, "partial_rotary_factor": 0.5},
            },
        },
        "no inputs by layer, biases, cap",
    ),
    Decoder(
        "Gemma4ForCausalLM",
        {**GEMMA_4, "global_head_dim": 16},
        "two widths",
        refused=f"q of shape (64, 32), where that of layer 0 is (32, 32); {SAME}",
    ),
    Decoder(
        "Gemma4ForCausalLM",
        {**GEMMA_4, "attention_k_eq_v": True},
        "keys as values",
        refused=f"takes its keys for values, so that a neuron of one is one of the other; {SAME}",
    ),
    Decoder(
        "Gemma4ForCausalLM",
        GEMMA_4_SHARED,
        "shared keys",
        refused=f"no k and v of its own, but takes those of an earlier layer; {SAME}",
    ),
    Decoder(
        "Gemma4ForCausalLM",
        {**GEMMA_4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20},
        "experts",
        refused="mixture of experts",
    ),
    Decoder("GemmaForCausalLM", {**GROUPED, "head_dim": 8}),
    Decoder("Glm4ForCausalLM", {**GROUPED, "head_dim": 8}),
    Decoder("Glm4MoeForCausalLM", {**GROUPED, **MIXTURE}, refused="mixture of experts"),
    Decoder("Glm4MoeLiteForCausalLM", {**SIZES, **MIXTURE, **LATENT}, refused="latent attention"),
    Decoder("GlmForCausalLM", {**GROUPED, "head_dim": 8}),
    Decoder("GlmForCausalLM", {**GROUPED, "head_dim": 8, "attention_bias": False}, "no biases"),
    Decoder("GlmMoeDsaForCausalLM", {**SIZES, **MIXTURE, **LATENT}, refused="latent attention"),
    Decoder("GPT2LMHeadCustomModel", note="custom code"),
    Decoder("GPT2LMHeadModel", GPT),
    Decoder("GPT2LMHeadModel", {**GPT, "n_inner": None}, "4 times as wide"),
    Decoder("GPT2LMHeadModel", {**GPT, "scale_attn_by_inverse_layer_idx": True}, "scaled by layer"),
    Decoder("GPT2LMHeadModel", {**GPT, "scale_attn_weights": False}, "not scaled", refused="would differ"),
    Decoder("GPTBigCodeForCausalLM", GPT),
    Decoder("GPTBigCodeForCausalLM", {**GPT, "multi_query": False}, "all heads", refused="multi_query=True"),
    Decoder("GPTBigCodeForCausalLM", {**GPT, "scale_attn_weights": False}, "not scaled", refused="would differ"),
    Decoder("GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    Decoder("GPTJForCausalLM", {**GPT, "rotary_dim": 8}, "fully rotated"),
    Decoder("GPTNeoForCausalLM", NEO),
    Decoder("GPTNeoXForCausalLM", {**SIZES, "rotary_pct": 0.5}),
    Decoder("GPTNeoXForCausalLM", {**SIZES, "rotary_pct": 1.0, "use_parallel_residual": False}, "sequential"),
    Decoder(
        "GPTNeoXForCausalLM",
        {**SIZES, "attention_bias": False},
        "no biases",
        refused="TransformerBridge",
    ),
    Decoder("GptOssForCausalLM", {**GROUPED, **MIXTURE, "head_dim": 8}, refused="mixture of experts"),
    Decoder("GraniteForCausalLM", {**GROUPED, **GRANITE}),
    Decoder("GraniteForCausalLM", {**GROUPED, **GRANITE, "attention_bias": True, "mlp_bias": True}, "biases"),
    Decoder("GraniteMoeForCausalLM", {**GROUPED, **MIXTURE, **GRANITE}, refused="mixture of experts"),
    Decoder("GraniteMoeHybridForCausalLM", {**GROUPED, **GRANITE_4}),
    Decoder("GraniteMoeHybridForCausalLM", {**GROUPED, **GRANITE_4, "attention_bias": True}, "biases"),
    Decoder("GraniteMoeHybridForCausalLM", {**GROUPED, **GRANITE_4, "position_embedding_type": "nope"}, "not rotated"),
    Decoder(
        "GraniteMoeHybridForCausalLM",
        {**GROUPED, **GRANITE_4, **MIXTURE},
        "experts",
        refused="mixture of experts",
    ),
    Decoder(
        "GraniteMoeHybridForCausalLM",
        {**GROUPED, **GRANITE_4, "layer_types": ["mamba", "attention"]},
        "recurrent layers",
        refused="no attention pattern",
    ),
)
