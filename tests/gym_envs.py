"""Small Gymnasium environments with known rewards; the ids `tests.gym_envs:Id` also work in other processes."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.gym.masks import MaskToInfo


class Counter(gym.Env[Any, Any]):
    """The observation is the number of steps in the episode (or always 1), the reward is 1 per step.

    The episode ends after `length` steps. Step k, counted from 1 since the creation of the environment, can return a
    NaN observation or reward or raise an exception; k = 0 is the first reset.
    """

    def __init__(
        self,
        length: int = 3,
        ends: str = "terminated",
        blind: bool = False,
        nan_obs_at: int = -1,
        nan_reward_at: int = -1,
        raises_at: int = -1,
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1000.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.ends, self.blind = length, ends, blind
        self.nan_obs_at, self.nan_reward_at, self.raises_at = nan_obs_at, nan_reward_at, raises_at
        self.life = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.life, self.taken = self.life + 1, self.taken + 1
        if self.life == self.raises_at:
            raise ZeroDivisionError("the world broke")
        over = self.taken == self.length
        reward = float("nan") if self.life == self.nan_reward_at else 1.0
        return self._show(), reward, over and self.ends == "terminated", over and self.ends == "truncated", {}

    def _show(self) -> Any:
        x = 1.0 if self.blind else float(self.taken)
        return np.array([float("nan") if self.life == self.nan_obs_at else x], np.float32)


class CounterVector(VectorEnv[Any, Any, Any]):
    """Counters as a custom vector environment, which returns the same arrays at every step."""

    def __init__(
        self, num_envs: int = 1, length: int = 3, ends: str = "terminated", mode: str = "NEXT_STEP", **_: Any
    ) -> None:
        self.num_envs, self.length, self.ends = num_envs, length, ends
        self.shown, self.paid, self.over = (
            np.zeros((num_envs, 1), np.float32),
            np.zeros(num_envs),
            np.zeros(num_envs) > 0,
        )
        self.metadata = {"autoreset_mode": AutoresetMode[mode]}
        self.single_observation_space = spaces.Box(-1.0, 1000.0, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.taken = np.zeros(self.num_envs)
        self.shown[:] = 0
        return self.shown, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        resets = self.taken == self.length
        self.taken = np.where(resets, 0, self.taken + 1)
        self.shown[:, 0], self.paid[:], self.over[:] = self.taken, ~resets, self.taken == self.length
        none = np.zeros(self.num_envs, dtype=bool)
        ends = (self.over, none) if self.ends == "terminated" else (none, self.over)
        return self.shown, self.paid, *ends, {}


class CounterVectorThatKeeps(CounterVector):
    """Counters whose state can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.taken = np.array(state["taken"])
        self.shown[:, 0] = self.taken
        return self.shown, {}


