"""Train one MuJoCo task with stable-baselines3 and the options of this project's presets, for `mujoco_scores.py`.

    python benchmarks/mujoco_peer.py ENV_ID SEED STEPS FIRST_EVALUATION_SEED EPISODES

The value loss in stable-baselines3 is the squared error. The value loss here is half the squared error, so the
equivalent of `ppo.value_coef = 0.5` is 0.25. Prints RESULT and a JSON object.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from mujoco_episodes import play
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")


def main() -> None:
    env_id, (seed, steps, first, episodes) = sys.argv[1], map(int, sys.argv[2:6])
    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env(env_id, n_envs=8, seed=seed), gamma=0.99)
    model = PPO(
        "MlpPolicy",
        envs,
        seed=seed,
        device="cpu",
        n_steps=256,
        batch_size=64,
        n_epochs=10,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.25,
        max_grad_norm=0.5,
        learning_rate=LinearSchedule(3e-4, 0.0, 1.0),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(steps)
    result: dict[str, Any] = {
        "train_return": float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }

    def act(obs: np.ndarray) -> np.ndarray:
        actions: np.ndarray = model.predict(envs.normalize_obs(obs), deterministic=True)[0]
        return actions

    returns = play(lambda: gym.make(env_id), range(first, first + episodes), act)
    versions = " ".join(f"{package} {version(package)}" for package in PACKAGES)
    result |= {"steps": model.num_timesteps, "score": float(np.mean(returns)), "versions": versions}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
