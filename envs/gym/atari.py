"""Wrappers for Atari games that Gymnasium does not have, for `gym.wrappers` and `gym.training_wrappers`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

FIRE = 1  # the action's number in all games that have it


def count_lives(info: dict[str, Any]) -> int:
    """Return the number of lives left, which ale-py reports in the info of every step."""
    return int(info.get("lives", 0))


class LifeLoss(gym.Wrapper[Any, Any, Any, Any]):
    """Ends the episode when a life is lost, so that losing a life forfeits all later reward. A new game follows."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self.lives = count_lives(info)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        lost, self.lives = count_lives(info) < self.lives, count_lives(info)
        return obs, reward, terminated or lost, truncated, info


class FireStart(gym.Wrapper[Any, Any, Any, Any]):
    """Takes the action FIRE at the start of a game and after the loss of a life, because some games wait for it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        meanings: list[str] = getattr(env.unwrapped, "get_action_meanings", list)()
        if meanings[FIRE : FIRE + 1] != ["FIRE"]:
            raise ValueError(
                f"expected a game whose action {FIRE} is FIRE, got the actions {meanings}; remove FireStart"
            )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(**kwargs)
        obs, _, terminated, truncated, fired = self.env.step(FIRE)
        info = {**info, **fired}
        if terminated or truncated:
            obs, info = self.env.reset(**{**kwargs, "seed": None})
        self.lives = count_lives(info)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if count_lives(info) < self.lives and not terminated and not truncated:
            obs, added, terminated, truncated, info = self.env.step(FIRE)
            reward = float(reward) + float(added)
        self.lives = count_lives(info)
        return obs, reward, terminated, truncated, info
