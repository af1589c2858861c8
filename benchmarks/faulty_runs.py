"""Runs that go wrong on purpose: at least one for every health check, which must fire.

Most are presets with a bad option or reward. What no option can cause, because the engine's invariants hold for all of
them, is a defect put into the engine or an adapter while the run lasts.
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

BRIEF = {  # a faulty run is trained for its metrics alone
    "total_steps": 0,
    "stop_when_solved": False,
    "eval": {"every_steps": 0, "episodes": 1, "at_start": False},
    "log": {"samples_every": 0},
}

NO_KL_PENALTY = {"rollout_batch": 64, "kl_coef": 0.0}  # few responses, and nothing that holds them to the reference


class FaultyRun(NamedTuple):
    """A run that is made to go wrong."""

    provokes: tuple[str, ...]  # health checks that must fire
    how: str
    preset: str
    iterations: int
    options: Mapping[str, Any]
    defect: Callable[[], AbstractContextManager[Any]] = nullcontext  # in place, for as long as the run lasts

    def config(self) -> RunConfig:
        options = overlay(BRIEF | {"total_iterations": self.iterations}, self.options)
        return load_preset(self.preset, **options)


def shift_logprobs() -> AbstractContextManager[Any]:
    """Responses are remembered with other log-probs than those they were drawn by."""
    from envs.llm.policy import Comparison, TokenPolicy

    honest = TokenPolicy.compare

    def compare(self: TokenPolicy, tokens: Tensor, chosen: Tensor, *rest: Any) -> Comparison:
        seen = honest(self, tokens, chosen, *rest)
        return seen._replace(logprobs=torch.where(chosen, seen.logprobs + 0.05, seen.logprobs))

    return patch.object(TokenPolicy, "compare", compare)


def skip_last_minibatch() -> AbstractContextManager[Any]:
    """The last minibatch of an epoch is never learned from."""

    def drop_last(batch: Batch, count: int, *rest: Any) -> Iterator[Batch]:
        return islice(minibatches(batch, count, *rest), count - 1)

    return patch("ppo_unified.engine.ppo.minibatches", drop_last)


def drop_state_values() -> AbstractContextManager[Any]:
    """Advantages leave out the value of the state that a step began in."""

    def gae_without_values(rollout: Rollout, gamma: float, lam: float) -> Tensor:
        return gae(replace(rollout, values=torch.zeros_like(rollout.values)), gamma, lam)

    return patch("ppo_unified.engine.ppo.gae", gae_without_values)


FAULTY_RUNS: dict[str, FaultyRun] = {  # by the run's name
    "no-clip": FaultyRun(
        ("kl",),
        "`ppo.objective` ratio, without the clip, and `optim.lr` 5 times the preset's",
        "cartpole",
        20,
        {"ppo": {"objective": "ratio", "entropy_coef": 0.05}, "optim": {"lr": 0.01, "anneal": False}},
    ),
    "high-lr-short-rollout": FaultyRun(
        ("clip_fraction",),
        "`optim.lr` 100 times the preset's, on a quarter of its rollout",
        "pendulum",
        20,
        {"optim": {"lr": 0.1, "anneal": False}, "gym": {"num_steps": 32}, "ppo": {"minibatches": 8}},
    ),
    "high-lr": FaultyRun(("entropy",), "`optim.lr` 50 times the preset's", "cartpole", 30, {"optim": {"lr": 0.1}}),
    "high-critic-lr": FaultyRun(
        ("explained_variance",),
        "`optim.critic_lr` 150 times the preset's, and `ppo.lam` 1, so that it learns the last rollout by heart",
        "cartpole",
        45,
        {"optim": {"joint": False, "critic_lr": 0.3}, "ppo": {"lam": 1.0}},
    ),
    "zero-critic-lr": FaultyRun(
        ("dead_critic",),
        "`optim.critic_lr` next to nothing",
        "cartpole",
        45,
        {"optim": {"joint": False, "critic_lr": 1e-9}},
    ),
    "shifted-logprobs": FaultyRun(
        ("first_ratio",),
        "defect: log-probs are remembered 0.05 too high (`llm.dtype` bfloat16: a run in float32 fails at once)",
        "arithmetic",
        16,
        {"llm": {"dtype": "bfloat16", "rollout_batch": 32}, "ppo": {"minibatches": 1}},
        shift_logprobs,
    ),
    "skipped-minibatch": FaultyRun(
        ("optimizer_steps",),
        "defect: the last minibatch of an epoch is left out",
        "cartpole",
        16,
        {},
        skip_last_minibatch,
    ),
    "no-state-values": FaultyRun(
        ("gae",), "defect: advantages leave out the value of the state", "cartpole", 16, {}, drop_state_values
    ),
    "rare-reward": FaultyRun(
        ("grad_norm",),
        "a score of 100 for one answer in a hundred and 0 for the others, `ppo.normalize_advantages` off",
        "arithmetic",
        60,
        {
            "llm": {"reward": "bad_rewards:jackpot", "rollout_batch": 32},
            "ppo": {"normalize_advantages": "none", "minibatches": 1},
            "optim": {"lr": 1e-5},
        },
    ),
    "no-kl-penalty": FaultyRun(
        ("gold", "ref_kl"),
        "`llm.kl_coef` 0, so that nothing holds it to the reference, and `optim.lr` twice the preset's",
        "sentiment",
        45,
        {"llm": NO_KL_PENALTY, "optim": {"lr": 1e-3}},
    ),
    "length-reward": FaultyRun(
        ("length", "eos_rate"),
        "a score for length alone, and no `llm.missing_eos_penalty`",
        "arithmetic",
        30,
        {"llm": NO_KL_PENALTY | {"reward": "length:16", "max_new_tokens": 12}, "ppo": {"minibatches": 2}},
    ),
    "repetition-reward": FaultyRun(
        ("repetition",),
        "a score for saying again what was said",
        "arithmetic",
        40,
        {"llm": NO_KL_PENALTY | {"reward": "bad_rewards:babble", "max_new_tokens": 12}, "ppo": {"minibatches": 2}},
    ),
    "constant-reward": FaultyRun(
        ("reward_spread",),
        "the same score for every response",
        "arithmetic",
        16,
        {"llm": {"reward": "regex:^", "rollout_batch": 32}, "ppo": {"minibatches": 1}},
    ),
}
