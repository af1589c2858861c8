"""Small tasks with image observations, which a CPU solves in minutes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

CELL = 4  # pixels per side
CELLS = 10  # per side of the image


class Catch(gym.Env[np.ndarray, np.int64]):
    """A ball falls from the top of the image; a paddle at the bottom must be below it in the end.

    The observation is a grey image of 40 x 40 pixels. The actions are left, stay and right. The ball and the paddle
    start in random columns, and an episode has 9 steps. The reward at its end is 1 if the paddle catches the ball, and
    -1 otherwise. A policy that does not look at the image has a mean return of at most -0.4, because the paddle covers
    three of ten columns, and the ball falls in each of them with the same probability.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  # as gymnasium.Env declares it

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 255, (CELLS * CELL, CELLS * CELL), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.row, self.column = 0, int(self.np_random.integers(CELLS))
        self.paddle = int(self.np_random.integers(1, CELLS - 1))  # its middle
        return self._draw(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = min(max(self.paddle + int(action) - 1, 1), CELLS - 2)
        self.row += 1
        ended = self.row == CELLS - 1
        reward = (1.0 if abs(self.paddle - self.column) <= 1 else -1.0) if ended else 0.0
        return self._draw(), reward, ended, False, {}

    def render(self) -> np.ndarray:
        return np.repeat(self._draw()[..., None], 3, axis=2)

    def _draw(self) -> np.ndarray:
        cells = np.zeros((CELLS, CELLS), np.uint8)
        cells[-1, self.paddle - 1 : self.paddle + 2] = 128
        cells[self.row, self.column] = 255
        return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
