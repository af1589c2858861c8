"""Tiny Gymnasium environments with different render modes, registered as `tests.pictures:Id`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 12  # steps of an episode


class Dot(gym.Env[Any, Any]):
    """Shows a white dot that moves one column per step through a black 16 x 12 picture. The reward is 1 per step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 - declared by Gymnasium

    def __init__(self, render_mode: str | None = None, breaks_at: int = -1, says: str = "") -> None:
        """Create an environment whose `render` raises at step `breaks_at` and whose `step` prints `says`."""
        self.observation_space, self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(2)
        self.render_mode, self.breaks_at, self.says = render_mode, breaks_at, says

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        if self.says:
            print(self.says)
        return np.full(1, self.taken / LENGTH, np.float32), 1.0, self.taken == LENGTH, False, {}

    def render(self) -> Any:
        if self.taken == self.breaks_at:
            raise ZeroDivisionError("the brush broke")
        picture = np.zeros((12, 16, 3), np.uint8)
        picture[4:8, self.taken : self.taken + 4] = 255
        return picture


class Words(Dot):
    """Renders as text with a color and a bell, which must not reach the terminal."""

    metadata = {"render_modes": ["ansi"], "render_fps": 25}  # noqa: RUF012 - declared by Gymnasium

    def render(self) -> Any:
        return "\n" + "  \x1b[41mS\x1b[0m\x07" + "." * self.taken + "\n|  |\n"


class Unseen(Dot):
    """Has no render mode."""

    metadata = {"render_modes": []}  # noqa: RUF012 - declared by Gymnasium


class Odd(Dot):
    """Renders an array that is not a picture."""

    def render(self) -> Any:
        return np.zeros((4, 4, 7))


gym.register("Dot-v0", "tests.pictures:Dot", disable_env_checker=True)
gym.register("Words-v0", "tests.pictures:Words", disable_env_checker=True)
gym.register("Unseen-v0", "tests.pictures:Unseen", disable_env_checker=True)
gym.register("Odd-v0", "tests.pictures:Odd", disable_env_checker=True)
