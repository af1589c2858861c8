"""Small Gymnasium environments with unusual spaces; the ids `tests.space_envs:Id` also work in other processes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from tests.gym_envs import CounterVector


def make_wide_counters(num_envs: int = 1, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Return a vector version of Counter with other spaces than a single Counter."""
    envs = CounterVector(num_envs, **kwargs)
    envs.single_action_space = spaces.Discrete(3)
    return envs


def make_strict_counters(num_envs: int = 1, length: int = 3) -> VectorEnv[Any, Any, Any]:
    """Return a vector version of Counter that does not accept all arguments of a single Counter."""
    return CounterVector(num_envs, length)


class Throttle(gym.Env[Any, Any]):
    """The reward is -|action - target| / 1000. The observation is constant, and an episode has 4 steps."""

    def __init__(self, low: float = -2000.0, high: float = 2000.0, target: float = 1500.0) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self.target = target

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken += 1
        return np.ones(1, np.float32), -abs(float(action[0]) - self.target) / 1000, self.taken == 4, False, {}


SPACES: dict[str, spaces.Space[Any]] = {
    "5 choices": spaces.Discrete(5),
    "2 and 3 choices": spaces.MultiDiscrete([2, 3]),
    "3 and 2 choices": spaces.MultiDiscrete([3, 2]),
    "5 bits": spaces.MultiBinary(5),
    "5 numbers": spaces.Box(-1.0, 1.0, (5,), np.float32),
    "5 by 1 numbers": spaces.Box(-2.0, 2.0, (5, 1), np.float32),
    "2 numbers and 3 choices": spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,), np.float32), b=spaces.Discrete(3)),
    "3 numbers and 2 numbers": spaces.Tuple([spaces.Box(-1.0, 1.0, (n,), np.float32) for n in (3, 2)]),
    "10 choices": spaces.Discrete(10),
}


class Panel(gym.Env[Any, Any]):
    """Has observations and actions from SPACES. Observations and rewards are random, and an episode has 2 steps."""

    def __init__(self, observations: str = "5 numbers", actions: str = "5 choices") -> None:
        self.observation_space, self.action_space = SPACES[observations], SPACES[actions]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.taken = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return self.observation_space.sample(), self.np_random.normal(), self.taken == 2, False, {}


class Levers(gym.Env[Any, Any]):
    """Has an action with a bounded, a half-bounded, an unbounded and a practically unbounded component.

    The observation is the last action.
    """

    def __init__(self) -> None:
        largest = np.finfo(np.float32).max
        low, high = np.array([0, 0, -np.inf, -largest]), np.array([512, np.inf, np.inf, largest])
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = self.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return action, 0.0, False, False, {}


class Offset(gym.Env[Any, Any]):
    """The observation is a large number plus or minus 1. The reward is 1 if the action matches the sign.

    An episode has 8 steps, so a random policy has a return of 4.
    """

    def __init__(self, dtype: str = "float64", offset: float = 1e8) -> None:
        if np.issubdtype(dtype, np.floating):
            self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.dtype(dtype))
        else:
            self.observation_space = spaces.Box(0, 2 * int(offset), (1,), np.dtype(dtype))
        self.action_space = spaces.Discrete(2)
        self.offset = offset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        reward = float(action == self.sign)
        return self._show(), reward, self.taken == 8, False, {}

    def _show(self) -> Any:
        self.sign = int(self.np_random.integers(2))
        return np.array([self.offset + 2 * self.sign - 1], self.observation_space.dtype)


class Nested(gym.Env[Any, Any]):
    """Has a nested observation with an action mask at the top level. The mask forbids action 1; episodes never end."""

    def __init__(self) -> None:
        bag = spaces.Dict({"gold": spaces.Box(0, 9, (1,), np.int64), "keys": spaces.MultiBinary(2)})
        pose = spaces.Tuple((spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3, start=1)))
        self.observation_space = spaces.Dict({"bag": bag, "pose": pose, "action_mask": spaces.MultiBinary(3)})
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action != 1
        self.taken += 1
        return self._show(), 0.0, False, False, {}

    def _show(self) -> dict[str, Any]:
        bag = {"gold": np.array([self.taken % 10]), "keys": np.array([0, 1], np.int8)}
        pose = (np.array([0.25, -0.5], np.float32), np.int64(2))
        return {"bag": bag, "pose": pose, "action_mask": np.array([1, 0, 1], np.int8)}


class Unsupported(gym.Env[Any, Any]):
    """Has an observation with an unsupported part; it is never stepped."""

    def __init__(self, kind: str) -> None:
        number = spaces.Discrete(2)
        part: spaces.Space[Any] = {
            "text": spaces.Text(5),
            "sequence": spaces.Sequence(number),
            "graph": spaces.Graph(number, None),
            "oneof": spaces.OneOf((number, spaces.Discrete(3))),
        }[kind]
        self.observation_space = spaces.Dict({"a": number, "b": spaces.Tuple((number, part))})
        self.action_space = number


class LimitOf30(gym.wrappers.TimeLimit):
    """A time limit as a wrapper without arguments."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env, 30)


COUNTER, COUNTERS = "tests.gym_envs:Counter", "tests.space_envs:make_wide_counters"
STRICT = "tests.space_envs:make_strict_counters"
gym.register("Panel-v0", "tests.space_envs:Panel", disable_env_checker=True)
gym.register("TwoBuilds-v0", COUNTER, vector_entry_point=COUNTERS, disable_env_checker=True)
gym.register("Strict-v0", COUNTER, vector_entry_point=STRICT, disable_env_checker=True)
for name in ("Throttle", "Levers", "Offset", "Nested", "Unsupported"):
    gym.register(f"{name}-v0", f"tests.space_envs:{name}", disable_env_checker=True)
