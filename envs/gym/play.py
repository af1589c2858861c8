"""Plays a policy in one environment and renders it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.gym.drawing import draw, make_drawable, to_text
from envs.gym.errors import close_env, guard
from envs.gym.eval import Player, max_episode_length
from envs.gym.spaces import ActionLayout, join_infos, read_reward, to_step_argument
from envs.gym.vector import GymAdapter
from ppo_unified.config.spec import Frame


def play(adapter: GymAdapter, episodes: int, seed: int, greedy: bool, shows: Sequence[str]) -> Iterator[Frame]:
    """Play episodes and yield their frames. Episode k (1, 2, ...) is reset with the seed `seed` + k - 1.

    `shows` lists the accepted kinds of frames ('picture', 'text') in order of preference. The first kind that the
    environment supports is used. If the environment supports none of them, the frames contain the observation as
    text. If `shows` is empty, nothing is rendered. Raises UsageError before the first frame if `shows` contains
    only 'picture' and the environment cannot render pictures.
    """
    options = adapter.config.gym
    env, fps = make_drawable(options, shows)
    generator = None if greedy else torch.Generator(adapter.device).manual_seed(seed)
    player = Player(adapter.policy, adapter.observations, adapter.actions, adapter.device, generator, options.env_id)
    seeds, longest = range(seed, seed + episodes), max_episode_length(env)
    return _play_episodes(env, player, adapter.actions, options.env_id, seeds, 1 / fps, longest, "text" in shows)


def _play_episodes(
    env: gym.Env[Any, Any],
    player: Player,
    actions: ActionLayout,
    env_id: str,
    seeds: range,
    seconds: float,
    max_steps: int,
    describe: bool,
) -> Iterator[Frame]:
    """Yield the frames of each episode.

    If `describe` is True and the environment renders nothing, the frames contain the observation as text.
    """
    try:
        for episode, seed in enumerate(seeds, start=1):
            with guard(env_id, f"reset() with seed {seed}"):
                raw, info = env.reset(seed=seed)
            player.start_episode()
            total, step, ended = 0.0, 0, False
            yield Frame(draw(env, env_id, raw, describe), seconds, episode, step, total, "", ended)
            while not ended:
                action = player(np.asarray(raw)[None], join_infos([info]))[0]
                step += 1
                with guard(env_id, f"step() at step {step} of the episode with seed {seed}"):
                    raw, reward, terminated, truncated, info = env.step(to_step_argument(action, actions))
                    total += read_reward(reward)
                cut = step >= max_steps and not (terminated or truncated)
                ended = bool(cut or terminated or truncated)
                yield Frame(
                    draw(env, env_id, raw, describe), seconds, episode, step, total, to_text(action), ended, cut
                )
    finally:
        close_env(env)
