"""Everything that a run reads besides weights: the tokenizer, prompts and texts, checked against the models."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from envs.llm.model import config_context_length, load_config, load_tokenizer, resolve
from envs.llm.options import LLM
from envs.llm.prompts import Prompts, PtxTexts, load_prompts
from envs.llm.rewards.functions import find_function, reward_model_source
from ppo_unified.errors import UsageError


class Inputs(NamedTuple):
    tokenizer: Any
    training: Prompts
    held_out: Prompts
    ptx: PtxTexts | None


def load_inputs(llm: LLM) -> Inputs:
    """The inputs of a run. The check before a run and the run itself share what one process has read, as long as the
    files stay as they are.

    Raises UsageError for tokenizer, prompts, critic or texts that would not train together.
    """
    return _load(llm.model_dump_json(), _file_states(llm))


def _file_states(llm: LLM) -> tuple[tuple[str, int, int], ...]:
    """(path, time of the last change, size) of every local file that `load_inputs` may read."""
    names = [resolve(llm.model), llm.prompts_name, llm.eval_prompts, llm.ptx_data, llm.critic_init, llm.reward_name]
    states = []
    for name in filter(None, names):
        with suppress(OSError, ValueError):  # a name that is no path, or a path that its reader refuses
            path = Path(name).resolve(strict=True)
            files = [(file, file.stat()) for file in (path.iterdir() if path.is_dir() else [path])]
            states += [(str(file), state.st_mtime_ns, state.st_size) for file, state in files]
    return tuple(sorted(states))


@lru_cache(maxsize=1)
def _load(options: str, _files: tuple[tuple[str, int, int], ...]) -> Inputs:
    """`options`: llm.* as JSON."""
    llm = LLM.model_validate_json(options)
    tokenizer, model = load_tokenizer(llm.model), load_config(llm.model)
    check_vocabulary(tokenizer, model.get_text_config(), llm.model)
    context = config_context_length(model)
    training, held_out = load_prompts(llm, tokenizer, context)
    if llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init != "policy":
        longest = max(len(ids) for prompts in (training, held_out) for ids in prompts.tokens) + llm.max_new_tokens
        check_critic(llm, tokenizer, longest)
    return Inputs(tokenizer, training, held_out, PtxTexts(llm, tokenizer, context) if llm.ptx_coef else None)


def check_vocabulary(tokenizer: Any, config: Any, name: str) -> None:
    """Raises UsageError where the tokenizer knows tokens that the model does not: no embedding is ever resized."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UsageError(
            f"llm.model = {name!r}: its tokenizer has ids up to {largest}, its model {config.vocab_size} embeddings; "
            "save the model with resized embeddings first, or use the tokenizer it was trained with"
        )


def check_critic(llm: LLM, tokenizer: Any, longest: int) -> None:
    """Raises UsageError where a critic's trunk reads other tokens than the policy writes, or fewer than `longest`."""
    source = critic_source(llm)
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(source, "llm.critic_init").get_vocab()
    if ours != theirs:
        raise UsageError(
            f"llm.critic_init = {source!r}: its tokenizer has {len(theirs)} tokens and is not the one of llm.model = "
            f"{llm.model!r} ({len(ours)} tokens); a critic must read what the policy writes"
        )
    reads = config_context_length(load_config(source, "llm.critic_init"))
    if reads < longest:
        raise UsageError(
            f"llm.critic_init = {llm.critic_init!r}: that model reads {reads} tokens, and prompts with responses "
            f"have up to {longest}"
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
    return reward_model_source(llm.reward_name)
