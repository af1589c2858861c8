"""Computes the memory of a run's weights, gradients and Adam states from its options, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from envs.llm.inputs import critic_source
from envs.llm.memory import available_bytes
from envs.llm.model import load_config
from envs.llm.options import LLMConfig
from envs.llm.rewards.functions import find_function, reward_model_source
from envs.llm.rewards.reward_model import shares_base
from envs.llm.savings import suggest
from envs.llm.structure import trunk_of
from ppo_unified.config.estimate import explain_shortage
from ppo_unified.errors import UsageError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.53}  # of a weight; with 4 bits, including the scales of the blocks


@dataclass(frozen=True)
class Sizes:
    """The numbers of weights of a run's models."""

    policy: int
    critic: int  # of the model that an independent critic is initialized from
    rewards: int  # of all reward models that do not share the policy's base
    lora: int  # of one set of LoRA weights with rank 1


def find_sizes(config: LLMConfig) -> Sizes:
    """Count the weights of a run's models without loading them. Raises UsageError if a model cannot be found."""
    llm = config.llm
    with torch.device("meta"):  # creates no weights
        policy = AutoModelForCausalLM.from_config(load_config(llm.model, merges_lora=True))
        trunk = critic = trunk_of(policy)
        if llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init != "policy":
            critic = AutoModel.from_config(load_config(critic_source(llm), "llm.critic_init", merges_lora=True))
        sources = [r.source for r in llm.rewards if find_function(r.source) is None]
        own = [s for s in sources if not (llm.lora_rank and shares_base(s, llm.model))]
        rewards = [AutoModel.from_config(load_config(reward_model_source(source), "llm.reward")) for source in own]
    return Sizes(count(policy), count(critic), sum(map(count, rewards)), sum(_lora_weights(trunk)))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _lora_weights(trunk: Any) -> Iterator[int]:
    """Yield the number of LoRA weights with rank 1 of each linear layer."""
    for module in trunk.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            yield sum(module.weight.shape)


def weight_bytes(config: LLMConfig, sizes: Sizes, on_gpu: bool = False) -> float:
    """Return the bytes of all weights, trained or not. With `on_gpu`, leave out a reference that stays on the CPU."""
    llm = config.llm
    frozen = BYTES[llm.dtype]
    base = BYTES["4bit"] if llm.quantize == "4bit" else frozen if llm.lora_rank else BYTES["float32"]
    total = sizes.policy * base + sizes.rewards * BYTES["float32"] + _lora_count(config, sizes) * BYTES["float32"]
    if config.reference == "copy" and not (on_gpu and llm.reference_device == "cpu"):
        total += sizes.policy * (frozen if llm.reference_dtype == "same" else BYTES[llm.reference_dtype])
    if has_own_critic(config):
        total += sizes.critic * (frozen if llm.lora_rank else BYTES["float32"])
    return total


def has_own_critic(config: LLMConfig) -> bool:
    """Return True if the critic is a model of its own, not only a head or a set of LoRA weights."""
    llm = config.llm
    independent = llm.baseline == "critic" and llm.critic == "independent"
    return independent and not (llm.lora_rank and llm.critic_init == "policy")


def _lora_count(config: LLMConfig, sizes: Sizes) -> int:
    sets = 2 if config.llm.baseline == "critic" and config.llm.critic == "independent" else 1
    return sets * config.llm.lora_rank * sizes.lora


def trained_bytes(config: LLMConfig, sizes: Sizes) -> float:
    """Return the bytes of the weights that training changes. Gradients need as many bytes, and Adam twice as many."""
    if config.llm.lora_rank:
        return BYTES["float32"] * _lora_count(config, sizes)
    return BYTES["float32"] * (sizes.policy + (sizes.critic if has_own_critic(config) else 0))


def check_weights_fit(config: LLMConfig, device: torch.device) -> None:
    """Raise UsageError if the weights, gradients and Adam states alone need more memory than is available."""
    sizes, available = find_sizes(config), available_bytes(device)

    def needed(config: LLMConfig) -> float:
        return weight_bytes(config, sizes, device.type == "cuda") + 3 * trained_bytes(config, sizes)

    if needed(config) > available:
        advice = suggest(config, lambda changed: needed(changed) <= available)
        raise UsageError(explain_shortage(needed(config), available, advice))
