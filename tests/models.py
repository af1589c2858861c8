"""Small language models of several families, created from configurations and saved in the usual format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 260  # 256 bytes, <bos>, <eos>, <pad> and <|endoftext|>, which Qwen2's tokenizer would add
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "qwen2": SIZES,
    "gemma2": SIZES | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
}

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
OTHERS: dict[str, dict[str, Any]] = {
    "opt": WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 128}
    | {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "mistral": SIZES | {"sliding_window": 8},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "phi3": SIZES | {"sliding_window": 8},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "bert": WIDE | {"intermediate_size": 48},
    "cpmant": {"hidden_size": 32, "num_attention_heads": 2, "dim_head": 16, "dim_ff": 48, "num_hidden_layers": 2},
}
# LongRoPE with an original context of 16 tokens
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
LONGROPE = SIZES | {
    "original_max_position_embeddings": 16,
    "rope_parameters": LONG | {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
}


def make_tokenizer(pad: bool = True, size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, special tokens, and unused tokens up to `size` ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special_names = ["<bos>", "<eos>", "<pad>", "<|endoftext|>"]
    names = [*alphabet, *special_names, *(f"<unused{i}>" for i in range(size - len(alphabet) - len(special_names)))]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = {"bos_token": "<bos>", "eos_token": "<eos>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def make_causal_lm(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Return a model with random weights, larger than usual so that its token probabilities differ clearly."""
    options = (
        (FAMILIES | OTHERS)[family] | {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257} | changes
    )
    config = CONFIG_MAPPING[family](**{"pad_token_id": 258, "initializer_range": 0.2} | options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.eval()


def save_model(folder: Path, family: str = "llama", pad: bool = True, tokens: int = VOCABULARY, **changes: Any) -> Path:
    """Save a model and its tokenizer in the format of a Hugging Face folder."""
    model = make_causal_lm(family, **changes)
    model.save_pretrained(folder)
    make_tokenizer(pad, tokens).save_pretrained(folder)
    return folder
