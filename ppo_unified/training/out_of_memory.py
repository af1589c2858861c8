"""Memory that ran out: what to lower, and to what."""

from __future__ import annotations

import torch

from ppo_unified.config.schema import RunConfig

_CPU = ("not enough memory", "can't allocate memory")  # how torch's CPU allocator puts it, in a plain RuntimeError
OPTIONS = {  # what memory grows with while something is under way, the most effective first
    "collecting a rollout": ("llm.rollout_batch", "llm.max_new_tokens", "gym.num_steps", "gym.num_envs"),
    "updating": ("ppo.microbatch_columns", "llm.gradient_checkpointing", "gym.num_steps", "llm.rollout_batch"),
    "evaluating": ("llm.rollout_batch", "eval.episodes"),
    "making the models": ("llm.lora_rank", "gym.num_envs"),
}
CHEAPER = {  # what an option is to be set to, where it has the value that costs most
    "llm.gradient_checkpointing": (False, "true"),
    "llm.lora_rank": (0, "8"),
}


class OutOfMemory(Exception):
    """Memory ran out; the text says what to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what the GPU, Python or torch's CPU allocator raise when memory runs out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU)


def explain_out_of_memory(error: BaseException, doing: str, config: RunConfig, columns: int = 0) -> OutOfMemory:
    """`error` as advice; `doing` is a key of OPTIONS, `columns` those of the minibatch that was too large, or 0."""
    options, advice = config.flatten(), []
    for name in OPTIONS[doing]:
        value = options.get(name)
        if name in CHEAPER:
            costly, cheaper = CHEAPER[name]
            advice += [f"set {name} = {cheaper}"] if value == costly else []
        elif value is not None and value > 1:
            # a limit above what there was to hold would change nothing at half its size
            present = min(value, columns) if name == "ppo.microbatch_columns" and columns else value
            advice.append(f"lower {name} from {value} to {max(1, present // 2)}")
    first, *others = advice or ["use a smaller model"]
    more = f", or {', or '.join(others)}" if others else ""
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return OutOfMemory(f"memory ran out while {doing}: {first}{more} ({said})")
