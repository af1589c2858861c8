"""Suggests options with which a run that needs too much memory would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from envs.llm.options import LLMConfig
from ppo_unified.config import presets
from ppo_unified.config.estimate import LORA_RANK
from ppo_unified.config.values import format_flag
from ppo_unified.errors import UsageError

SMALLEST_COLUMNS = 256  # of a micro-batch; fewer would be slow


def suggest(config: LLMConfig, fits: Callable[[LLMConfig], bool]) -> str:
    """Return the first change of options with which the run fits, or "" if no change is sufficient.

    Each option is tried on its own, and then together with the largest savings of the options before it.
    """
    before: dict[str, Any] = {}
    for option, values in _savings(config):
        for value in values:
            for changes in ({option: value}, before | {option: value}):
                changed = _apply(config, changes)
                if changed is not None and fits(changed):
                    flags = (" ".join(format_flag(*change)) for change in changes.items())
                    return f"it would fit with {' '.join(flags)}"
        if values and _apply(config, before | {option: values[-1]}) is not None:
            before[option] = values[-1]
    return ""


def _savings(config: LLMConfig) -> Iterator[tuple[str, list[Any]]]:
    """Yield options and the values that save memory, in the order in which they should be tried."""
    llm = config.llm
    yield "ppo.microbatch_columns", list(_halve(config.ppo.microbatch_columns, SMALLEST_COLUMNS))
    yield "llm.gradient_checkpointing", [] if llm.gradient_checkpointing else [True]
    independent = llm.baseline == "critic" and llm.critic == "independent"
    yield "llm.critic", ["shared"] if independent else []
    yield "llm.lora_rank", [] if llm.lora_rank else [LORA_RANK]
    groups = _halve(llm.rollout_batch // llm.group_size, -(-config.ppo.minibatches // llm.group_size))
    yield "llm.rollout_batch", [count * llm.group_size for count in groups]


def _halve(value: int, smallest: int) -> Iterator[int]:
    """Yield half of `value`, a quarter of it, and so on, down to `smallest`."""
    while (value := value // 2) >= max(1, smallest):
        yield value


def _apply(config: LLMConfig, changes: dict[str, Any]) -> LLMConfig | None:
    """Return the changed configuration, or None if the options contradict each other."""
    table: dict[str, dict[str, Any]] = {}
    for option, value in changes.items():
        section, _, key = option.rpartition(".")
        table.setdefault(section, {})[key] = value
    try:
        return presets.apply_changes(config, table, "")
    except UsageError:
        return None