class Locks(gym.Env[Any, Any]):
    """Two dials: the observation contains the correct setting of each, and a mask forbids one setting of the first.

    The observation is a Dict that includes the mask; the action is MultiDiscrete with custom starts. Forbidden settings
    raise an error. At the end of an episode, the mask forbids all actions, as in many games. The reward is 0.5 for
    each correct dial: the best return of the 4-step episode is 4, and a random policy gets 2.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "right": spaces.MultiDiscrete([3, 2]),
                "time": spaces.Box(0.0, 1.0, (1,), np.float32),
                "action_mask": spaces.MultiBinary(5),
            }
        )
        self.action_space = spaces.MultiDiscrete([3, 2], start=[1, -1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        turned = np.asarray(action) - [1, -1]
        if turned[0] == self.forbidden:
            raise ValueError(f"setting {turned[0]} is forbidden now")
        reward = 0.5 * float((turned == self.right).sum())
        self.taken += 1
        return self._show(), reward, self.taken == 4, False, {}

    def _show(self) -> dict[str, Any]:
        self.right = np.array([self.np_random.integers(3), self.np_random.integers(2)])
        self.forbidden = (self.right[0] + 1 + self.np_random.integers(2)) % 3
        mask = np.ones(5, np.int8)
        mask[self.forbidden] = 0
        if self.taken == 4:
            mask[:] = 0
        return {"right": self.right, "time": np.array([self.taken / 4], np.float32), "action_mask": mask}


def make_locks_vector(num_envs: int = 1, **_: Any) -> VectorEnv[Any, Any, Any]:
    """Return Locks as a vector environment with flat observations and the mask in the info."""

    def make_one() -> gym.Env[Any, Any]:
        return gym.wrappers.FlattenObservation(MaskToInfo(Locks()))

    return gym.vector.SyncVectorEnv([make_one] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


class Echo(gym.Env[Any, Any]):
    """Accepts actions of several spaces; the reward is their sum, which identifies the action."""

    def __init__(self, space: str = "box", length: int = 5) -> None:
        self.observation_space = spaces.Discrete(length + 1, start=-2)
        self.action_space: spaces.Space[Any] = {
            "box": spaces.Box(np.array([-0.25, -0.5], np.float32), np.array([0.5, 0.25], np.float32)),
            "started": spaces.Discrete(3, start=5),
            "multi": spaces.MultiDiscrete([2, 3, 4], start=[10, 20, 30]),
            "grid": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
            "bits": spaces.MultiBinary(3),
        }[space]
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return -2, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken += 1
        return self.taken - 2, float(np.sum(action)), self.taken == self.length, False, {}


class Spaces(gym.Env[Any, Any]):
    """Has the spaces with the given names; it is never stepped."""

    def __init__(self, obs: str = "box", action: str = "discrete") -> None:
        known: dict[str, spaces.Space[Any]] = {
            "box": spaces.Box(0.0, 1.0, (2,), np.float32),
            "discrete": spaces.Discrete(2),
            "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
            "text": spaces.Text(5),
            "nested": spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}),
            "frame": spaces.Box(0.0, 1.0, (210, 160, 3), np.float32),
            "empty": spaces.Box(0.0, 1.0, (0,), np.float32),
            "integers": spaces.Box(0, 5, (2,), np.int64),
            "sequence": spaces.Sequence(spaces.Discrete(2)),
        }
        self.observation_space, self.action_space = known[obs], known[action]


class ForgetsItsMask(gym.Env[Any, Any]):
    """Returns the action mask only in the info of `step` (or only in that of `reset`)."""

    def __init__(self, tells: str = "step") -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.tells, self.mask = tells, np.array([1, 0, 1], np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return np.zeros(1, np.float32), {"action_mask": self.mask} if self.tells == "reset" else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        info = {"action_mask": self.mask} if self.tells == "step" else {}
        return np.zeros(1, np.float32), 0.0, self.taken == 3, False, info


class Unrepeatable(Counter):
    """A Counter whose initial state depends on the operating system's random numbers or on earlier episodes."""

    def __init__(self, by: str = "system") -> None:
        super().__init__(length=9)
        self.by, self.episodes = by, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes += 1
        self.start = int.from_bytes(os.urandom(1)) if self.by == "system" else self.episodes
        return self._show() + np.float32(self.start), {}


class Wanders(Counter):
    """A Counter whose observation also depends on random numbers of the operating system, from the third step on."""

    def __init__(self) -> None:
        super().__init__(length=9)

    def _show(self) -> Any:
        return super()._show() + np.float32(int.from_bytes(os.urandom(2)) if self.taken > 2 else 0)


class Weighted(gym.RewardWrapper[Any, Any]):
    """Multiplies the reward by each weight and returns the sum. As in many libraries, a list is not accepted."""

    def __init__(self, env: gym.Env[Any, Any], weight: np.ndarray) -> None:
        super().__init__(env)
        self.weight = weight

    def reward(self, reward: Any) -> float:
        return float(sum(reward * x for x in self.weight))


class OwnNormalization(gym.wrappers.NormalizeObservation[Any, Any, Any]):
    """A subclass of a wrapper whose statistics do not reach evaluations."""


class AddsEarlierSteps(gym.RewardWrapper[Any, Any]):
    """Adds the number of all earlier steps, also of earlier episodes, to the reward."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.steps = 0

    def reward(self, reward: Any) -> float:
        self.steps += 1
        return float(reward) + self.steps


COUNTER, COUNTERS = "tests.gym_envs:Counter", "tests.gym_envs:CounterVector"
gym.register("Counter-v0", COUNTER, disable_env_checker=True)
gym.register("TimedCounter-v0", COUNTER, kwargs={"length": 99}, max_episode_steps=3, disable_env_checker=True)
gym.register("OwnCounter-v0", COUNTER, vector_entry_point=COUNTERS, disable_env_checker=True)
gym.register("KeepsCounters-v0", vector_entry_point="tests.gym_envs:CounterVectorThatKeeps")
gym.register(
    "OwnKeptCounter-v0",
    COUNTER,
    vector_entry_point="tests.gym_envs:CounterVectorThatKeeps",
    disable_env_checker=True,
)
gym.register("OnlyVector-v0", vector_entry_point=COUNTERS)
gym.register("Locks-v0", "tests.gym_envs:Locks", disable_env_checker=True)
gym.register("LocksSideBySide-v0", vector_entry_point="tests.gym_envs:make_locks_vector")
gym.register("Echo-v0", "tests.gym_envs:Echo", disable_env_checker=True)
gym.register("Spaces-v0", "tests.gym_envs:Spaces", disable_env_checker=True)
gym.register("ForgetsItsMask-v0", "tests.gym_envs:ForgetsItsMask", disable_env_checker=True)
gym.register("Unrepeatable-v0", "tests.gym_envs:Unrepeatable", disable_env_checker=True)
gym.register("Wanders-v0", "tests.gym_envs:Wanders", disable_env_checker=True)
