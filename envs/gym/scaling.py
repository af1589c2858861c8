"""Normalizes observations and scales rewards by their running statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLIP = 10.0  # normalized observations are clipped to +-CLIP
REWARD_CLIP = 10.0  # scaled rewards are clipped to +-REWARD_CLIP


class ObservationScaler(nn.Module):
    """Normalizes observations by their running mean and variance.

    The statistics are buffers, so they are saved with the policy's weights. They have the dtype of the observations,
    and the normalized observations are float32. Each update uses the parallel algorithm of
    Chan et al. (en.wikipedia.org/wiki/Algorithms_for_calculating_variance#Parallel_algorithm).
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=dtype))
        self.register_buffer("variance", torch.ones(size, dtype=dtype))
        # The initial mean of 0 must not count as an observation if the observations can be far from 0.
        count = 0.0 if dtype is torch.float64 else 1e-4
        self.register_buffer("count", torch.tensor(count, dtype=torch.float64))

    def forward(self, obs: Tensor) -> Tensor:
        return normalize(obs, self.mean, self.factor())

    def factor(self) -> Tensor:
        return torch.rsqrt(self.variance + 1e-8)

    def update(self, obs: Tensor) -> None:
        """Update the statistics with observations [B, size]."""
        if not len(obs):
            return
        variance, mean = torch.var_mean(obs, dim=0, correction=0)
        total = self.count + len(obs)
        share = (len(obs) / total).to(mean.dtype)
        delta = mean - self.mean
        self.variance.copy_(self.variance * (1 - share) + variance * share + delta.square() * share * (1 - share))
        self.mean.copy_(self.mean + delta * share)
        self.count.copy_(total)


def normalize(obs: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return ((obs - mean) * factor).clamp(-CLIP, CLIP).float()


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return.

    The method is described in Engstrom et al. 2020 (arXiv:2005.12729).
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.running = np.zeros(num_envs)
        self.count, self.mean, self.m2 = 1e-4, 0.0, 1e-4  # statistics of discounted returns; variance = m2 / count

    def scale(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Update the statistics with the rewards [N, T] of valid steps, then return all rewards scaled and clipped.

        `ended` [N, T] is True at the last step of each episode. `mask` [N, T] is True at valid steps.
        """
        discounted = np.empty_like(rewards, dtype=np.float64)
        for t in range(rewards.shape[1]):
            self.running = self.gamma * self.running + rewards[:, t]
            discounted[:, t] = self.running
            self.running[ended[:, t]] = 0
        seen = discounted[mask]
        delta, total = seen.mean() - self.mean, self.count + seen.size
        self.m2 += seen.var() * seen.size + delta**2 * self.count * seen.size / total
        self.mean += delta * seen.size / total
        self.count = total
        scaled = rewards / np.sqrt(self.m2 / self.count + 1e-8)
        clipped: np.ndarray = np.clip(scaled, -REWARD_CLIP, REWARD_CLIP).astype(np.float32)
        return clipped

    def state_dict(self) -> dict[str, Any]:
        sums = {"count": float(self.count), "mean": float(self.mean), "m2": float(self.m2)}
        return sums | {"running": self.running.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]
        self.running = np.array(state["running"])

    def reset_unfinished(self, num_envs: int) -> None:
        """Discard the unfinished episodes, and start new ones in `num_envs` environments."""
        self.running = np.zeros(num_envs)
