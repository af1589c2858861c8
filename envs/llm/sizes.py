"""Computes the memory of a run's weights, gradients and Adam states from its options, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from envs.llm.model import load_config
from envs.llm.options import LLM, LLMConfig
from envs.llm.rewards.functions import find_function, reward_model_source
from envs.llm.rewards.reward_model import shares_base
from envs.llm.savings import suggest
from envs.llm.structure import encoder_prefixes, trunk_of
from ppo_unified.config.devices import available_bytes
from ppo_unified.config.estimate import explain_shortage
from ppo_unified.config.registry import resolve_device
from ppo_unified.errors import UsageError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.53}  # of a weight; with 4 bits, including the scales of the blocks


class Count(NamedTuple):
    """The number of weights of a model."""

    weights: int
    trainable: int  # without encoders for images or audio, which never run


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run's models. They do not depend on options that are 'auto'."""

    policy: Count
    critic: Count  # of the model that an independent critic is initialized from
    rewards: int  # of all reward models that always have weights of their own
    shared: int  # of all reward models that, with LoRA, use the policy's base
    lora: int  # of one set of LoRA weights with rank 1
    largest: int  # of the largest model


def find_sizes(llm: LLM) -> Sizes:
    """Count the weights of a run's models without loading them. Raises UsageError if a model cannot be found."""
    policy = _create(AutoModelForCausalLM, llm.model, "llm.model")
    critic = trunk_of(policy)
    if llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init != "policy":
        critic = _create(AutoModel, critic_source(llm), "llm.critic_init")
    rewards, shared = list[int](), list[int]()
    for source in (reward.source for reward in llm.rewards if find_function(reward.source) is None):
        found = shared if shares_base(source, llm.model) else rewards
        found.append(count(_create(AutoModel, reward_model_source(source), "llm.reward")).weights)
    return Sizes(
        policy=count(policy),
        critic=count(critic),
        rewards=sum(rewards),
        shared=sum(shared),
        lora=sum(_lora_weights(policy, llm.lora_targets)),
        largest=max(count(policy).weights, count(critic).weights, *rewards, *shared),
    )


def _create(auto: Any, name: str, option: str) -> nn.Module:
    """Create a model without weights."""
    config = load_config(name, option, merges_lora=option != "llm.reward")
    try:
        with torch.device("meta"):
            model: nn.Module = auto.from_config(config)
    except ValueError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{option} = {name!r}: expected a model that transformers can create ({why})") from None
    return model


def critic_source(llm: LLM) -> str:
    """Return the folder or hub id of an independent critic's initial weights.

    Raises UsageError if llm.critic_init is 'reward', unless exactly one reward with a nonzero weight is a reward model.
    """
    if llm.critic_init != "reward":
        return llm.critic_init
    trained = [reward.source for reward in llm.rewards if reward.weight]
    models = [source for source in trained if find_function(source) is None]
    if len(models) == 1:
        return reward_model_source(models[0])
    if models:
        found, fix = f"llm.reward names {len(models)}", "llm.critic_init to the folder of one of them"
    else:
        names = ", ".join(map(repr, trained))
        found = f"llm.reward = {names} {'is a function' if len(trained) == 1 else 'are functions'}"
        fix = "llm.reward to a reward model or llm.critic_init to 'policy'"
    raise UsageError(
        f"llm.critic_init = 'reward' needs {'one' if models else 'a'} reward model, but {found}; set {fix}"
    )


def count(model: nn.Module) -> Count:
    encoders, weights = encoder_prefixes(model), 0
    for name, parameter in model.named_parameters():
        weights += 0 if name.startswith(encoders) else parameter.numel()
    return Count(sum(parameter.numel() for parameter in model.parameters()), weights)


def _lora_weights(model: Any, targets: Sequence[str]) -> Iterator[int]:
    """Yield the number of LoRA weights with rank 1 of each layer whose name ends with one of `targets`.

    Without targets, these are all linear layers except the output head and those of encoders.
    """
    endings = tuple("." + target for target in targets)
    trunk = model if endings else trunk_of(model)
    encoders = encoder_prefixes(trunk)
    for name, module in trunk.named_modules():
        is_linear = isinstance(module, (nn.Linear, Conv1D))
        if endings:
            is_chosen = (is_linear or isinstance(module, nn.Embedding)) and f".{name}".endswith(endings)
        else:
            is_chosen = is_linear and not name.startswith(encoders)
        if is_chosen:
            yield sum(module.weight.shape)


def weight_bytes(config: LLMConfig, sizes: Sizes, on_gpu: bool = False) -> float:
    """Return the bytes of all weights, trained or not. With `on_gpu`, leave out a reference that stays on the CPU."""
    llm = config.llm
    frozen = BYTES[llm.dtype]
    base = BYTES["4bit"] if llm.quantize == "4bit" else frozen if llm.lora_rank else BYTES["float32"]
    rewards = sizes.rewards + (0 if llm.lora_rank else sizes.shared)
    total = sizes.policy.weights * base + (rewards + _lora_count(config, sizes)) * BYTES["float32"]
    if config.reference == "copy" and not (on_gpu and llm.reference_device == "cpu"):
        total += sizes.policy.weights * (frozen if llm.reference_dtype == "same" else BYTES[llm.reference_dtype])
    if has_own_critic(config):
        total += sizes.critic.weights * (frozen if llm.lora_rank else BYTES["float32"])
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
    return BYTES["float32"] * (sizes.policy.trainable + (sizes.critic.trainable if has_own_critic(config) else 0))


def check_weights_fit(config: LLMConfig, sizes: Sizes) -> None:
    """Raise UsageError if the weights, gradients and Adam states alone need more memory than is available."""
    device = resolve_device(config)
    available = available_bytes(device)

    def needed(config: LLMConfig) -> float:
        return weight_bytes(config, sizes, device.type == "cuda") + 3 * trained_bytes(config, sizes)

    if needed(config) > available:
        advice = suggest(config, lambda changed: needed(changed) <= available)
        raise UsageError(explain_shortage(needed(config), available, advice))
