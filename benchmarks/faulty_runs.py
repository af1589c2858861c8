"""Faulty runs that must make the health checks fire, at least one for each check.

Most are presets with a bad option or reward. If no option can cause a fault, because the engine is correct for all of
them, the engine or an adapter is patched with a defect during the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from ppo_unified import load_preset
from ppo_unified.config.schema import RunConfig, overlay
from ppo_unified.engine.batch import Batch, minibatches
from ppo_unified.engine.ppo import gae
from ppo_unified.engine.rollout import Rollout

BRIEF = {  # a faulty run needs only its metrics
    "total_steps": 0,
    "stop_when_solved": False,
    "eval": {"every_steps": 0, "episodes": 1, "at_start": False},
    "log": {"samples_every": 0},
}

NO_KL_PENALTY = {
    "rollout_batch": 64,
    "kl_coef": 0.0,
}  # few responses, and no penalty on their distance from the reference


class FaultyRun(NamedTuple):
    """A run with a deliberate fault."""

    provokes: tuple[str, ...]  # the health checks that must fire
    how: str
    preset: str
    iterations: int
    options: Mapping[str, Any]
    defect: Callable[[], AbstractContextManager[Any]] = nullcontext  # active during the run

    def config(self) -> RunConfig:
        options = overlay(BRIEF | {"total_iterations": self.iterations}, self.options)
        return load_preset(self.preset, **options)


def shift_logprobs() -> AbstractContextManager[Any]:
    """Patch the policy to store other log-probs than those from which the tokens were sampled."""
    from envs.llm.policy import Comparison, TokenPolicy

    honest = TokenPolicy.compare

    def compare(self: TokenPolicy, tokens: Tensor, chosen: Tensor, *rest: Any) -> Comparison:
        seen = honest(self, tokens, chosen, *rest)
        return seen._replace(logprobs=torch.where(chosen, seen.logprobs + 0.05, seen.logprobs))

    return patch.object(TokenPolicy, "compare", compare)


def skip_last_minibatch() -> AbstractContextManager[Any]:
    """Patch the engine to skip the last minibatch of each epoch."""

    def drop_last(batch: Batch, count: int, *rest: Any) -> Iterator[Batch]:
        return islice(minibatches(batch, count, *rest), count - 1)

    return patch("ppo_unified.engine.ppo.minibatches", drop_last)


def drop_state_values() -> AbstractContextManager[Any]:
    """Patch the engine to compute advantages without the value of the current state."""

    def gae_without_values(rollout: Rollout, gamma: float, lam: float) -> Tensor:
        return gae(replace(rollout, values=torch.zeros_like(rollout.values)), gamma, lam)

    return patch("ppo_unified.engine.ppo.gae", gae_without_values)


FAULTY_RUNS: dict[str, FaultyRun] = {  # name of the run -> the run
    "no-clip": FaultyRun(
        ("kl",),
        "`ppo.objective` is ratio, which has no clip, and `optim.lr` is 5 times the preset's",
        "cartpole",
        20,
        {"ppo": {"objective": "ratio", "entropy_coef": 0.05}, "optim": {"lr": 0.01, "anneal": False}},
    ),
    "high-lr-short-rollout": FaultyRun(
        ("clip_fraction",),
        "`optim.lr` is 100 times the preset's, and rollouts are a quarter as long",
        "pendulum",
        20,
        {"optim": {"lr": 0.1, "anneal": False}, "gym": {"num_steps": 32}, "ppo": {"minibatches": 8}},
    ),
    "high-lr": FaultyRun(("entropy",), "`optim.lr` is 50 times the preset's", "cartpole", 30, {"optim": {"lr": 0.1}}),
    "wide-actions": FaultyRun(
        ("action_clipping",),
        "`policy.log_std_init` is 4.5, so samples are mostly far outside the bounds",
        "pendulum",
        16,
        {"policy": {"log_std_init": 4.5}},
    ),
    "narrow-actions": FaultyRun(
        ("action_spread",),
        "`policy.log_std_init` is -6, so samples are close to the mean, and `optim.lr` is a thousandth of the preset's",
        "pendulum",
        16,
        {"policy": {"log_std_init": -6.0}, "optim": {"lr": 1e-6}},
    ),
    "high-critic-lr": FaultyRun(
        ("explained_variance",),
        "`optim.critic_lr` is 150 times the preset's, and `ppo.lam` is 1, so the critic overfits the last rollout",
        "cartpole",
        45,
        {"optim": {"joint": False, "critic_lr": 0.3}, "ppo": {"lam": 1.0}},
    ),
    "zero-critic-lr": FaultyRun(
        ("dead_critic",),
        "`optim.critic_lr` is almost 0",
        "cartpole",
        45,
        {"optim": {"joint": False, "critic_lr": 1e-9}},
    ),
    "shifted-logprobs": FaultyRun(
        ("first_ratio",),
        "defect: stored log-probs are 0.05 too high (with `llm.dtype` bfloat16; in float32 the run fails at once)",
        "arithmetic",
        16,
        {"llm": {"dtype": "bfloat16", "rollout_batch": 32}, "ppo": {"minibatches": 1}},
        shift_logprobs,
    ),
    "skipped-minibatch": FaultyRun(
        ("optimizer_steps",),
        "defect: the last minibatch of each epoch is skipped",
        "cartpole",
        16,
        {},
        skip_last_minibatch,
    ),
    "no-state-values": FaultyRun(
        ("gae",), "defect: advantages ignore the value of the current state", "cartpole", 16, {}, drop_state_values
    ),
    "rare-reward": FaultyRun(
        ("grad_norm",),
        "the score is 100 for one answer in a hundred and 0 for the others, without `ppo.normalize_advantages`",
        "arithmetic",
        60,
        {
            "llm": {"reward": "bad_rewards:rare_answer_bonus", "rollout_batch": 32},
            "ppo": {"normalize_advantages": "none", "minibatches": 1},
            "optim": {"lr": 1e-5},
        },
    ),
    "no-kl-penalty": FaultyRun(
        ("gold", "ref_kl"),
        "`llm.kl_coef` is 0, so there is no penalty on the KL to the reference, and `optim.lr` is twice the preset's",
        "sentiment",
        45,
        {"llm": NO_KL_PENALTY, "optim": {"lr": 1e-3}},
    ),
    "length-reward": FaultyRun(
        ("length", "eos_rate"),
        "the score depends only on the length, and `llm.missing_eos_penalty` is 0",
        "arithmetic",
        30,
        {"llm": NO_KL_PENALTY | {"reward": "length:16", "max_new_tokens": 12}, "ppo": {"minibatches": 2}},
    ),
    "repetition-reward": FaultyRun(
        ("repetition",),
        "the score is the number of repeated characters",
        "arithmetic",
        40,
        {
            "llm": NO_KL_PENALTY | {"reward": "bad_rewards:repetition_bonus", "max_new_tokens": 12},
            "ppo": {"minibatches": 2},
        },
    ),
    "constant-reward": FaultyRun(
        ("reward_spread",),
        "every response has the same score",
        "arithmetic",
        16,
        {"llm": {"reward": "regex:^", "rollout_batch": 32}, "ppo": {"minibatches": 1}},
    ),
}
