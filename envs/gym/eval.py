"""Score a policy on fresh episodes.

A fixed set of episodes is played to the end, one per environment or seed. Otherwise, short episodes would be
overrepresented, because they finish first.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.gym.make import make_env, make_own_vector
from envs.gym.options import Gym, resolve
from envs.gym.policy import GymPolicy
from envs.gym.spaces import (
    ActionLayout,
    ObservationLayout,
    describe_actions,
    describe_observations,
    encode,
    join_infos,
    read_masks,
    to_env_actions,
    to_step_argument,
)
from ppo_unified.engine.rollout import Observations

MAX_PARALLEL = 16  # maximum number of single environments in parallel
MAX_STEPS = 10_000  # maximum number of steps of an episode without a time limit


class Player:
    """Applies a policy to raw observations of an environment and returns actions in the environment's format."""

    def __init__(
        self,
        policy: GymPolicy,
        observations: ObservationLayout,
        actions: ActionLayout,
        device: torch.device,
        generator: torch.Generator | None,
    ) -> None:
        """Create a player that samples actions, or chooses the most likely ones if `generator` is None."""
        self.policy, self.observations, self.actions = policy, observations, actions
        self.device, self.generator = device, generator

    @torch.inference_mode()
    def __call__(self, raw: np.ndarray, info: dict[str, Any], ended: np.ndarray | None = None) -> np.ndarray:
        """Return actions for observations [N, ...] and a vector environment's info.

        `ended` [N] marks environments whose next step is a reset. Their action masks are ignored.
        """
        encoded = encode(raw, self.observations)
        obs: Observations = self.policy.scale(torch.from_numpy(encoded).to(self.device))
        masks = read_masks(info, len(encoded), self.actions, ended)
        if masks is not None:
            obs = {"obs": obs, "action_mask": torch.from_numpy(masks).to(self.device)}  # type: ignore[dict-item]
        return to_env_actions(self.policy.act(obs, self.generator).cpu().numpy(), self.actions)


def play_episodes(
    policy: GymPolicy, config: Gym, episodes: int, seed: int, greedy: bool, device: torch.device
) -> list[float]:
    """Play fresh episodes, greedy or sampled, and return their returns. Equal seeds and weights give equal results."""
    env_seed, action_seed = (int(x) for x in np.random.SeedSequence((seed, 1)).generate_state(2))
    generator = None if greedy else torch.Generator(device).manual_seed(action_seed)
    own = make_own_vector(config, episodes)
    if own is None:
        return _play_single_episodes(policy, config, episodes, env_seed, device, generator)
    envs, observations = own
    actions = describe_actions(envs.single_action_space, config.env_id)
    player = Player(policy, observations, actions, device, generator)
    try:
        return _play_first_episodes(envs, player, env_seed, max_episode_length(config))
    finally:
        envs.close()


def max_episode_length(config: Gym) -> int:
    """Return the maximum number of steps of a scored episode.

    The limit is MAX_STEPS if the environment has no time limit of its own, because an episode might never end.
    """
    limited = resolve(config.env_id).max_episode_steps is not None or "max_episode_steps" in config.env_kwargs
    return sys.maxsize if limited else MAX_STEPS


def _play_first_episodes(
    envs: gym.vector.VectorEnv[Any, Any, Any], player: Player, seed: int, max_steps: int
) -> list[float]:
    """Return the return of the first episode of every environment in the vector environment."""
    raw, info = envs.reset(seed=seed)
    returns, alive = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=bool)
    ended = ~alive
    steps = 0
    while alive.any() and steps < max_steps:
        steps += 1
        raw, rewards, terminated, truncated, info = envs.step(player(raw, info, ended))
        returns += rewards * alive
        ended = terminated | truncated
        alive &= ~ended
    return [float(x) for x in returns]


def _play_single_episodes(
    policy: GymPolicy, config: Gym, episodes: int, seed: int, device: torch.device, generator: torch.Generator | None
) -> list[float]:
    """Play episode k with seed + k, in up to MAX_PARALLEL environments that share the forward passes."""
    envs = [make_env(config) for _ in range(min(MAX_PARALLEL, episodes))]
    max_steps = max_episode_length(config)
    plays = [_play(env, range(seed + i, seed + episodes, len(envs)), max_steps) for i, env in enumerate(envs)]
    observations, actions = _describe_spaces(config, envs[0])
    player = Player(policy, observations, actions, device, generator)
    returns: dict[int, float] = {}
    waiting = {i: next(play) for i, play in enumerate(plays)}
    while waiting:
        order = list(waiting)
        shown = [waiting.pop(i) for i in order]
        chosen = player(np.stack([raw for raw, _ in shown]), join_infos([info for _, info in shown]))
        for i, action in zip(order, chosen, strict=True):
            try:
                waiting[i] = plays[i].send(to_step_argument(action, actions))
            except StopIteration as done:
                returns |= done.value
    for env in envs:
        env.close()
    return [returns[k] for k in sorted(returns)]


def _describe_spaces(config: Gym, env: gym.Env[Any, Any]) -> tuple[ObservationLayout, ActionLayout]:
    return describe_observations(env.observation_space, config.env_id), describe_actions(
        env.action_space, config.env_id
    )


def _play(env: gym.Env[Any, Any], seeds: range, max_steps: int) -> Any:
    """A generator that yields (observation, info), receives actions by `send`, and returns {seed: return}."""
    returns = {}
    for seed in seeds:
        raw, info = env.reset(seed=seed)
        total, steps, ended = 0.0, 0, False
        while not ended:
            raw, reward, terminated, truncated, info = env.step((yield raw, info))
            total, steps = total + float(reward), steps + 1
            ended = terminated or truncated or steps >= max_steps
        returns[seed] = total
    return returns
