"""Train PPO with your own network, watch every iteration in Python, and stop the run yourself.

Run the script with `python custom_network.py`. To train the same policy from the command line, run this command in this
folder: ppo-unified train cartpole --policy.encoders '{"obs": "custom_network.py:Waves"}' --policy.hidden 32
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_unified import load_preset, run

ENOUGH = 100.0  # mean return of the last 100 training episodes


class Waves(nn.Module):
    """Maps observations [n, size] to their sines and cosines at learned frequencies, [n, 2 x waves]."""

    def __init__(self, space: spaces.Box, waves: int = 32) -> None:
        super().__init__()
        self.frequencies = nn.Linear(space.shape[0], waves)

    def forward(self, obs: Tensor) -> Tensor:
        angles = self.frequencies(obs)
        return torch.cat((angles.sin(), angles.cos()), dim=1)


def on_iteration(steps: int, metrics: dict[str, float]) -> bool:
    """Print the return of the last training episodes, and stop the run once it is high enough."""
    mean = metrics.get("episode/return", 0.0)
    print(f"{steps:6,} steps: mean return {mean:.1f}, KL {metrics['policy/kl']:.4f}")
    return mean >= ENOUGH


def main() -> None:
    """Train until the returns are high enough. `ppo-unified resume latest` continues this run."""
    policy: dict[str, Any] = {"encoders": {"obs": "custom_network.py:Waves"}, "hidden": [32]}
    result = run(load_preset("cartpole", policy=policy), on_iteration=on_iteration)
    print(f"{result.reason}; folder: {result.path}")


if __name__ == "__main__":
    main()
