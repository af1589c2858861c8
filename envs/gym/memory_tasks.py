"""Tasks that a policy without memory cannot solve."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

FORWARD, LEFT, RIGHT = range(3)


class TMaze(gym.Env[np.ndarray, Any]):
    """A corridor that ends at a junction (Bakker 2002, "Reinforcement Learning with Long Short-Term Memory").

    The first observation of an episode shows on which side the goal is: its first number is -1 for left and 1 for
    right. In later observations, this number is 0. The second number is 1 at the junction and 0 elsewhere. The agent
    walks `length` steps forward to the junction, where it turns left or right, which ends the episode. The reward is 1
    for the side of the goal, and 0 otherwise. Forward steps at the junction and turns in the corridor have no effect.

    Without memory, no policy has an expected score above 1/2: the observation at the junction is the same for both
    sides, so the policy turns left with probability p and right with probability q, p + q <= 1, wherever the goal is.
    Each side has the goal with probability 1/2. Let a and b be the probabilities that the policy turns at the junction
    before the time limit if the goal is on the left and right. A turn is to the left with the probability p / (p + q),
    so the expected score is (a p + b q) / (2 (p + q)), which is at most 1/2 because a and b are at most 1.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 5}  # noqa: RUF012 # as in Gymnasium
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length: expected an integer >= 1, got {length}")
        self.length, self.render_mode = length, render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal = 0, int(self.np_random.choice((LEFT, RIGHT)))
        return np.array([1.0 if self.goal == RIGHT else -1.0, 0.0], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        turns = self.position == self.length and action != FORWARD
        reward = float(turns and action == self.goal)
        if action == FORWARD:
            self.position = min(self.position + 1, self.length)
        return np.array([0.0, self.position == self.length], np.float32), reward, turns, False, {}

    def render(self) -> str:
        """Return three lines of text: the goal is G, the other side is x, and the agent is A."""
        corridor = "".join("A" if place == self.position else "." for place in range(self.length + 1))
        left, right = ("G", "x") if self.goal == LEFT else ("x", "G")
        return f"{' ' * self.length}{left}\n{corridor}\n{' ' * self.length}{right}"


gym.register("TMaze-v0", entry_point="envs.gym.memory_tasks:TMaze", max_episode_steps=40)
