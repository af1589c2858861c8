"""Turn out-of-memory errors into advice that names the options to change and recommends values."""

from __future__ import annotations

import torch

from ppo_unified.config.estimate import LORA_RANK
from ppo_unified.config.schema import RunConfig

_CPU = ("not enough memory", "can't allocate memory")  # torch's CPU allocator raises a RuntimeError with one of these
OPTIONS = {  # the options that memory depends on in each phase, most effective first
    "collecting a rollout": ("llm.rollout_batch", "llm.max_new_tokens", "gym.num_steps", "gym.num_envs"),
    "updating the policy": (
        "ppo.microbatch_columns",
        "llm.gradient_checkpointing",
        "gym.num_steps",
        "llm.rollout_batch",
    ),
    "evaluating the policy": ("llm.rollout_batch", "eval.episodes"),
    "creating the models": ("llm.lora_rank", "gym.num_envs"),
    "estimating memory and time": (
        "llm.lora_rank",
        "llm.gradient_checkpointing",
        "llm.rollout_batch",
        "llm.max_new_tokens",
        "gym.num_steps",
        "gym.num_envs",
    ),
}
CHEAPER = {  # options that are not numbers: (most expensive value, recommended value)
    "llm.gradient_checkpointing": (False, "true"),
    "llm.lora_rank": (0, str(LORA_RANK)),
}


class OutOfMemory(Exception):
    """Raised if memory runs out. The message recommends options to change."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if `error` or its cause is an out-of-memory error of the GPU, Python or torch's CPU allocator."""
    if error is None or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return error is not None
    if isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU):
        return True
    return is_out_of_memory(error.__cause__)


def explain_out_of_memory(error: BaseException, doing: str, config: RunConfig, columns: int = 0) -> OutOfMemory:
    """Return an error that recommends options to change.

    `doing` is a key of OPTIONS. `columns` is the number of columns of the minibatch that was too large, or 0.
    """
    options, advice = config.flatten(), []
    for name in OPTIONS[doing]:
        value = options.get(name)
        if name in CHEAPER:
            costly, cheaper = CHEAPER[name]
            advice += [f"set {name} = {cheaper}"] if value == costly else []
        elif value is not None and value > 1:
            # halving a limit that is larger than the minibatch might have no effect
            present = min(value, columns) if name == "ppo.microbatch_columns" and columns else value
            advice.append(f"lower {name} from {value} to {max(1, present // 2)}")
    first, *others = advice or ["use a smaller model"]
    more = f", or {', or '.join(others)}" if others else ""
    cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return OutOfMemory(f"out of memory while {doing}: {first}{more} ({cause})")
