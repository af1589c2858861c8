"""Gymnasium environments that report numbers in their infos, have a method `action_masks`, or need their own number."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv


class Goal(gym.Env[Any, Any]):
    """Each episode has 2 steps. In the environments with an even seed, every second episode is successful.

    The key `success` of the info is 0 before the last step. `cost` is the integer 2 after a success, otherwise 0.5.
    """

    def __init__(
        self, key: str = "is_success", ends: str = "terminated", reports: bool = True, partial: bool = False
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.key, self.ends, self.reports, self.partial = key, ends, reports, partial
        self.number = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.offset = seed % 2
        self.number, self.taken = self.number + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        over = self.taken == 2
        won = over and (self.number + self.offset) % 2 == 0
        info: dict[str, Any] = {"cost": 2 if won else 0.5, "terms": {"energy": 3 * self.taken}, "path": np.zeros(3)}
        success: Any = (1 if won else 0.5) if self.partial else won
        info |= {self.key: success} if self.reports else {}
        return (
            np.zeros(1, np.float32),
            1.0,
            over and self.ends == "terminated",
            over and self.ends != "terminated",
            info,
        )


class GoalVector(VectorEnv[Any, Any, Any]):
    """Environment i has episodes of i + 1 steps, and its success is i % 2. Its infos have no masks."""

    def __init__(self, num_envs: int = 1, **_: Any) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.taken, self.over = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.taken = np.where(self.over, 0, self.taken + 1)
        numbers, rewards = np.arange(self.num_envs), (~self.over).astype(float)
        self.over = self.taken == numbers + 1
        info = {"is_success": numbers % 2 == 1, "terms": {"energy": 10.0 * numbers}}
        return np.zeros((self.num_envs, 1), np.float32), rewards, self.over, np.zeros(self.num_envs, dtype=bool), info


class Doors(gym.Env[Any, Any]):
    """One door per action component is locked: a forbidden action raises an error. `action_masks` returns the mask.

    `kind` is the type of the mask: a flat array, a list of booleans, or a list with one array per component. At the end
    of an episode, `action_masks` raises an error.
    """

    def __init__(self, kind: str = "array", info_mask: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 3.0, (2,), np.float32)
        self.action_space = spaces.MultiDiscrete([3, 2]) if kind != "discrete" else spaces.Discrete(3)
        self.kind, self.info_mask = kind, info_mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen = np.atleast_1d(action)
        if any(chosen == self.locked[: len(chosen)]):
            raise ValueError(f"door {action} is locked")
        self.taken += 1
        obs, info = self._show()
        return obs, 1.0, self.taken == 3, False, info

    def _show(self) -> tuple[Any, dict[str, Any]]:
        self.locked = np.array([self.np_random.integers(3), self.np_random.integers(2)])
        return self.locked.astype(np.float32), {"action_mask": self._flat_mask()} if self.info_mask else {}

    def _flat_mask(self) -> Any:
        parts = [np.arange(3) != self.locked[0], np.arange(2) != self.locked[1]]
        return parts[0] if self.kind == "discrete" else np.concatenate(parts)

    def action_masks(self) -> Any:
        if self.taken == 3:
            raise RuntimeError("the game is over")
        if self.info_mask:
            raise RuntimeError("the info has the mask")
        if self.kind == "none" and self.taken:
            return None
        flat = self._flat_mask()
        if self.kind == "parts":
            return [flat[:3], flat[3:]]
        return flat.tolist() if self.kind == "list" else flat


class Steering(Goal):
    """Has continuous actions, and inherits a method `action_masks` that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action_masks(self) -> Any:
        raise RuntimeError("the actions are continuous")


class Forwards(Goal):
    """Forwards unknown attributes to an object that has every method."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_: None


class Passes(gym.Wrapper[Any, Any, Any, Any]):
    """Adds nothing to an environment. The environment's own methods are reached through it."""


class Simulator(gym.Env[Any, Any]):
    """Appends the arguments of each created instance to the file `log`. The observation is the port."""

    def __init__(self, port: Any = 0, log: str = "", server: Any = None) -> None:
        self.observation_space = spaces.Box(-1e6, 1e6, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.port, self.server = port, server
        if log:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{port!r}\n")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return np.array([float(self.port)], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return np.array([float(self.port)], np.float32), 1.0, self.taken == 2, False, {}


class Poles(gym.Env[Any, Any]):
    """Has the observation space of CartPole, but 3 choices or 2 numbers as actions."""

    def __init__(self, numbers: bool = False) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if numbers else spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(4, np.float32), 1.0, False, False, {}


gym.register("Poles-v0", "tests.gym_info:Poles", disable_env_checker=True)
gym.register("Goal-v0", "tests.gym_info:Goal", disable_env_checker=True)
gym.register("GoalVector-v0", vector_entry_point="tests.gym_info:GoalVector")
gym.register("Steering-v0", "tests.gym_info:Steering", disable_env_checker=True)
gym.register("Forwards-v0", "tests.gym_info:Forwards", disable_env_checker=True)
gym.register("Doors-v0", "tests.gym_info:Doors", disable_env_checker=True)
gym.register("Simulator-v0", "tests.gym_info:Simulator", disable_env_checker=True)
gym.register(
    "Simulators-v0",
    "tests.gym_info:Simulator",
    vector_entry_point="tests.gym_info:GoalVector",
    disable_env_checker=True,
)
