"""Train CartPole with stable-baselines3 and the hyper-parameters of the RL Zoo, for `classic_speed.py`.

    python benchmarks/classic_peer.py zoo|start SEED STEPS THREADS

`zoo` trains for STEPS steps. `start` also plays 100 greedy episodes every 2,000 steps, and ends when their mean reaches
475 and two more times 100 episodes confirm it. Prints RESULT and a JSON object.
"""

import json
import sys
import time

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

EVERY_STEPS, EPISODES, THRESHOLD = 2000, 100, 475.0


def greedy_mean(model: PPO, seed: int) -> float:
    """Return the mean total reward of greedy episodes, which the environment's own vector version plays."""
    envs = gym.make_vec("CartPole-v1", EPISODES, vectorization_mode="vector_entry_point")
    obs, _ = envs.reset(seed=seed)
    returns, alive = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while alive.any():
        obs, rewards, terminated, truncated, _ = envs.step(model.predict(obs, deterministic=True)[0])
        returns += rewards * alive
        alive &= ~(terminated | truncated)
    return float(returns.mean())


class StopWhenSolved(BaseCallback):  # type: ignore[misc] # stable-baselines3 contains no types here
    """Ends training when the task is solved."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.next = seed, EVERY_STEPS
        self.solved: int | None = None  # step at which the task was solved

    def _on_rollout_end(self) -> None:
        """Evaluate the policy. The rollout's update follows, so this is the policy after the previous update."""
        if self.num_timesteps < self.next:
            return
        self.next += EVERY_STEPS
        means = (greedy_mean(self.model, self.seed + number) for number in (1, 2, 3))
        if all(mean >= THRESHOLD for mean in means):
            self.solved = self.num_timesteps

    def _on_step(self) -> bool:
        return self.solved is None


def main() -> None:
    work, seed, steps, threads = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        seed=seed,
        device="cpu",
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        ent_coef=0.0,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
    )
    stop = StopWhenSolved(seed) if work == "start" else None
    started = time.perf_counter()
    model.learn(steps, callback=stop)
    seconds = time.perf_counter() - started
    result = {"steps": model.num_timesteps, "seconds": seconds, "solved": stop.solved if stop else None}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
