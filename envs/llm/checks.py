"""Validates a run's inputs before the run is created. The checks read everything except the model weights."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from envs.llm.inputs import load_inputs
from envs.llm.options import LLMConfig
from envs.llm.rewards.functions import check_columns, check_reward
from envs.llm.sizes import check_weights_fit
from ppo_unified.errors import UsageError


def check(config: LLMConfig) -> None:
    """Raises UsageError if the data, tokenizer, model and reward cannot be used together."""
    llm = config.llm
    if llm.quantize == "4bit" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("llm.quantize = '4bit' needs a GPU, but torch finds none; use 'none'")
    if llm.quantize == "4bit" and find_spec("bitsandbytes") is None:
        raise UsageError("llm.quantize = '4bit' needs the package bitsandbytes: pip install bitsandbytes")
    inputs = load_inputs(llm)
    check_weights_fit(config, torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"))
    for reward in llm.rewards:
        check_reward(reward.source)  # a reward model's weights are loaded later
        for prompts in (inputs.training, inputs.held_out):
            check_columns(reward.source, prompts.data.columns, prompts.data.where)
