"""One tiny configuration of each architecture: random weights, 300 tokens, two layers or as many as show its kinds."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

V = 300
TOKENS: dict[str, Any] = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
BODY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "max_position_embeddings": 256,
}  # fmt: skip
LLAMA = {**TOKENS, **BODY}
FULL_HEADS = {**LLAMA, "num_key_value_heads": 4}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA: dict[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 2, "topk_group": 1,
}  # fmt: skip
GATED_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
GPT: dict[str, Any] = {
    **TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    **TOKENS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2,
}  # fmt: skip
FALCON: dict[str, Any] = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXTURE: dict[str, Any] = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING = ["sliding_attention", "full_attention"]
WINDOWS: dict[str, Any] = {"sliding_window": 16, "layer_types": SLIDING}
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128, "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}  # fmt: skip
TINY_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", LLAMA),
    "Mistral": ("mistral", {**LLAMA, "sliding_window": 16}),
    "Ministral": ("ministral", {**LLAMA, "sliding_window": 16}),
    "Mixtral": ("mixtral", {**MIXTURE, "router_jitter_noise": 0.1}),
    "Qwen2": ("qwen2", LLAMA),
    "Qwen2-MoE": ("qwen2_moe", {**LLAMA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16}),
    "Qwen3": ("qwen3", LLAMA),
    "Qwen3-MoE": ("qwen3_moe", {**LLAMA, **EXPERTS, "num_experts": 4}),
    "Qwen3-Next": (
        "qwen3_next",
        {**LLAMA, **EXPERTS, **GATED_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "Qwen3.5": ("qwen3_5_text", {**LLAMA, **GATED_DELTA}),
    "Qwen3.5-MoE": (
        "qwen3_5_moe_text",
        {**LLAMA, **EXPERTS, **GATED_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "Gemma": ("gemma", LLAMA),
    "Gemma 2": ("gemma2", {**LLAMA, **WINDOWS, "query_pre_attn_scalar": 8}),
    "Gemma 3": ("gemma3_text", {**LLAMA, **WINDOWS, "query_pre_attn_scalar": 8}),
    "Gemma 3n": (
        "gemma3n_text",
        {
            **LLAMA, "num_hidden_layers": 4, "layer_types": SLIDING * 2, "sliding_window": 16, "intermediate_size": 48,
            "vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2,
            "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "GPT-2": ("gpt2", GPT),
    "GPT-J": ("gptj", {**GPT, "rotary_dim": 4}),
    "GPT-Neo": (
        "gpt_neo",
        {
            **TOKENS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
            "window_size": 16, "initializer_range": 0.2, "max_position_embeddings": 256,
        },
    ),
    "GPT-NeoX": ("gpt_neox", FULL_HEADS),
    "GPT-BigCode": ("gpt_bigcode", GPT),
    "OPT": (
        "opt",
        {
            **TOKENS, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 16, "max_position_embeddings": 256, "init_std": 0.2,
        },
    ),
    "Bloom": ("bloom", {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}),
    "MPT": (
        "mpt",
        {**TOKENS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, "initializer_range": 0.2},
    ),
    "Falcon": ("falcon", FALCON),
    "Falcon, ALiBi": ("falcon", {**FALCON, "alibi": True}),
    "Phi": ("phi", {**FULL_HEADS, "partial_rotary_factor": 0.5}),
    "Phi-3": ("phi3", FULL_HEADS),
    "Phi-3, longrope": (
        "phi3", {**FULL_HEADS, "original_max_position_embeddings": 128, "rope_parameters": LONG_ROPE},
    ),
    "PhiMoE": ("phimoe", {**MIXTURE, "input_jitter_noise": 0.01}),
    "Granite": ("granite", {**LLAMA, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "Granite-MoE": ("granitemoe", MIXTURE),
    "Granite-MoE-hybrid": (
        "granitemoehybrid",
        {
            **LLAMA, **MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "Cohere": ("cohere", {**LLAMA, "logit_scale": 0.3}),
    "Cohere 2": ("cohere2", {**LLAMA, **WINDOWS, "logit_scale": 0.3}),
    "OLMo": ("olmo", LLAMA),
    "OLMo 2": ("olmo2", LLAMA),
    "OLMo 3": ("olmo3", {**LLAMA, **WINDOWS}),
    "OLMoE": ("olmoe", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "DeepSeek-V2": ("deepseek_v2", {**FULL_HEADS, **EXPERTS, **MLA}),
    "DeepSeek-V3": ("deepseek_v3", {**FULL_HEADS, **EXPERTS, **MLA}),
    "gpt-oss": ("gpt_oss", {**LLAMA, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "SmolLM3": ("smollm3", {**LLAMA, "no_rope_layers": [1, 0]}),
    "GLM-4": ("glm4", LLAMA),
    "GLM-4-MoE": (
        "glm4_moe", {**LLAMA, **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "EXAONE 4": ("exaone4", {**LLAMA, **WINDOWS}),
    "StarCoder 2": ("starcoder2", {**LLAMA, "sliding_window": 16}),
    "StableLM": ("stablelm", {**LLAMA, "partial_rotary_factor": 0.5}),
    "Llama 4": (
        "llama4_text",
        {
            **LLAMA, "intermediate_size_mlp": 48, "num_local_experts": 4, "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16, "no_rope_layers": [1, 0],
        },
    ),
    "Mamba": ("mamba", MAMBA),
    "Mamba 2": ("mamba2", {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    "Falcon-Mamba": ("falcon_mamba", MAMBA),
    "Falcon-H1": (
        "falcon_h1",
        {**LLAMA, **{k: v for k, v in MAMBA2.items() if k != "mamba_expand"}, "mamba_d_ssm": 64},
    ),
    "RWKV": (
        "rwkv",
        {**TOKENS, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "rescale_every": 1},
    ),
    "Jamba": (
        "jamba",
        {
            **LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False,
        },
    ),
    "Bamba": ("bamba", {**LLAMA, **MAMBA2, "attn_layer_indices": [1]}),
    "LFM2": ("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "Zamba 2": (
        "zamba2",
        {
            **FULL_HEADS, "num_hidden_layers": 3, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4,
            "mamba_headdim": 16, "chunk_size": 8, "layers_block_type": ["mamba", "hybrid", "mamba"],
            "num_mem_blocks": 1, "use_mem_rope": True, "attention_hidden_size": 64, "attention_head_dim": 16,
            "adapter_rank": 4,
        },
    ),
    "RecurrentGemma": (
        "recurrent_gemma",
        {
            **TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "lru_width": 32, "attention_window_size": 16,
        },
    ),
    "CTRL": ("ctrl", {**GPT, "dff": 48}),
    "XLNet": ("xlnet", {**TOKENS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.2}),
    "ERNIE 4.5": ("ernie4_5", LLAMA),
    "ERNIE 4.5-MoE": (
        "ernie4_5_moe",
        {
            **LLAMA, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "Hunyuan": ("hunyuan_v1_dense", LLAMA),
    "Hunyuan-MoE": ("hunyuan_v1_moe", {**LLAMA, "num_experts": 4, "moe_topk": 2}),
    "MiniMax": (
        "minimax",
        {
            **MIXTURE, "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8, "router_jitter_noise": 0.1,
        },
    ),
    "Nemotron": ("nemotron", {**LLAMA, "partial_rotary_factor": 0.5}),
    "DBRX": (
        "dbrx",
        {
            **TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "initializer_range": 0.2,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {
                "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32, "moe_jitter_eps": 0.1,
            },
        },
    ),
    "JetMoe": ("jetmoe", {**MIXTURE, "kv_channels": 8}),
    "Arcee": ("arcee", LLAMA),
    "Helium": ("helium", LLAMA),
    "Seed-OSS": ("seed_oss", LLAMA),
    "Apertus": ("apertus", LLAMA),
}  # fmt: skip

LANGUAGE: dict[str, Any] = {"text_config": {**LLAMA, "model_type": "llama"}}
CLIP, PIXTRAL = ({**TINY_VISION, "model_type": kind} for kind in ("clip_vision_model", "pixtral"))
M_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-VL": (
        "qwen2_5_vl",
        {
            "text_config": {**LLAMA, "rope_parameters": M_ROPE},
            "vision_config": {
                "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
                "patch_size": 4, "fullatt_block_indexes": [1],
            },
            "image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6,
        },
    ),
    "Gemma 3, with its eyes": (
        "gemma3",
        {
            "text_config": {**LLAMA, **WINDOWS, "query_pre_attn_scalar": 8},
            "vision_config": TINY_VISION, "mm_tokens_per_image": 4, "image_token_index": 3,
        },
    ),
    "SmolVLM": ("smolvlm", {**LANGUAGE, "vision_config": TINY_VISION, "image_token_id": 3}),
    "Idefics 3": ("idefics3", {**LANGUAGE, "vision_config": TINY_VISION, "image_token_id": 3}),
    "LLaVA": ("llava", {**LANGUAGE, "vision_config": CLIP, "image_token_index": 3}),
    "Mistral 3": (
        "mistral3",
        {
            "text_config": {**LLAMA, "model_type": "mistral"}, "vision_config": {**PIXTRAL, "head_dim": 8},
            "image_token_index": 3,
        },
    ),
}  # fmt: skip

ARCHITECTURES = {**PLAIN, **SEEING}


def config_of(name: str) -> PretrainedConfig:
    """A new one at each call, for it is changed by whoever saves it."""
    kind, settings = ARCHITECTURES[name]
    return AutoConfig.for_model(kind, **copy.deepcopy(settings))
