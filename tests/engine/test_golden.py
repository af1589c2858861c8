"""Advantages, returns and losses equal those of Stable-Baselines3 and TRL for the same inputs.

golden/peers.json contains the results of Stable-Baselines3 and TRL 0.11.4, the last version with a token-level PPO
trainer. All compute in float32; the tolerance of 1e-6 is its precision for numbers of this size.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import Batch, standardize
from ppo_unified.engine.ppo import gae, make_batch, ppo_loss
from ppo_unified.engine.rollout import Evaluation, Rollout

PEERS = json.loads((Path(__file__).parents[1] / "golden" / "peers.json").read_text(encoding="utf-8"))
VECTOR, TOKENS = PEERS["vector_env_gae_stable_baselines3"], PEERS["tokens_trl_0.11.4"]
SETTINGS = [
    (1.0, 0.95, False),
    (1.0, 0.95, True),
    (0.97, 0.8, False),
    (1.0, 1.0, False),
]  # gamma, lam, whiten_rewards


def tensors(table: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(x) for name, x in table.items() if isinstance(x, list)}


def close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return got.shape == expected.shape and bool((got - expected).abs().max() <= tolerance)


def test_gae_matches_stable_baselines3() -> None:
    """In Stable-Baselines3, time is axis 0, and `episode_starts[t]` is 1 if an episode terminated at step t - 1."""
    x, expected = tensors(VECTOR["inputs"]), tensors(VECTOR["outputs"])
    died = torch.cat([x["episode_starts"][1:], x["last_dones"][None]]).bool().T
    following = torch.cat([x["values"][1:], x["last_values"][None]]).T
    rollout = Rollout(
        obs=torch.zeros(4, 16, 1),
        actions=torch.zeros(4, 16),
        logprobs=torch.zeros(4, 16),
        values=x["values"].T,
        rewards=x["rewards"].T,
        next_values=following * ~died,
        continues=~died,
        mask=torch.ones(4, 16, dtype=torch.bool),
        row_len=1,
    )
    assert died.any()
    assert close(gae(rollout, 0.98, 0.9), expected["advantages"].T, 1e-6)
    returns = make_batch(rollout, PPO(gamma=0.98, lam=0.9)).returns.view(4, 16)
    assert close(returns, expected["returns"].T, 1e-6)


def token_rollout() -> Rollout:
    """Return a rollout of response tokens, with invalid numbers in the masked columns after the responses."""
    x = tensors(TOKENS["inputs"])
    mask = x["response_mask"].bool()
    following = torch.cat([x["values"][:, 1:], torch.zeros(5, 1)], 1)
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros(5, 1, dtype=torch.bool)], 1)

    def fill_masked(x: Tensor) -> Tensor:
        return torch.where(mask, x, 1e6)

    return Rollout(
        obs=x["new_logits"],
        actions=x["tokens"],
        logprobs=fill_masked(x["logprobs"]),
        values=fill_masked(x["values"]),
        rewards=fill_masked(torch.tensor(TOKENS["outputs"]["rewards_kl"])),
        next_values=torch.where(last, 0.0, fill_masked(following)),
        continues=~last,
        mask=mask,
        row_len=9,
    )


def whiten_rewards(rollout: Rollout) -> Rollout:
    """Whiten rewards as TRL does: unit variance, same mean.

    TRL's whitening also changes the zeros after the end of a response, and its GAE includes them. The rollout therefore
    marks padding as valid steps with a value of 0.
    """
    mask, everywhere = rollout.mask, torch.ones_like(rollout.mask)
    rewards, values = rollout.rewards * mask, rollout.values * mask
    variance, mean = torch.var_mean(rewards[mask])
    return replace(
        rollout,
        rewards=(rewards - mean) * torch.rsqrt(variance + 1e-8) + mean,
        values=values,
        next_values=torch.cat([values[:, 1:], torch.zeros(5, 1)], 1),
        continues=everywhere,
        mask=everywhere,
    )


def token_batch(setting: tuple[float, float, bool], ppo: PPO) -> Batch:
    rollout = token_rollout()
    if not setting[2]:
        return make_batch(rollout, ppo)
    raw = make_batch(whiten_rewards(rollout), ppo.model_copy(update={"normalize_advantages": "none"}))
    mask = rollout.mask
    return replace(raw, advantages=standardize(raw.advantages, mask), mask=mask, weights=mask.float())


def expected_output(kind: str, setting: tuple[float, float, bool]) -> Any:
    gamma, lam, whiten = setting
    return TOKENS["outputs"][f"{kind}_gamma{gamma}_lam{lam}_whiten{int(whiten)}"]


def make_ppo(setting: tuple[float, float, bool], **options: Any) -> PPO:
    table = {"gamma": setting[0], "lam": setting[1], "normalize_advantages": "batch", "value_clip": 0.2}
    return PPO.model_validate(table | options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_whitened_gae_and_returns_match_trl(setting: tuple[float, float, bool]) -> None:
    batch = token_batch(setting, make_ppo(setting))
    mask = batch.mask
    assert 0 < mask.sum() < mask.numel()
    assert close(batch.advantages[mask], torch.tensor(expected_output("advantages", setting))[mask], 1e-6)
    assert close(batch.returns[mask], torch.tensor(expected_output("returns", setting))[mask], 1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_match_trl(setting: tuple[float, float, bool]) -> None:
    x, ppo = tensors(TOKENS["inputs"]), make_ppo(setting)
    batch = token_batch(setting, ppo)
    scores = x["new_logits"].log_softmax(-1)
    new = Evaluation(x["new_logprobs"], -(scores.exp() * scores).sum(-1), x["new_values"])
    loss, expected, steps = ppo_loss(new, batch, ppo), expected_output("loss", setting), batch.weights.sum()
    assert float(loss.policy / steps) == pytest.approx(expected["policy"], abs=1e-6)
    assert float(0.1 * loss.value / steps) == pytest.approx(expected["value_times_0.1"], abs=1e-6)
    assert float(loss.entropy / steps) == pytest.approx(expected["entropy"], abs=1e-6)
    free = ppo_loss(new, batch, make_ppo(setting, value_clip=0.0, clip=0.9))  # both clips affect the losses above
    assert float(free.policy / steps) != pytest.approx(expected["policy"], abs=1e-4)
    assert float(0.1 * free.value / steps) != pytest.approx(expected["value_times_0.1"], abs=1e-4)


def test_columns_after_the_end_are_ignored() -> None:
    rollout = token_rollout()
    other = replace(rollout, values=rollout.values.masked_fill(~rollout.mask, float("nan")))
    assert not rollout.mask.all()
    assert torch.equal(gae(rollout, 1.0, 0.95), gae(other, 1.0, 0.95))
