"""Converts a GGUF file with a small Llama model into an ordinary Hugging Face folder.

`transformers` can read GGUF files itself, but it takes a minute for this, marks the model as quantized, and does not
split numbers into digits as the pre-tokenizer `smollm` does, so that some texts would get other tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from envs.llm.quiet import silence_transformers

CONTROL = 3  # the type of special tokens in the list tokenizer.ggml.token_type
_LAYERS = {  # GGUF name -> name in LlamaForCausalLM
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` to `folder`, in the format of `transformers`.

    The folder contains the configuration, the weights in float16, the tokenizer and its chat template. Raises
    ValueError if the architecture is not `llama` or the pre-tokenizer is not `smollm`.
    """
    from gguf import GGUFReader

    reader = GGUFReader(source)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    kinds = keys["general.architecture"], keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]
    if kinds != ("llama", "gpt2", "smollm"):
        raise ValueError(f"{source.name}: expected a llama model with the tokenizer gpt2 (smollm), got {kinds}")
    tokenizer = make_tokenizer(keys)
    weights = read_weights(reader, keys)
    config = make_config(keys, tied="lm_head.weight" not in weights)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    with silence_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def make_config(keys: dict[str, Any], tied: bool) -> LlamaConfig:
    """Return the configuration that the metadata of a GGUF file describes."""
    return LlamaConfig(
        vocab_size=len(keys["tokenizer.ggml.tokens"]),
        hidden_size=keys["llama.embedding_length"],
        intermediate_size=keys["llama.feed_forward_length"],
        num_hidden_layers=keys["llama.block_count"],
        num_attention_heads=keys["llama.attention.head_count"],
        num_key_value_heads=keys["llama.attention.head_count_kv"],
        max_position_embeddings=keys["llama.context_length"],
        rms_norm_eps=round(keys["llama.attention.layer_norm_rms_epsilon"], 10),  # 1e-05, stored in float32
        rope_parameters={"rope_type": "default", "rope_theta": keys["llama.rope.freq_base"]},
        bos_token_id=keys["tokenizer.ggml.bos_token_id"],
        eos_token_id=keys["tokenizer.ggml.eos_token_id"],
        pad_token_id=keys["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=tied,
        dtype=torch.float16,
    )


def read_weights(reader: Any, keys: dict[str, Any]) -> dict[str, Tensor]:
    """Return the dequantized weights in float16, with the names of LlamaForCausalLM.

    Rounding to float16 changes a weight by at most 0.05 %, which is far less than a quantization step.
    """
    from gguf import dequantize

    heads = {"attn_q": keys["llama.attention.head_count"], "attn_k": keys["llama.attention.head_count_kv"]}
    weights = {}
    for stored in reader.tensors:
        *_, layer, kind = stored.name.split(".")  # blk.LAYER.KIND.weight, or KIND.weight
        block, number, *_ = stored.name.split(".")
        name = f"model.layers.{number}.{_LAYERS[layer]}" if block == "blk" else _OTHERS[block]
        weight = torch.tensor(dequantize(stored.data, stored.tensor_type))  # a copy, because norms are read-only
        if block == "blk" and layer in heads:
            weight = restore_rope_order(weight, heads[layer])
        weights[f"{name}.{kind}"] = weight.to(torch.float16).contiguous()
    return weights


def restore_rope_order(weight: Tensor, heads: int) -> Tensor:
    """Return a query or key projection [heads * D, H] with the row order of `transformers`.

    In GGUF files, the two rows that a rotary embedding rotates together are neighbours. In `transformers`, they are D/2
    rows apart.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def make_tokenizer(keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE tokenizer in the metadata of a GGUF file, with the pre-tokenizer `smollm`.

    This pre-tokenizer separates every digit before it applies the regular expression of GPT-2.
    """
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    named = {
        name: tokens[keys[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=keys["tokenizer.chat_template"],
        padding_side="left",
        model_max_length=keys["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )
