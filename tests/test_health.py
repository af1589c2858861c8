"""Health checks: each is provoked by a run that goes wrong in its way, and none speaks of one that goes well."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.options import LLMConfig
from ppo_unified.config import PPO, Optim
from ppo_unified.health import CHECKS, CRITIC, LONG, PERSIST, SETTLED, START, WINDOW, Health
from ppo_unified.rollout import Rollout
from ppo_unified.testing import BanditAdapter
from tests.models import save_model
from tests.toys import run_engine

CPU = torch.device("cpu")


def ever_fired(history: Iterable[Mapping[str, float]]) -> set[str]:
    """Names of the checks that fired at any time."""
    health, fired = Health(), set()
    for step, metrics in enumerate(history):
        health.update(step, metrics)
        fired |= {warning["name"] for warning in health.firing()}
    return fired


# runs that go wrong


class Noisy(BanditAdapter):
    """Pays by chance alone, a little: there is nothing for a critic to foresee, and no reason to settle."""

    def collect(self) -> Rollout:
        rollout = super().collect()
        return replace(rollout, rewards=torch.randn(rollout.rewards.shape, generator=self.generator))


class Careless(BanditAdapter):
    """Remembers other log-probs than those it acted by."""

    def collect(self) -> Rollout:
        rollout = super().collect()
        return replace(rollout, logprobs=rollout.logprobs + 0.05)


class Bursts(BanditAdapter):
    """Rewards that are a thousand times as large in some iterations, late."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def collect(self) -> Rollout:
        rollout, self.number = super().collect(), self.number + 1
        scale = 1000.0 if self.number > 40 and self.number % 2 else 1.0
        return replace(rollout, rewards=scale * rollout.rewards)


def test_a_learning_rate_too_high_is_told_by_kl_and_clip_fraction() -> None:
    fired = ever_fired(run_engine(Noisy(), 30, PPO(epochs=10), Optim(lr=0.3)))
    assert {"kl", "clip_fraction"} <= fired


def test_an_entropy_that_is_pushed_down_is_told() -> None:
    assert "entropy" in ever_fired(run_engine(Noisy(), 60, PPO(epochs=10, entropy_coef=-2.0), Optim(lr=0.05)))


def test_a_critic_that_cannot_learn_is_told() -> None:
    assert "dead_critic" in ever_fired(run_engine(Noisy(256), 50, PPO(), Optim(joint=False, critic_lr=1e-9)))


def test_a_critic_that_learns_noise_is_told() -> None:
    wild = Optim(joint=False, critic_lr=1.0)
    assert "explained_variance" in ever_fired(run_engine(Noisy(4, 4), 60, PPO(epochs=20), wild))


def test_other_logprobs_than_those_acted_by_are_told() -> None:
    assert "first_ratio" in ever_fired(run_engine(Careless(), 20))


def test_gradients_in_bursts_are_told() -> None:
    assert "grad_norm" in ever_fired(run_engine(Bursts(), 70))


def test_a_run_that_goes_well_is_left_in_peace() -> None:
    for seed in range(5):
        assert not ever_fired(run_engine(BanditAdapter(64, seed=seed), 60, optim=Optim(lr=1e-3)))
