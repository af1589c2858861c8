"""Rollouts from Gymnasium vector environments: episode ends, masks, spaces, normalization and faulty environments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.gym.make import check
from envs.gym.options import GymConfig
from envs.gym.scaling import ObservationScaler, RewardScaler
from envs.gym.vector import GymAdapter
from ppo_unified.config.schema import Optim
from ppo_unified.engine.rollout import Rollout
from ppo_unified.errors import ForeignCodeError, UsageError
from tests.toys import run_engine

KINDS = [
    ("tests.gym_envs:Counter-v0", "sync"),
    ("tests.gym_envs:Counter-v0", "async"),
    ("tests.gym_envs:OwnCounter-v0", "vector_entry_point"),
    ("tests.gym_envs:OwnCounter-v0", "auto"),
    ("tests.gym_envs:OnlyVector-v0", "auto"),
]


def make_config(env_id: str, num_envs: int = 2, num_steps: int = 7, **tables: Any) -> GymConfig:
    gym = {"env_id": env_id, "num_envs": num_envs, "num_steps": num_steps} | tables.pop("gym", {})
    ppo = {"minibatches": 1} | tables.pop("ppo", {})
    policy = {"hidden": [8]} | tables.pop("policy", {})
    return GymConfig.model_validate({"gym": gym, "ppo": ppo, "policy": policy, **tables})


OPENED: list[GymAdapter] = []  # closed after each test


@pytest.fixture(autouse=True)
def _close_adapters() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def make_adapter(env_id: str, num_envs: int = 2, num_steps: int = 7, **gym: Any) -> GymAdapter:
    adapter = GymAdapter(make_config(env_id, num_envs, num_steps, gym=gym), torch.device("cpu"))
    OPENED.append(adapter)
    return adapter


def obs_of(rollout: Rollout) -> Tensor:
    return rollout.obs if isinstance(rollout.obs, Tensor) else rollout.obs["obs"]


def value_of(adapter: GymAdapter, shown: float) -> float:
    with torch.no_grad():
        return float(adapter.policy.critic(adapter.policy.critic_torso(torch.tensor([[float(shown)]]))))


@pytest.mark.parametrize(("env_id", "vectorization"), KINDS)
@pytest.mark.parametrize("ends", ["truncated", "terminated"])
def test_truncation_bootstraps_and_termination_does_not(env_id: str, vectorization: str, ends: str) -> None:
    """Each episode has 3 steps (columns 0 to 2 and 4 to 6). Column 3 is a reset; the rollout ends with an episode."""
    adapter = make_adapter(env_id, vectorization=vectorization, env_kwargs={"length": 3, "ends": ends})
    rollout = adapter.collect()
    again = adapter.collect()
    assert obs_of(rollout)[:, :, 0].tolist() == [[0, 1, 2, 3, 0, 1, 2]] * 2  # column 3 contains the final observation
    assert rollout.mask.tolist() == [[True, True, True, False, True, True, True]] * 2
    ended = torch.tensor([False, False, True, False, False, False, True])
    assert torch.equal(rollout.continues, ~ended.expand(2, 7))
    assert rollout.rewards.tolist() == [[1, 1, 1, 0, 1, 1, 1]] * 2
    values = {shown: value_of(adapter, shown) for shown in range(4)}
    assert len({round(v, 4) for v in values.values()}) == 4
    final = values[3] if ends == "truncated" else 0.0
    expected = [values[1], values[2], final, None, values[1], values[2], final]
    for t, value in enumerate(expected):
        if value is not None:
            assert rollout.next_values[0, t].item() == pytest.approx(value, abs=1e-6)
            assert rollout.values[0, t].item() == pytest.approx(values[int(obs_of(rollout)[0, t, 0])], abs=1e-6)
    assert again.mask[:, 0].tolist() == [False, False]  # the reset after the previous rollout's last episode
    assert obs_of(again)[0, :2, 0].tolist() == [3, 0]


def test_time_limit_is_a_truncation() -> None:
    adapter = make_adapter("tests.gym_envs:TimedCounter-v0")
    rollout = adapter.collect()
    assert rollout.next_values[0, 2].item() == pytest.approx(value_of(adapter, 3.0), abs=1e-6)
    assert not rollout.continues[0, 2]


def train_values(ends: str, blind: bool, gamma: float) -> tuple[GymAdapter, dict[str, float]]:
    """Train on episodes of 3 steps with reward 1. Return the adapter and the last metrics."""
    config = make_config(
        "tests.gym_envs:Counter-v0",
        num_envs=2,
        num_steps=32,
        gym={"env_kwargs": {"ends": ends, "blind": blind}, "vectorization": "sync"},
        ppo={"gamma": gamma, "lam": 0.95, "epochs": 8, "minibatches": 1},
        policy={"hidden": [] if blind else [16]},
    )
    adapter = GymAdapter(config, torch.device("cpu"))
    metrics = run_engine(adapter, 60 if blind else 75, config.ppo, Optim(lr=0.2 if blind else 0.04, max_grad_norm=0))
    return adapter, metrics[-1]


def test_truncated_constant_reward_has_infinite_horizon_value() -> None:
    _, metrics = train_values("truncated", blind=True, gamma=0.9)
    assert metrics["value/mean"] == pytest.approx(1 / (1 - 0.9), rel=0.01)


def test_terminated_constant_reward_has_finite_horizon_value() -> None:
    gamma = 0.9
    adapter, _ = train_values("terminated", blind=False, gamma=gamma)
    for step, worth in enumerate((1 + gamma + gamma**2, 1 + gamma, 1)):
        assert value_of(adapter, float(step)) == pytest.approx(worth, abs=0.03)


@pytest.mark.parametrize("env_id", ["Locks-v0", "LocksSideBySide-v0"])
def test_masked_actions_have_probability_zero(env_id: str) -> None:
    """The environment rejects forbidden actions. The empty masks at the end of its episodes are ignored."""
    adapter = make_adapter(f"tests.gym_envs:{env_id}", num_envs=4, num_steps=50)
    rollout = adapter.collect()
    assert not isinstance(rollout.obs, Tensor)
    mask = rollout.obs["action_mask"]
    assert mask.shape == (4, 50, 5)
    assert mask[~rollout.mask].all()  # a reset column allows every action
    assert (~mask[rollout.mask]).sum(-1).eq(1).all()  # each other column forbids one option
    taken = rollout.actions[rollout.mask]
    assert mask[rollout.mask].gather(1, taken[:, :1]).all()
    forbidden = (~mask[rollout.mask][:, :3]).int().argmax(1)
    wrong = torch.stack([forbidden, taken[:, 1]], 1)
    with torch.no_grad():
        valid = {key: x[rollout.mask][:, None] for key, x in rollout.obs.items()}
        assert adapter.policy.evaluate(valid, wrong[:, None]).logprobs.exp().max() == 0
        right = adapter.policy.evaluate(valid, taken[:, None])
    assert right.entropy.max() <= np.log(2) + np.log(2) + 1e-5  # 2 allowed options per component
    assert right.logprobs.isfinite().all()


@pytest.mark.parametrize("env_id", ["Locks-v0", "LocksSideBySide-v0"])
def test_evaluation_respects_masks_and_empty_final_masks(env_id: str) -> None:
    adapter = make_adapter(f"tests.gym_envs:{env_id}")
    assert all(0 <= score <= 4 for greedy in (True, False) for score in adapter.score(40, 1, greedy))


def test_taxi_mask_is_read_from_info() -> None:
    rollout = make_adapter("Taxi-v4", num_steps=20).collect()
    assert not isinstance(rollout.obs, Tensor)
    assert rollout.obs["obs"].shape == (2, 20, 500)
    assert rollout.obs["obs"].sum(-1).eq(1).all()
    assert rollout.obs["action_mask"].gather(2, rollout.actions).all()


def test_mask_missing_from_step_info_allows_every_action() -> None:
    rollout = make_adapter("tests.gym_envs:ForgetsItsMask-v0", env_kwargs={"tells": "reset"}).collect()
    assert not isinstance(rollout.obs, Tensor)
    assert (
        rollout.obs["action_mask"][0].tolist()
        == [[True, False, True], *[[True] * 3] * 3, [True, False, True]] + [[True] * 3] * 2
    )


def test_mask_missing_from_reset_info_is_rejected() -> None:
    adapter = make_adapter("tests.gym_envs:ForgetsItsMask-v0", env_kwargs={"tells": "step"})
    with pytest.raises(ForeignCodeError, match=r"step\(\) returned an action mask, but reset\(\) did not"):
        adapter.collect()


@pytest.mark.parametrize("space", ["box", "started", "multi", "grid", "bits"])
def test_actions_match_the_action_space(space: str) -> None:
    """The environment raises an error for actions outside its space; the reward is the sum of the action."""
    options: dict[str, Any] = {"env_kwargs": {"space": space}, "rescale_actions": False}
    adapter = make_adapter("tests.gym_envs:Echo-v0", num_envs=3, num_steps=30, **options)
    rollout = adapter.collect()
    start = {"started": 5.0, "multi": 60.0}.get(space, 0.0)
    actions = rollout.actions.double()
    if space == "box":
        low, high = torch.tensor([-0.25, -0.5]), torch.tensor([0.5, 0.25])
        assert (actions[rollout.mask] > high).any()  # the rollout contains unclipped samples
        assert (actions[rollout.mask] < low).any()
        actions = actions.clamp(low, high)  # the environment receives clipped actions
    arrived = actions.sum(-1) + start
    assert torch.allclose(rollout.rewards[rollout.mask].double(), arrived[rollout.mask], atol=1e-5)
    assert obs_of(rollout).sum(-1).eq(1).all()  # one-hot encoding of Discrete observations, which start at -2
    assert obs_of(rollout)[0, :6].argmax(-1).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(adapter.score(3, 1, False)) == 3


def test_observation_statistics_change_only_between_collects() -> None:
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_envs=3, num_steps=22, normalize_obs=True)
    scaler = adapter.policy.scaler
    assert isinstance(scaler, ObservationScaler)
    seen: list[Tensor] = []
    for number in range(3):
        mean, variance = scaler.mean.clone(), scaler.variance.clone()
        rollout = adapter.collect()
        raw = obs_of(rollout) * (variance + 1e-8).sqrt() + mean
        assert torch.allclose(raw, raw.round(), atol=1e-4)  # integers, so all columns had the same scale
        assert torch.unique(raw.round()).tolist() == [0, 1, 2, 3]
        new = adapter.policy.evaluate(obs_of(rollout).flatten(0, 1)[:, None], rollout.actions.flatten(0, 1)[:, None])
        assert torch.allclose(new.logprobs.flatten(), rollout.logprobs.flatten(), atol=1e-6)  # ratio 1
        seen.append(raw.round()[rollout.mask])
        assert not torch.equal(scaler.mean, mean) or number
        everything = torch.cat(seen)
        assert scaler.mean.item() == pytest.approx(everything.mean().item(), abs=1e-4)
        assert scaler.variance.item() == pytest.approx(everything.var(correction=0).item(), abs=1e-4)
    metrics = run_engine(adapter, 3, adapter.config.ppo)
    assert max(m["invariant/first_ratio_error"] for m in metrics) <= 1e-5


def test_observation_statistics_are_saved_with_the_policy() -> None:
    one, other = (make_adapter("tests.gym_envs:Counter-v0", normalize_obs=True) for _ in range(2))
    one.collect()
    assert {"scaler.mean", "scaler.variance", "scaler.count"} <= one.policy.state_dict().keys()
    other.policy.load_state_dict(one.policy.state_dict())
    shown = torch.tensor([[2.0]])
    assert torch.equal(one.policy.scale(shown), other.policy.scale(shown))
    assert not torch.equal(one.policy.scale(shown), shown)


def test_normalised_observations_are_clipped() -> None:
    scaler = ObservationScaler(1)
    assert scaler(torch.tensor([[1e6], [-1e6], [0.5]])).flatten().tolist() == pytest.approx([10, -10, 0.5])
    scaler.update(torch.empty(0, 1))  # an empty batch does not change the statistics
    assert scaler.mean.item() == 0.0


def test_rewards_are_scaled_by_discounted_return_deviation() -> None:
    """The statistics include all steps so far, but no reset columns."""
    rng, gamma = np.random.default_rng(0), 0.9
    scaler = RewardScaler(3, gamma)
    running, seen = np.zeros(3), [0.0]
    for _ in range(3):
        ended = rng.random((3, 20)) < 0.2
        mask = np.ones_like(ended)
        mask[:, 1:] = ~ended[:, :-1]
        ended &= mask
        rewards = rng.normal(size=(3, 20)).astype(np.float32) * mask
        got = scaler.scale(rewards, ended, mask)
        for t in range(20):
            for i in range(3):
                if mask[i, t]:
                    running[i] = gamma * running[i] + rewards[i, t]
                    seen.append(running[i])
                    running[i] *= not ended[i, t]
        expected = np.clip(rewards / np.sqrt(np.var(seen[1:]) + 1e-8), -10, 10)
        assert np.allclose(got, expected, rtol=1e-3)
        assert got.dtype == np.float32
    assert np.abs(scaler.scale(np.full((3, 20), 1e9, np.float32) * [[1], [0], [0]], ended, mask)).max() <= 10


def test_reported_returns_are_unscaled() -> None:
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_steps=40, normalize_reward=True, env_kwargs={"length": 4})
    rollout = adapter.collect()
    assert rollout.metrics["episode/return"] == 4.0
    assert rollout.metrics["episode/length"] == 4.0
    assert not torch.allclose(rollout.rewards[rollout.mask], torch.ones(1))
    assert adapter.score(2, 1, True) == [4.0, 4.0]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("fault", "what"),
    [({"nan_obs_at": 5}, "observation"), ({"nan_reward_at": 5}, "reward"), ({"nan_obs_at": 0}, "observation")],
)
def test_nan_from_environment_names_quantity_and_step(vectorization: str, fault: dict[str, int], what: str) -> None:
    adapter = make_adapter(
        "tests.gym_envs:Counter-v0", vectorization=vectorization, env_kwargs={"length": 100, **fault}
    )
    step = max(fault.values())
    with pytest.raises(
        FloatingPointError, match=rf"Counter-v0: environment 0 returned a non-finite {what} at step {step} of"
    ):
        adapter.collect()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environment_exception_names_the_environment(vectorization: str) -> None:
    adapter = make_adapter(
        "tests.gym_envs:Counter-v0", vectorization=vectorization, env_kwargs={"length": 99, "raises_at": 9}
    )
    adapter.collect()
    with pytest.raises(
        ForeignCodeError,
        match=r"Counter-v0: step\(\) at step 2 of the rollout \(after 14 .*\): ZeroDivisionError: the world broke, in ",
    ):
        adapter.collect()


@pytest.mark.parametrize("obs", ["text", "frame", "empty", "sequence"])
def test_unsupported_observation_space_is_a_one_line_error(obs: str) -> None:
    with pytest.raises(UsageError, match=r"Spaces-v0: expected an? .*observation .*, got .*; add a wrapper") as caught:
        check(make_config("tests.gym_envs:Spaces-v0", gym={"env_kwargs": {"obs": obs}}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", ["tuple", "text", "integers", "sequence"])
def test_unsupported_action_space_is_a_one_line_error(action: str) -> None:
    with pytest.raises(
        UsageError, match=r"Spaces-v0: expected a Discrete, .* action space, got .*; add a wrapper"
    ) as caught:
        check(make_config("tests.gym_envs:Spaces-v0", gym={"env_kwargs": {"action": action}}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_vector_env_with_other_autoreset_is_not_used(mode: str) -> None:
    kwargs = {"mode": mode}
    with pytest.raises(
        UsageError, match=rf"AutoresetMode\.{mode}.*instead of NEXT_STEP; set gym.vectorization to sync or asyn"
    ):
        make_adapter("tests.gym_envs:OwnCounter-v0", vectorization="vector_entry_point", env_kwargs=kwargs)
    with pytest.raises(UsageError, match="instead of NEXT_STEP"):
        make_adapter("tests.gym_envs:OnlyVector-v0", env_kwargs=kwargs)


def test_scoring_uses_fresh_individually_seeded_episodes() -> None:
    """The first episodes are the same for any number of episodes."""
    adapter = make_adapter("CartPole-v1", vectorization="sync")
    many = adapter.score(20, 3, False)
    assert len(many) == 20
    greedy = adapter.score(20, 3, True)
    assert adapter.score(5, 3, True) == greedy[:5]
    assert adapter.score(5, 4, True) != greedy[:5]
    assert len(set(many)) > 5


def test_rollout_continues_where_the_last_one_ended() -> None:
    """Several short rollouts contain the same steps as a single long one."""
    whole = make_adapter("tests.gym_envs:Counter-v0", num_steps=20, env_kwargs={"length": 6}).collect()
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_steps=4, env_kwargs={"length": 6})
    parts = [adapter.collect() for _ in range(5)]
    assert torch.equal(torch.cat([obs_of(part) for part in parts], 1), obs_of(whole))
    for name in ("mask", "continues", "rewards"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name))


def test_episode_statistics_span_rollouts() -> None:
    adapter = make_adapter("tests.gym_envs:Counter-v0", num_envs=2, num_steps=4, env_kwargs={"length": 6})
    reported = [adapter.collect().metrics.get("episode/length") for _ in range(3)]
    assert reported == [None, 6.0, 6.0]
    assert adapter.steps_taken == 2 * (12 - 1)
