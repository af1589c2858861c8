"""Environments with images in their observations; `tests.pixel_envs:Scene` also works in other processes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn


class Scene(gym.Env[Any, Any]):
    """The right action depends on an image, a number and a flag in a nested observation. An episode has 4 steps.

    If the number is above 1/3, action 2 is right. Otherwise, action 1 is right if either the right half of the image is
    brighter or the flag is 1, but not both, and action 0 is right in the other cases. The reward of the right action is
    1.
    """

    def __init__(self) -> None:
        state = spaces.Tuple((spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Discrete(2, start=1)))
        self.observation_space = spaces.Dict({"camera": spaces.Box(0, 255, (36, 40, 3), np.uint8), "state": state})
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        reward = float(action == self.right)
        return self._show(), reward, self.taken == 4, False, {}

    def _show(self) -> dict[str, Any]:
        side, flag = self.np_random.integers(2, size=2).tolist()
        number = self.np_random.uniform(-1, 1)
        self.right = 2 if number > 1 / 3 else side ^ flag
        camera = self.np_random.integers(100, size=(36, 40, 3), dtype=np.uint8)
        camera[:, 20 * side : 20 * side + 20] += 100
        return {"camera": camera, "state": (np.array([number], np.float32), np.int64(flag + 1))}


class Lives(gym.Env[Any, Any]):
    """A game of three lives of two steps each; the reward of a step is 5. It starts only after the action FIRE (1)."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.lives, self.age, self.runs = 3, 0, False
        return np.zeros(1, np.float32), {"lives": 3}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 5.0 * self.runs
        if self.runs:
            self.age += 1
        self.runs = self.runs or action == 1
        if self.age == 2:
            self.lives, self.age, self.runs = self.lives - 1, 0, False
        return np.zeros(1, np.float32), reward, self.lives == 0, False, {"lives": self.lives}


class LostStart(gym.Wrapper[Any, Any, Any, Any]):
    """The game ends at the first step after the first reset."""

    ends = True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        ended, self.ends = self.ends, False
        return obs, reward, terminated or ended, truncated, info


class Means(nn.Module):
    """An encoder of images whose features are the mean brightness of the left and the right half."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.middle = space.shape[1] // 2
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().mean(3).mean(1) * self.scale
        return torch.stack((x[:, : self.middle].mean(1), x[:, self.middle :].mean(1)), 1)


class Noisy(nn.Module):
    """An encoder of images whose layers behave differently in training mode."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images.float() / 255)
        return features


class Shapeless(nn.Module):
    def __init__(self, space: spaces.Box) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.float()


gym.register("Scene-v0", "tests.pixel_envs:Scene", disable_env_checker=True)
gym.register("Lives-v0", "tests.pixel_envs:Lives", disable_env_checker=True)
