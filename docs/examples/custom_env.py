"""Train PPO on your own environment, export the policy, and use it without ppo_unified.

Run the script with `python custom_env.py`. To train the same policy from the command line, run this command in this
folder: ppo-unified train custom_env:Thermostat-v0 --total-steps 20000 --optim.lr 1e-3
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from ppo_unified import load_preset, run

STEPS = 20_000


class Thermostat(gym.Env[np.ndarray, int]):
    """Keep a room at 20 degrees.

    Observation: the difference between the room's temperature and 20 degrees, and the temperature outside, both divided
    by 10. Actions: heater off, low or high.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)  # seeds self.np_random, from which all random numbers must be drawn
        self.outside = self.np_random.uniform(-10, 10)
        self.room = self.np_random.uniform(10, 30)
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.room += 0.1 * (self.outside - self.room) + 2.0 * action
        return self._observe(), -abs(self.room - 20) / 10, False, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([(self.room - 20) / 10, self.outside / 10], np.float32)


if "Thermostat-v0" not in gym.registry:  # Python may load this file twice: as a script and as the module custom_env
    gym.register("Thermostat-v0", entry_point=Thermostat, max_episode_steps=100)


def main() -> None:
    """Train for a few seconds, export the policy, and run one episode with it."""
    result = run(load_preset("custom_env:Thermostat-v0", total_steps=STEPS, optim={"lr": 1e-3}))
    print(f"score {result.score:.2f}")
    subprocess.run([sys.executable, "-m", "ppo_unified", "export", str(result.path), "--to", "policy"], check=True)

    policy = torch.export.load("policy/policy.pt2").module()  # needs torch only
    env = gym.make("Thermostat-v0")
    obs, _ = env.reset(seed=0)
    total, ended = 0.0, False
    while not ended:
        action = policy(torch.from_numpy(obs)[None])[0].item()
        obs, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    print(f"return of the exported policy: {total:.2f}")


if __name__ == "__main__":
    main()
