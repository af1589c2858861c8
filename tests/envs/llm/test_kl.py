"""Tests of KL estimates, rewards and baselines against TRL's numbers, closed forms, and mathematical properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.llm.kl import ESTIMATES, KLController, group_baselines, kl_estimates, last_steps, token_rewards, whiten
from envs.llm.policy import logprobs_and_kl
from ppo_unified.config.schema import PPO
from ppo_unified.engine.ppo import gae, make_batch
from ppo_unified.engine.rollout import Rollout

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "peers.json").read_text(encoding="utf-8"))
TOKENS = GOLDEN["tokens_trl_0.11.4"]
COEF = 0.2  # the KL coefficient of TRL's rewards in the golden file
NAMES = {"k1": "kl", "abs": "abs", "k2": "mse", "full": "full"}  # name here -> name in TRL


def load_input(name: str) -> Tensor:
    return torch.tensor(TOKENS["inputs"][name])


def estimates() -> dict[str, Tensor]:
    """Compute the KL estimates from logits as the adapter does."""
    tokens = load_input("tokens")
    logits, ref_logits = (load_input(name).flatten(0, 1) for name in ("logits", "ref_logits"))
    logprobs, ref_logprobs, full = (x.view(tokens.shape) for x in logprobs_and_kl(logits, ref_logits, tokens.flatten()))
    torch.testing.assert_close(logprobs, load_input("logprobs"), atol=1e-6, rtol=0)
    return kl_estimates(logprobs, ref_logprobs, full)


@pytest.mark.parametrize("name", NAMES)
def test_kl_and_rewards_match_trl(name: str) -> None:
    mask, kl = load_input("response_mask").bool(), estimates()[name]
    expected = TOKENS["outputs"]
    torch.testing.assert_close(kl[mask], torch.tensor(expected[f"kl_{NAMES[name]}"])[mask], atol=1e-6, rtol=0)
    rewards = token_rewards(load_input("scores"), kl, COEF, mask)
    theirs = torch.tensor(expected[f"rewards_{NAMES[name]}"])
    torch.testing.assert_close(rewards[mask], theirs[mask], atol=1e-6, rtol=0)
    assert not rewards[~mask].any()


def test_score_is_added_at_the_last_valid_step() -> None:
    mask = torch.tensor([[False, True, True, True], [True, True, False, False], [True, False, True, False]])
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 4), 0.1, mask)
    assert rewards.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0]]
    assert last_steps(mask).tolist() == [3, 1, 2]


def test_token_rewards_match_the_worked_example() -> None:
    """The prompt is "p0 p1" and the response "a b EOS"; all expected numbers were computed by hand."""
    mask = torch.tensor([[False, True, True, True]])
    log_ratio = torch.tensor([[0.0, 0.2, -0.1, 0.3]])
    rewards = token_rewards(torch.tensor([1.0]), ESTIMATES["k1"](log_ratio), 0.1, mask)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, -0.02, 0.01, 0.97]]))
    rollout = rollout_of(rewards, torch.tensor([[9.0, 0.5, 0.6, 0.8]]), mask)
    torch.testing.assert_close(gae(rollout, 1.0, 0.95), torch.tensor([[0.0, 0.432925, 0.3715, 0.17]]))


def test_approximate_kl_matches_trl() -> None:
    mask = load_input("response_mask").bool()
    kl = ESTIMATES["k2"](load_input("new_logprobs") - load_input("logprobs"))[mask].mean()
    expected = TOKENS["outputs"]["loss_gamma1.0_lam0.95_whiten0"]["approx_kl_half_sq"]
    assert float(kl) == pytest.approx(expected, abs=1e-6)


def test_kl_coefficient_adapts_like_trl() -> None:
    controller = KLController(0.2, 6.0, 10_000)
    for kl, responses, coef in TOKENS["outputs"]["adaptive_kl_init0.2_target6_horizon10000"]:
        controller.update(kl, responses)
        assert controller.coef == pytest.approx(coef, abs=1e-12)


def test_kl_coefficient_is_constant_without_target() -> None:
    controller = KLController(0.2, 0.0, 10_000)
    controller.update(100.0, 64)
    assert controller.coef == 0.2


def test_full_kl_is_nonnegative_and_matches_estimates() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = (torch.randn(7, generator=generator) for _ in range(2))
    draws = torch.multinomial(logits.softmax(-1), 200_000, True, generator=generator)
    logprobs, ref_logprobs, full = logprobs_and_kl(logits.expand(7, 7), ref_logits.expand(7, 7), torch.arange(7))
    assert bool((full >= 0).all())
    exact = (logits.softmax(-1) * (logits.log_softmax(-1) - ref_logits.log_softmax(-1))).sum()
    torch.testing.assert_close(full, exact.expand(7))
    for name in ("k1", "k3"):
        estimated = ESTIMATES[name](logprobs - ref_logprobs)[draws]
        assert float(estimated.mean()) == pytest.approx(float(exact), abs=4 * float(estimated.std()) / 200_000**0.5)
    same = logprobs_and_kl(logits[None], logits[None], torch.zeros(1, dtype=torch.long))[2]
    assert float(same) == 0.0


def rollout_of(rewards: Tensor, values: Tensor, mask: Tensor) -> Rollout:
    last = torch.zeros_like(mask).scatter(1, last_steps(mask)[:, None], True)
    return Rollout(
        obs=torch.zeros(*mask.shape, 1),
        actions=torch.zeros(mask.shape),
        logprobs=torch.zeros(mask.shape),
        values=values,
        rewards=rewards,
        next_values=torch.where(last, 0.0, values.roll(-1, 1)),
        continues=mask & ~last,
        mask=mask,
        row_len=mask.shape[1],
    )


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_group_baseline_advantages_match_closed_form(kind: str) -> None:
    """The advantage from the engine's GAE is R_i - mean of the others (RLOO) or (R_i - mean) / std (GRPO)."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 5, 1, 4, 2, 5])
    mask = torch.arange(5) < lengths[:, None]
    rewards = torch.randn(6, 5, generator=generator) * mask
    total = rewards.sum(1).view(2, 3)
    returns, baselines = group_baselines(rewards.sum(1), 3, kind, mask.any(1))
    moved = token_rewards(returns, torch.zeros(6, 5), 0.0, mask)
    rollout = rollout_of(moved, torch.where(mask, baselines[:, None], 0.0), mask)
    ppo = PPO(gamma=1.0, lam=1.0, normalize_advantages="none")
    advantages = make_batch(rollout, ppo).advantages
    if kind == "rloo":
        expected = total - (total.sum(1, keepdim=True) - total) / 2
    else:
        expected = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages, expected.view(6, 1) * mask)


def test_whitening_keeps_mean_and_ignores_padding() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = torch.tensor([[1.0, 5.0, 99.0], [2.0, -3.0, 4.0]])
    white = whiten(rewards, mask)
    assert float(white[mask].mean()) == pytest.approx(float(rewards[mask].mean()), abs=1e-6)
    assert float(white[mask].std()) == pytest.approx(1.0, abs=1e-6)
    assert float(white[0, 2]) == 0.0
