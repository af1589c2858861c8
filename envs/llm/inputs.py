"""Loads a run's tokenizer, prompts and texts, and checks that they fit the models."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from envs.llm.families import check_structure, check_trainable
from envs.llm.lora_model import read_lora_model
from envs.llm.model import load_config, load_tokenizer
from envs.llm.named_models import resolve
from envs.llm.options import LLM
from envs.llm.prompts import Prompts, PtxTexts, load_prompts
from envs.llm.rewards.functions import check_reward
from envs.llm.sizes import Sizes, critic_source, find_sizes
from envs.llm.structure import config_context_length
from ppo_unified.errors import UsageError


class Inputs(NamedTuple):
    """The inputs of a run, except for model weights."""

    tokenizer: Any
    training: Prompts
    held_out: Prompts
    ptx: PtxTexts | None
    sizes: Sizes


def load_inputs(llm: LLM) -> Inputs:
    """Load the inputs of a run. They do not depend on the options that `envs.llm.defaults` chooses.

    A second call with the same options in the same process returns the same objects, unless a file has changed. Raises
    UsageError if the tokenizer, models, prompts and texts cannot be used together.
    """
    return _load(llm.model_dump_json(exclude={"lora_rank", "rollout_batch"}), _file_states(llm))


def _file_states(llm: LLM) -> tuple[tuple[str, int, int], ...]:
    """Return (path, modification time, size) of every local file that `load_inputs` may read."""
    names = [resolve(llm.model), llm.prompts_name, llm.eval_prompts, llm.ptx_data, llm.critic_init]
    names += [reward.source for reward in llm.rewards]
    states = []
    names += [lora.base] if (lora := read_lora_model(names[0], f"llm.model = {llm.model!r}")) else []
    for name in filter(None, names):
        with suppress(OSError, ValueError):  # skip names that are not paths or cannot be read
            path = Path(name).resolve(strict=True)
            files = [(file, file.stat()) for file in (path.iterdir() if path.is_dir() else [path])]
            states += [(str(file), state.st_mtime_ns, state.st_size) for file, state in files]
    return tuple(sorted(states))


@lru_cache(maxsize=1)
def _load(options: str, _files: tuple[tuple[str, int, int], ...]) -> Inputs:
    """Load the inputs. `options` is the [llm] section as JSON, because a cache key must be hashable."""
    llm = LLM.model_validate_json(options)
    model, where = load_config(llm.model, merges_lora=True), f"llm.model = {llm.model!r}"
    if llm.quantize != "none" and read_lora_model(resolve(llm.model), where):
        raise UsageError(
            f"{where}: LoRA weights cannot be merged into a quantized base (llm.quantize = {llm.quantize!r}); set "
            "llm.quantize to 'none', or merge them first (see 'Models with LoRA weights' in docs/llm.md)"
        )
    check_trainable(model, where, llm.quantize)
    check_structure(model, where)
    tokenizer = load_tokenizer(llm.model)
    check_vocabulary(tokenizer, model.get_text_config(), llm.model)
    context = config_context_length(model)
    training, held_out = load_prompts(llm, tokenizer, context)
    if llm.baseline == "critic" and llm.critic == "independent" and llm.critic_init != "policy":
        longest = max(len(ids) for prompts in (training, held_out) for ids in prompts.tokens) + llm.max_new_tokens
        check_critic(llm, tokenizer, longest)
    ptx = PtxTexts(llm, tokenizer, context) if llm.ptx_coef else None
    for reward in llm.rewards:
        check_reward(reward.source)
    return Inputs(tokenizer, training, held_out, ptx, find_sizes(llm))


def check_vocabulary(tokenizer: Any, config: Any, name: str) -> None:
    """Raise UsageError if the tokenizer has ids for which the model has no embedding. Embeddings are never resized."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UsageError(
            f"llm.model = {name!r}: the tokenizer has ids up to {largest}, but the model has only {config.vocab_size} "
            "embeddings; resize the model's embeddings or use its original tokenizer"
        )


def check_critic(llm: LLM, tokenizer: Any, longest: int) -> None:
    """Raise UsageError if the critic's model has a different tokenizer or reads fewer than `longest` tokens."""
    source = critic_source(llm)
    config = load_config(source, "llm.critic_init", merges_lora=True)
    check_trainable(config, f"llm.critic_init = {source!r}")
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(source, "llm.critic_init").get_vocab()
    if ours != theirs:
        raise UsageError(
            f"llm.critic_init = {source!r}: its tokenizer ({len(theirs)} tokens) differs from that of llm.model = "
            f"{llm.model!r} ({len(ours)} tokens); use a model with the same tokenizer"
        )
    reads = config_context_length(config)
    if reads < longest:
        raise UsageError(
            f"llm.critic_init = {llm.critic_init!r}: the model reads up to {reads} tokens, but a prompt with its "
            f"response can have {longest}; lower llm.max_new_tokens or use another model"
        )
