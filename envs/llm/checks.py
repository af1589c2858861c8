"""What can be refused before a run exists, by reading everything but the weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from envs.llm.model import context_of, load_config, load_tokenizer
from envs.llm.options import LLM, LLMConfig
from envs.llm.prompts import PtxTexts, load_prompts
from envs.llm.rewards.functions import check_columns, check_reward, find_function, scoring_model
from ppo_unified.errors import UsageError


def check(config: LLMConfig) -> None:
    """Raises UsageError for data, tokenizer, model or reward that would not train together."""
    llm = config.llm
    if llm.quantize == "4bit" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("llm.quantize = '4bit' needs a GPU, and torch sees none here; leave it at 'none'")
    if llm.quantize == "4bit" and find_spec("bitsandbytes") is None:
        raise UsageError("llm.quantize = '4bit' needs a package that is not installed: pip install bitsandbytes")
    tokenizer, model = load_tokenizer(llm.model), load_config(llm.model)
    check_vocabulary(tokenizer, model.get_text_config(), llm.model)
    context = context_of(model)
    training, held_out = load_prompts(config, tokenizer, context)
    for option, name in (("llm.reward", llm.reward_name), ("llm.proxy_of", llm.proxy_of)):
        if name:
            check_reward(name, option)  # a scoring model's weights are loaded later
            for prompts in (training, held_out):
                check_columns(name, prompts.data.columns, prompts.data.where, option)
    if llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init != "policy":
        source = critic_source(llm)
        check_same_tokens(llm.model, source)
        reads = context_of(load_config(source, "llm.critic_init"))
        longest = max(len(ids) for prompts in (training, held_out) for ids in prompts.tokens) + llm.max_new_tokens
        if reads < longest:
            raise UsageError(
                f"llm.critic_init = {llm.critic_init!r}: that model reads {reads} tokens, and prompts with responses "
                f"have up to {longest}"
            )
    if llm.ptx_coef:
        PtxTexts(config, tokenizer, context)


def check_vocabulary(tokenizer: Any, config: Any, name: str) -> None:
    """Raises UsageError where the tokenizer knows tokens that the model does not: no embedding is ever resized."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UsageError(
            f"llm.model = {name!r}: its tokenizer has ids up to {largest}, its model {config.vocab_size} embeddings; "
            "save the model with resized embeddings first, or use the tokenizer it was trained with"
        )


def critic_source(llm: LLM) -> str:
    """The folder or hub id that an independent critic starts from. Raises UsageError where the reward is no model."""
    if llm.critic_init != "reward":
        return llm.critic_init
    if find_function(llm.reward_name, "llm.reward") is not None:
        raise UsageError(
            f"llm.critic_init = 'reward' needs a scoring model, and llm.reward = {llm.reward_name!r} is a function; "
            "name a scoring model as the reward, or start the critic from 'policy'"
        )
    return scoring_model(llm.reward_name)


def check_same_tokens(model: str, other: str) -> None:
    """Raises UsageError where a critic's trunk reads other tokens than the policy writes."""
    ours, theirs = (
        load_tokenizer(name, option).get_vocab() for name, option in ((model, "llm.model"), (other, "llm.critic_init"))
    )
    if ours != theirs:
        raise UsageError(
            f"llm.critic_init = {other!r}: its tokenizer has {len(theirs)} tokens and is not the one of llm.model = "
            f"{model!r} ({len(ours)} tokens); a critic must read what the policy writes"
        )
