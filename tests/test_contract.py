"""All adapters satisfy the contract, and `check_adapter` detects every kind of violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.gym.options import GymConfig
from envs.gym.vector import GymAdapter
from ppo_unified.engine.rollout import Adapter, Evaluation, Observations, Rollout
from ppo_unified.testing import BanditAdapter, BanditPolicy, check_adapter

CPU = torch.device("cpu")


def gym(
    env_id: str, num_envs: int = 3, num_steps: int = 24, policy: dict[str, Any] | None = None, **options: Any
) -> Any:
    table = {"env_id": env_id, "num_envs": num_envs, "num_steps": num_steps, **options}
    config = GymConfig.model_validate({"gym": table, "policy": {"hidden": [8]} | (policy or {}), "seed": 3})
    return lambda: GymAdapter(config, CPU)


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "bandit by step": BanditAdapter,
    "bandit by row": lambda: BanditAdapter(row_len=8),
    "bandit by half a row": lambda: BanditAdapter(row_len=4, seed=5),
    "one row": lambda: BanditAdapter(rows=1, row_len=8),
    "own vector version": gym("CartPole-v1"),
    "loop": gym("CartPole-v1", vectorization="sync"),
    "processes": gym("CartPole-v1", num_envs=2, vectorization="async"),
    "shared torso": gym("CartPole-v1", policy={"shared": True}),
    "one environment": gym("CartPole-v1", num_envs=1, num_steps=60),
    "normalized, continuous": gym(
        "Pendulum-v1", normalize_obs=True, normalize_reward=True, env_kwargs={"max_episode_steps": 10}
    ),
    "discrete observations, action mask": gym("Taxi-v4", env_kwargs={"max_episode_steps": 9}),
    "images and numbers": gym("tests.pixel_envs:Scene-v0", 2, 6, {"image_encoder": "resnet"}, vectorization="sync"),
    "flat Dict, MultiDiscrete, mask": gym("tests.gym_envs:Locks-v0"),
    "LSTM, own vector version": gym(
        "CartPole-v1", policy={"torso": "lstm", "memory_size": 5, "row_len": 8}, normalize_obs=True
    ),
    "shared GRU, MultiDiscrete, mask": gym(
        "tests.gym_envs:Locks-v0", policy={"torso": "gru", "memory_size": 5, "row_len": 12, "shared": True}
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_satisfies_the_contract(name: str) -> None:
    check_adapter(ADAPTERS[name])


class ModifiedBandit(BanditAdapter):
    """A bandit with modified rollouts or another policy."""

    def __init__(
        self, change: Callable[[Rollout], Rollout] = lambda x: x, policy: type[BanditPolicy] = BanditPolicy
    ) -> None:
        super().__init__(row_len=4)
        self.policy = policy(torch.Generator().manual_seed(0))
        self.change = change

    def collect(self) -> Rollout:
        return self.change(super().collect())


class ReadsLaterColumns(BanditPolicy):
    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        assert isinstance(obs, Tensor)
        return super().logprobs_and_values(obs + 0.1 * obs.flip(1).cumsum(1).flip(1))


class ReadsColumnCount(BanditPolicy):
    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        assert isinstance(obs, Tensor)
        return super().logprobs_and_values(obs / obs.shape[1])


class NormalizesOverRows(BanditPolicy):
    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        assert isinstance(obs, Tensor)
        return super().logprobs_and_values(obs - obs.mean((0, 1)))


class Detached(BanditPolicy):
    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        return Evaluation(*(x.detach() for x in super().evaluate(obs, actions)))


class DetachedValue(BanditPolicy):
    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        new = super().evaluate(obs, actions)
        return new._replace(values=new.values.detach())


class Wide(BanditPolicy):
    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        new = super().evaluate(obs, actions)
        return new._replace(values=new.values[..., None])


class ReturnsNoParameters(BanditPolicy):
    def critic_parameters(self) -> list[nn.Parameter]:
        return []


class ReturnsAllParameters(BanditPolicy):
    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())


class ReturnsActorParameters(BanditPolicy):
    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.actor.parameters())


class ReturnsUnregisteredParameter(BanditPolicy):
    def critic_parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.zeros(1))]


class ReadsPreviousAction(BanditPolicy):
    """The value at column t depends on the action at column t - 1, even if that column is masked."""

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        new = super().evaluate(obs, actions)
        before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
        return new._replace(values=new.values + before * self.critic.bias)


def without_grad(rollout: Rollout) -> Rollout:
    return replace(rollout, values=rollout.values.requires_grad_())


BREAKS: list[tuple[Callable[[], Adapter], str]] = [
    (
        lambda: ModifiedBandit(lambda r: replace(r, logprobs=r.logprobs * 1.1)),
        r"Rollout\.logprobs by up to .* before any upda",
    ),
    (lambda: ModifiedBandit(lambda r: replace(r, values=r.values + 1)), r"Rollout\.values by up to 1 "),
    (lambda: ModifiedBandit(lambda r: replace(r, rewards=r.rewards / 0)), r"Rollout\.rewards is not finite"),
    (lambda: ModifiedBandit(lambda r: replace(r, rewards=r.rewards.long())), r"Rollout\.rewards: .* got torch\.int64"),
    (lambda: ModifiedBandit(without_grad), r"Rollout\.values requires a gradient"),
    (
        lambda: ModifiedBandit(lambda r: replace(r, continues=r.mask | True)),
        r"Rollout\.next_values in column \d differs from the val",
    ),
    (lambda: ModifiedBandit(policy=ReadsLaterColumns), "evaluate.. must be causal"),
    (lambda: ModifiedBandit(policy=ReadsColumnCount), r"the first 1 columns change .* \(the row has 4\)"),
    (lambda: ModifiedBandit(policy=NormalizesOverRows), "treat rows independently"),
    (lambda: ModifiedBandit(policy=Detached), "the log-probs have no gradient with respect to the policy"),
    (lambda: ModifiedBandit(policy=DetachedValue), "the values have no gradient with respect to critic_parameters"),
    (lambda: ModifiedBandit(policy=Wide), r"\.values: expected shape \[R, L\] = \[32, 4\], got \[32, 4, 1\]"),
    (lambda: ModifiedBandit(policy=ReturnsNoParameters), r"critic_parameters\(\) is empty"),
    (lambda: ModifiedBandit(policy=ReturnsAllParameters), r"critic_parameters\(\) returns all parameters"),
    (lambda: ModifiedBandit(policy=ReturnsActorParameters), "depend on a parameter in critic_parameters"),
    (lambda: ModifiedBandit(policy=ReturnsUnregisteredParameter), r"that is not in policy\.parameters\(\)"),
]


@pytest.mark.parametrize(("make", "message"), BREAKS)
def test_contract_detects_violation(make: Callable[[], Adapter], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_adapter(make)


class ReadsMaskedActions(BanditAdapter):
    """An adapter whose policy reads the actions of masked columns; its stored values agree with the policy."""

    def __init__(self) -> None:
        super().__init__(row_len=4)
        self.policy = ReadsPreviousAction(torch.Generator().manual_seed(0))

    def collect(self) -> Rollout:
        rollout = super().collect()
        with torch.no_grad():
            new = self.policy.evaluate(rollout.rows(rollout.obs), rollout.rows(rollout.actions))  # type: ignore[arg-type]
        return replace(rollout, values=new.values.view(rollout.values.shape))


class GlobalRandomness(BanditAdapter):
    def collect(self) -> Rollout:
        self.generator.manual_seed(int(torch.randint(0, 1000, ())))
        return super().collect()


class ScoreDrawsFromTraining(BanditAdapter):
    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        torch.rand(1, generator=self.generator)
        return super().score(episodes, seed, greedy)


class ScoreIsNotSeeded(BanditAdapter):
    count = 0

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        self.count += 1
        return [float(self.count)] * episodes


class ReturnsOneScore(BanditAdapter):
    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        return super().score(episodes, seed, greedy)[:1]


class LosesGeneratorState(BanditAdapter):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.seed()


class SavesAnObject(BanditAdapter):
    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator}


class ReturnsStateWithoutCopy(BanditAdapter):
    """An adapter whose state contains a list that `collect` extends."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def collect(self) -> Rollout:
        rollout = super().collect()
        self.rewards.append(rollout.metrics["reward/score"])
        return rollout

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rewards": self.rewards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rewards = list(state["rewards"])


class CannotClose(BanditAdapter):
    def close(self) -> None:
        raise OSError("busy")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (ReadsMaskedActions, AssertionError, "masked columns .* changes the gradient"),
        (GlobalRandomness, AssertionError, r"two adapters from make\(\) collected different rollouts"),
        (ScoreDrawsFromTraining, AssertionError, r"score\(\) changes the result of the next collect\(\)"),
        (ScoreIsNotSeeded, AssertionError, "greedy scores with the same seed differ"),
        (ReturnsOneScore, AssertionError, "must return 3 scores, one per episode, got 1 scores"),
        (
            LosesGeneratorState,
            AssertionError,
            r"state_dict\(\) after load_state_dict\(\) differs from the loaded state",
        ),
        (SavesAnObject, AssertionError, r"state_dict\(\) cannot be saved: .*generator.* got a Generator"),
        (ReturnsStateWithoutCopy, AssertionError, r"collect\(\) changed a state that state_dict\(\) had returned"),
        (CannotClose, OSError, "busy"),
    ],
)
def test_contract_detects_adapter_violation(make: type[BanditAdapter], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_adapter(make)
