"""Creates a small configuration for any type of causal language model in transformers.

The default configuration of a type is scaled down by the names of its integer fields. OVERRIDES contains the few values
that have to fit each other in a way that the names do not show.
"""

from __future__ import annotations

import re
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 260  # 256 bytes and the special tokens of `tests.models.make_tokenizer`
# The first pattern that matches the full name of an integer field gives the field's largest value
RULES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|.*_vocab_size|unpadded_vocab_size|vocab_offset", VOCABULARY),
    (r"type_vocab_size|n_langs", 2),
    (r".*(_token_id|_token_index)", 259),
    (
        r"(num_)?(hidden_|decoder_|encoder_)?(layers|blocks)|n_layers?|depth|num_(en|de)coder_layers|num_layers_per_stack",
        2,
    ),
    (r"num_(key_value|kv)_heads|kv_n_heads|swa_num_key_value_heads", 2),
    (r"(.*num_|.*n_)heads?|.*_heads|num_query_groups|.*num_attention_heads.*", 4),
    (r"qk_(rope|nope)_head_dim|rotary_dim", 8),
    (r".*head_dim|.*head_size|d_head|d_kv|kv_channels|mamba_headdim|dim_head|mamba_d_head", 8),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|feed_forward_size).*|d_inner|n_inner|dim_ff|dff|d_ff|mlp_dim", 48),
    (
        r".*(hidden_size|_embed_dim|_embed_size|embedding_size|embedding_dim)|d_model|n_embd|emb_dim|lru_width|.*proj_dim",
        32,
    ),
    (r".*(lora_rank|_rank|rank)|mamba_dt_rank|hc_lowrank", 8),
    (r"(num_|n_|moe_num_)(routed_|local_)?experts|zero_expert_num", 4),
    (r".*(experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts)", 2),
    (r".*n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|o_groups", 1),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|.*max_length|max_(source|target)_positions|context_length",
        512,
    ),
    (
        r"sliding_window(_size)?|.*window_size|local_attention.*|attention_chunk_size|.*attn_chunk_length|.*window_len",
        8,
    ),
    (r".*(state_size|d_state|chunk_size|rel_extent)", 16),
    (r"index_topk", 24),
    (r"ngram_vocab_size_base|encoder_hash_byte_group_vocab", 300),
    (r"image_size", 32),
    (r"patch_size", 16),
    (r"out_hidden_size|.*output_dim|.*input_dim|.*out_dim", 32),
)
LAYERS = re.compile(RULES[3][0])
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    }
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}  # 8 * 8 = mamba_expand * hidden_size
LINEAR, HYBRID, FULL = "linear_attention", "hybrid", "full_attention"
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8} | {
    "indexer_compress_ratio": 2
}
GEMMA4 = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
BYTES = {"num_key_value_heads": 4}
CROSS = {"cross_attn_k": 2, "hidden_size_global": 32}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "blt": {"vocab_size": VOCABULARY, "patcher_config": BYTES, "global_config": BYTES}
    | {"encoder_config": BYTES | CROSS, "decoder_config": BYTES | CROSS},
    "cohere_compass_text": {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "doge": {"keep_window_size": 512},  # as long as the context, as in the default configuration
    "dots1": EXPERTS,
    "dots3_note": {
        "text_config": {"num_key_value_heads": 4},
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32},
    }
    | {"audio_config": {"adapter_input_size": 32}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": GEMMA4
    | {
        "num_hidden_layers": 10,
        "num_kv_shared_layers": 5,
        "intermediate_size": 48,
        "activation_sparsity_pattern": None,
    },
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": MAMBA | {"layer_types": [LINEAR, FULL]},
    "hrm_text": {"num_layers_per_stack": None},
    "lfm2_moe": {"layer_types": ["conv", FULL]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16]},
    "xlnet": {"d_head": 8},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
    | {"layers_block_type": [LINEAR, HYBRID, LINEAR, HYBRID], "num_hidden_layers": 4},
    "zamba2": {"num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 8, "attention_head_dim": 16}
    | {"attention_hidden_size": 64}
    | {"layers_block_type": [LINEAR, HYBRID, HYBRID], "num_hidden_layers": 3},
}


def small_config(name: str, **changes: Any) -> Any:
    """Return a small configuration of the type `name`, with as few layers as contain every kind of layer.

    `changes` replace the values of the configuration.
    """
    default = CONFIG_MAPPING[name](**DEFAULTS.get(name, {}))
    for layers in (2, 3, 4, 5, 6, 8):
        fields = _small_fields(default, layers)
        _update(fields, OVERRIDES.get(name, {}) | changes)
        config = CONFIG_MAPPING[name](**fields)
        if _kinds(config) >= _kinds(default):
            break
    return config


def _small_fields(config: Any, layers: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name in (config.sub_configs or {}):
            if value is not None:
                fields[name] = _small_fields(value, layers)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            limit = layers if LAYERS.fullmatch(name) else next((x for p, x in RULES if re.fullmatch(p, name)), value)
            if limit < value:
                fields[name] = limit
        elif value is None and name in ("head_dim", "num_key_value_heads"):
            fields[name] = {"head_dim": 8, "num_key_value_heads": 2}[name]
    if fields.get("kv_lora_rank"):  # latent attention has no grouped queries
        fields["num_key_value_heads"] = 4
        fields["head_dim"] = fields.get("qk_rope_head_dim", 8)
        fields["qk_head_dim"] = 16
    special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "initializer_range": 0.2}
    return fields | {key: x for key, x in special.items() if hasattr(config, key)}


def _kinds(config: Any) -> set[str]:
    text = config.get_text_config(decoder=True)
    lists = (getattr(text, name, None) for name in ("layer_types", "mlp_layer_types", "layers_block_type"))
    return {str(kind) for kinds in lists for kind in kinds or []}


def _update(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            _update(fields[name], value)
        else:
            fields[name] = value
