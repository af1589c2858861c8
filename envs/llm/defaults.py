"""Chooses the options that depend on the model's size: LoRA, the learning rate, the batch and the CPU threads.

The rules are in the section 'Defaults that depend on the model's size' of docs/llm.md.
"""

from __future__ import annotations

import os
from math import ceil, sqrt
from typing import Any

from envs.llm.inputs import load_inputs
from envs.llm.options import LLMConfig
from ppo_unified.config.estimate import LORA_RANK
from ppo_unified.config.registry import resolve_device
from ppo_unified.config.spec import Choice
from ppo_unified.config.values import Auto
from ppo_unified.text import format_scaled

LARGE = 50_000_000  # number of weights from which LoRA is the default
# 3e-6 suits a model with 1e9 weights (recipe tldr); common rates of larger models fall with about the square root
LR, LR_WEIGHTS, HIGHEST_LR = 3e-6, 1e9, 1e-3
LORA_LR = 10  # the best rate of LoRA weights relative to that of all weights ("LoRA Without Regret", Schulman 2025)
BATCH, LARGE_BATCH_ON_CPU = 64, 32
WEIGHTS_PER_THREAD, MOST_THREADS = 8_000_000, 16


def choose(config: LLMConfig) -> Choice:
    """Choose the options that are 'auto', and `threads` if it is 0.

    `ppo.microbatch_columns` is left out. Raises UsageError if the inputs cannot be used.
    """
    llm, values = config.llm, dict[str, Any]()
    sizes = load_inputs(llm).sizes
    weights, rank = sizes.policy.weights, llm.lora_rank
    if isinstance(rank, Auto):
        values["llm.lora_rank"] = rank = choose_lora_rank(weights)
    if isinstance(config.optim.lr, Auto):
        values["optim.lr"] = choose_lr(weights, rank)
    if isinstance(llm.rollout_batch, Auto):
        on_cpu = resolve_device(config).type == "cpu"
        values["llm.rollout_batch"] = choose_batch(weights, on_cpu, llm.group_size, config.ppo.minibatches)
    if not config.threads:
        values["threads"] = choose_threads(sizes.largest)
    return Choice(values, _describe_size(weights))


def choose_lora_rank(weights: int) -> int:
    return LORA_RANK if weights >= LARGE else 0


def choose_lr(weights: int, lora_rank: int) -> float:
    """Return Adam's learning rate, rounded to one digit."""
    lr = LR * sqrt(LR_WEIGHTS / weights) * (LORA_LR if lora_rank else 1)
    return min(HIGHEST_LR, float(f"{lr:.0e}"))


def choose_batch(weights: int, on_cpu: bool, group_size: int, minibatches: int) -> int:
    """Return the number of responses per iteration: a multiple of `group_size` that is at least `minibatches`."""
    wanted = LARGE_BATCH_ON_CPU if weights >= LARGE and on_cpu else BATCH
    return ceil(max(wanted, minibatches) / group_size) * group_size


def choose_threads(weights: int) -> int:
    """Return the number of CPU threads for models of which the largest has this number of weights.

    More threads make a small model slower, because they wait for each other after every operation.
    """
    return max(1, min(weights // WEIGHTS_PER_THREAD, MOST_THREADS, _available_cores()))


def _available_cores() -> int:
    """Return the number of cores that this process may use, which containers and batch systems often limit."""
    if hasattr(os, "sched_getaffinity"):  # missing on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe_size(weights: int) -> str:
    """Describe a number of weights with three digits, such as '135 million weights'."""
    text = f"{weights:,}" if weights < 10**6 else format_scaled(weights, {"million": 1e6, "billion": 1e9})
    return f"{text} weights"
