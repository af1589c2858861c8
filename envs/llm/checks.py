"""Validates a run's inputs before the run is created. The checks read everything except the model weights."""

from __future__ import annotations

from importlib.util import find_spec

from envs.llm.inputs import load_inputs
from envs.llm.options import LLMConfig
from envs.llm.rewards.functions import check_columns
from envs.llm.sizes import check_weights_fit
from ppo_unified.config.registry import resolve_device
from ppo_unified.errors import UsageError


def check(config: LLMConfig) -> None:
    """Raises UsageError if the data, tokenizer, models and reward cannot be used together, or need too much memory."""
    llm = config.llm
    if llm.quantize == "4bit" and resolve_device(config).type == "cpu":
        raise UsageError("llm.quantize = '4bit' needs a GPU, but torch finds none; use 'none'")
    if llm.quantize == "4bit" and find_spec("bitsandbytes") is None:
        raise UsageError("llm.quantize = '4bit' needs the package bitsandbytes: pip install bitsandbytes")
    inputs = load_inputs(llm)
    for reward in llm.rewards:
        for prompts in (inputs.training, inputs.held_out):
            check_columns(reward.source, prompts.data.columns, prompts.data.where)
    check_weights_fit(config, inputs.sizes)
