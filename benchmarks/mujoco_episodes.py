"""Plays greedy evaluation episodes for `mujoco_scores.py`, with the same code for both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np


def play(
    make: Callable[[], gym.Env[Any, Any]], seeds: Sequence[int], act: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """Play one episode for each seed and return the total rewards. `act` maps observations [N, size] to actions."""
    envs = [make() for _ in seeds]
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    returns, alive = [0.0] * len(envs), list(range(len(envs)))
    while alive:
        ended = set()
        for number, action in zip(alive, act(obs[alive]), strict=True):
            obs[number], reward, terminated, truncated, _ = envs[number].step(action)
            returns[number] += float(reward)
            ended |= {number} if terminated or truncated else set()
        alive = [number for number in alive if number not in ended]
    for env in envs:
        env.close()
    return returns
