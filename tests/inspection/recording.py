"""Records iterations of small adapters in the form of a sample file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.explain import explain
from envs.llm.options import LLMConfig
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.ppo import clip_range, make_learner, train
from ppo_unified.engine.rollout import Adapter, Rollout
from ppo_unified.inspection.formulas import Array
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.training.recorder import UpdateObserver
from ppo_unified.training.step_table import make_step_table
from tests.sequences import SequenceAdapter, SequenceConfig


class Recorded(NamedTuple):
    stored: StoredIteration
    rollout: Rollout


def record(
    adapter: Adapter, ppo: PPO, options: Mapping[str, Any] | None = None, lr: float = 0.05, iterations: int = 1
) -> Recorded:
    """Train for some iterations and return the last one. `options` are the run's options outside of `ppo`."""
    learner = make_learner(adapter.policy, ppo, Optim(lr=lr), total_iterations=max(iterations, 2))
    collect, state = adapter.collect, dict[str, Any]()

    def observe() -> Rollout:
        state.update(clip_scale=learner.scale(learner.ppo.anneal_clip), penalty_coef=learner.progress.penalty_coef)
        state.update(critic_only=learner.trains_critic_only)
        rollout = collect()
        state.update(kl_coef=rollout.metrics.get("ref/kl_coef"), row_len=rollout.row_len)
        learner.observe = UpdateObserver(learner, rollout)
        return rollout

    adapter.collect = observe  # type: ignore[method-assign]
    run = train(adapter, learner)
    iteration = [next(run) for _ in range(iterations)][-1]
    assert isinstance(learner.observe, UpdateObserver)
    rollout, observer, learner.observe = iteration.rollout, learner.observe, None
    table = make_step_table(learner, iteration)
    columns = {name: x.numpy() for name, x in table.columns.items()}
    if isinstance(adapter, LLMAdapter):
        columns |= explain(adapter, rollout)
    low, high = clip_range(ppo, state["clip_scale"])
    stored = StoredIteration(
        iteration=iterations,
        step=learner.progress.steps,
        steps=int(rollout.mask.sum()),
        gamma=ppo.gamma,
        lam=ppo.lam,
        clip=low,
        clip_high=high,
        advantage_kind=ppo.advantage,
        value_target=ppo.value_target,
        metrics=dict(iteration.metrics | table.metrics),
        columns=to_float32(columns),
        options={"ppo": ppo.model_dump()} | dict(options or {}),
        state=dict(state),
        epochs=to_float32(observer.to_arrays(len(rollout.mask))),
    )
    return Recorded(stored, rollout)


def to_float32(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: x.astype(np.float32) if x.dtype.kind == "f" else x for name, x in arrays.items()}


def first_rows(stored: StoredIteration, count: int) -> StoredIteration:
    """Return the iteration as a file stores it that has room for only `count` rows."""
    columns = {name: x[:count] for name, x in stored.columns.items()}
    return replace(stored, columns=columns, epochs={name: x[:, :count] for name, x in stored.epochs.items()})


def without_new_fields(stored: StoredIteration) -> StoredIteration:
    """Return the iteration as an older version stored it."""
    columns = {
        name: x
        for name, x in stored.columns.items()
        if name not in ("weight", "score_normalized", "score_used", "ended")
    }
    return replace(stored, columns=columns, options={}, state={}, epochs={})


PPO_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"normalize_advantages": "batch", "clip_high": 0.3},
    "dual clip": {"normalize_advantages": "batch", "dual_clip": 1.2, "clip": 0.1},
    "td": {"normalize_advantages": "none", "advantage": "td", "value_target": "monte-carlo", "value_clip": 0.01},
    "reward-to-go": {"advantage": "reward-to-go", "objective": "ratio"},
    "return": {"advantage": "return", "objective": "policy-gradient", "loss_mean": "sequence"},
    "penalty": {"objective": "penalty", "penalty_coef": 0.5, "penalty_target": 0.01},
    "annealed": {"anneal_clip": True, "clip": 0.2, "clip_high": 0.4},
    "target KL": {"target_kl": 0.005, "epochs": 10, "loss_mean": "sequence"},
    "critic only": {"critic_warmup": 3},
}


