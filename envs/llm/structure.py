"""Finds the parts of a transformers model that differ between types of models: trunk, linear layers, context length.

Nothing here depends on the names of model types.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from envs.llm.quiet import silence_peft

NO_LIMIT = 1 << 30  # context length of a model that can process any number of tokens


def trunk_of(model: Any) -> Any:
    """Return the module that computes the hidden states. A model without a head is its own trunk."""
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    return next((m for m in model.children() if isinstance(m, PreTrainedModel)), model)


def config_context_length(config: Any) -> int:
    """Return the maximum number of tokens that a model with this configuration can process correctly.

    LongRoPE is limited to its original context, because a longer row would change the logits of all rows in its batch.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]  # MPT has the second
    rope = getattr(text, "rope_parameters", None) or {}
    for factors in (rope, *rope.values()):  # some models have one dictionary per kind of layer
        if isinstance(factors, dict) and factors.get("rope_type") == "longrope":
            limits.append(factors["original_max_position_embeddings"])
    return min((int(limit) for limit in limits if limit and limit > 0), default=NO_LIMIT)  # XLNet has -1


def encoder_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of weights in encoders for images or audio start with, such as 'model.vision_tower.'.

    These encoders never run, because all inputs are text.
    """
    return tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.main_input_name != "input_ids"
    )


def unsuitable_layers(model: Any, lora: Any) -> list[str]:
    """Return the names of the linear layers that LoRA cannot train.

    These are layers that peft rejects because fused kernels of state-space models use only their weight, subclasses of
    a linear layer that return more than one tensor, such as routers of experts, and the layers of encoders for images
    or audio, which do not run because all inputs are text.
    """
    from peft import LoraModel

    check: Any = LoraModel._check_target_module_compatiblity  # does not use `self`

    def is_suitable(name: str, module: nn.Module) -> bool:
        try:
            check(None, lora, model, name.rpartition(".")[2])
        except ValueError:
            return False
        return not name.startswith(encoders) and _returns_tensor(module)

    encoders = encoder_prefixes(model)
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    return [name for name, module in linear if not is_suitable(name, module)]


def _returns_tensor(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("transformers.models."):
        return True
    weight = next(module.parameters())
    with torch.no_grad():
        return isinstance(module(weight.new_zeros(1, weight.shape[-1])), torch.Tensor)


def find_unloadable_layer(peft_model: Any, adapter: str) -> str | None:
    """Return the name of a layer whose LoRA weights cannot be loaded after they have been saved, or None.

    When transformers loads some types of models, it renames weights, and it ignores LoRA weights under unknown names.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = get_peft_model_state_dict(peft_model, adapter_name=adapter, save_embedding_layers=False)
    with silence_peft():
        loading: Any = set_peft_model_state_dict(peft_model, weights, adapter_name=adapter)
    lost = [key for key in loading.missing_keys if f".{adapter}." in key]
    return lost[0].partition(".lora_")[0].removeprefix("base_model.model.") if lost else None


@contextmanager
def replace_output(modules: list[nn.Module], output: Any) -> Iterator[None]:
    """Make `modules` return `output` for any input, until the context exits."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward
