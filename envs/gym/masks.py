"""Wrappers that move action masks to the info of an environment's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from envs.gym.errors import DescribedError
from envs.gym.spaces import MASK_KEY, without_mask

MASK_METHOD = "action_masks"  # method of an environment or a wrapper that returns the action mask


class MaskToInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the action mask from a Dict observation to the info, where Gymnasium's own environments return it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = without_mask(env.observation_space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self._move(*self.env.reset(**kwargs))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._move(obs, info)
        return obs, reward, terminated, truncated, info

    @staticmethod
    def _move(obs: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return {key: x for key, x in obs.items() if key != MASK_KEY}, {**info, MASK_KEY: obs[MASK_KEY]}


class MaskFromMethod(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to the info the mask that the environment's method `action_masks` returns, unless the info has a mask.

    The method is the convention of sb3-contrib. It is not called after the end of an episode, as in sb3-contrib.
    """

    def __init__(self, env: gym.Env[Any, Any], method: Callable[[], Any]) -> None:
        super().__init__(env)
        self.method = method

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return obs, info if MASK_KEY in info else {**info, MASK_KEY: self._read_mask()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if MASK_KEY not in info and not terminated and not truncated:
            info = {**info, MASK_KEY: self._read_mask()}
        return obs, reward, terminated, truncated, info

    def _read_mask(self) -> Any:
        mask = self.method()
        if mask is None:  # a vector environment would convert it to False
            raise DescribedError(f"{MASK_METHOD}(): expected an action mask, got None")
        return mask