def sequences() -> SequenceAdapter:
    return SequenceAdapter(SequenceConfig())


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """A reward that has different scores for different responses of an untrained model."""
    return [sum(character in "aeiou" for character in text) + 0.1 * len(text) for text in responses]


def missing_consonants(prompts: list[str], responses: list[str], **columns: Any) -> list[float | None]:
    """A reward that applies only to responses with an even number of consonants."""
    counts = [sum(character.isalpha() and character not in "aeiou" for character in text) for text in responses]
    scores = [None if count % 2 else count + 0.1 * len(text) for count, text in zip(counts, responses, strict=True)]
    return scores if any(score is not None for score in scores) else [0.0, *scores[1:]]


def token_sizes(prompts: list[str], responses: list[str], token_ids: list[list[int]]) -> list[list[float] | None]:
    """A reward with one number per token, which does not apply to some responses."""
    rows = [[(token % 7 - 2.5) / 4 for token in row] for row in token_ids]
    return [None if number % 5 == 2 else row for number, row in enumerate(rows)]


def make_adapter(folder: Path, llm: dict[str, Any], ppo: dict[str, Any]) -> LLMAdapter:
    given = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward": f"{__name__}:vowels",
             "max_new_tokens": 12, "rollout_batch": 12, "kl_coef": 0.1}  # fmt: skip
    small = {"epochs": 2, "minibatches": 3}
    config = LLMConfig.model_validate({"llm": given | llm, "ppo": small | ppo, "threads": 1})
    return LLMAdapter(config, torch.device("cpu"))


def record_llm(folder: Path, llm: dict[str, Any], ppo: dict[str, Any]) -> Recorded:
    adapter = make_adapter(folder, llm, ppo)
    return record(adapter, adapter.config.ppo, adapter.config.model_dump(), lr=0.003, iterations=2)


GROUP = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "value_clip": 0.0, "normalize_advantages": "none"}
LLM_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "full KL, whitened": ({"kl": "full", "whiten_rewards": True}, {"loss_mean": "sequence", "gamma": 0.95}),
    "k2, clipped": ({"kl": "k2", "score_clip": 1.0, "missing_eos_penalty": 0.7}, {"normalize_advantages": "minibatch"}),
    "k3, running": ({"kl": "k3", "score_clip": 1.0, "score_normalize": "running", "kl_target": 0.1}, {}),
    "abs, shared critic": ({"kl": "abs", "critic": "shared"}, {"dual_clip": 2.0}),
    "rloo": ({"baseline": "rloo", "group_size": 3}, GROUP),
    "rloo, sequence": ({"baseline": "rloo", "group_size": 3}, GROUP | {"loss_mean": "sequence"}),
    "rloo, target KL": ({"baseline": "rloo", "group_size": 3}, GROUP | {"target_kl": 0.003, "epochs": 8}),
    "rloo, left out": (
        {"baseline": "rloo", "group_size": 3, "reward": f"{__name__}:missing_consonants"},
        GROUP | {"loss_mean": "sequence"},
    ),
    "grpo, tokens": ({"baseline": "grpo", "group_size": 2, "reward": f"{__name__}:token_sizes"}, GROUP),
    "tokens, running": (
        {"score_clip": 0.5, "score_normalize": "running", "missing_eos_penalty": 0.7}
        | {"reward": [f"{__name__}:token_sizes", f"{__name__}:vowels"], "reward_weights": [0.5, -1.0]},
        {},
    ),
    "grpo": ({"baseline": "grpo", "group_size": 4, "kl": "k3"}, GROUP | {"clip_high": 0.3}),
}
