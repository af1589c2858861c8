"""Scores a policy on fresh episodes.

The episodes are fixed in advance, one per environment or seed, and each of them is played to its end. If the first
episodes to finish were scored instead, short episodes would be overrepresented.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.gym.make import make_env, make_own_vector
from envs.gym.options import Gym, close_env, guard, make_failure, resolve
from envs.gym.policy import GymPolicy
from envs.gym.spaces import (
    ActionLayout,
    ObservationLayout,
    describe_actions,
    describe_observations,
    encode,
    join_infos,
    read_masks,
    read_reward,
    to_env_actions,
    to_step_argument,
)
from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.rollout import Observations

MAX_PARALLEL = 16  # maximum number of single environments in parallel
MAX_STEPS = 10_000  # maximum number of steps in an episode of an environment without a time limit


class Player:
    """Applies a policy to an environment's raw observations and returns actions in the environment's format."""

    def __init__(
        self,
        policy: GymPolicy,
        observations: ObservationLayout,
        actions: ActionLayout,
        device: torch.device,
        generator: torch.Generator | None,
        env_id: str = "",
    ) -> None:
        """Create a player for the environment `env_id`.

        If `generator` is None, the player takes the most likely actions; otherwise, it samples."""
        self.policy, self.observations, self.actions = policy, observations, actions
        self.device, self.generator, self.env_id = device, generator, env_id

    @torch.inference_mode()
    def __call__(self, raw: np.ndarray, info: dict[str, Any], ended: np.ndarray | None = None) -> np.ndarray:
        """Return the actions for observations [N, ...].

        `info` is the vector environment's info, which can contain action masks.
        `ended` [N] marks the environments that the next step resets. The action masks of these environments are
        ignored.
        """
        encoded = encode(raw, self.observations, self.env_id)
        obs: Observations = self.policy.scale(torch.from_numpy(encoded).to(self.device))
        masks = read_masks(info, len(encoded), self.actions, ended, self.env_id)
        if masks is not None:
            obs = {"obs": obs, "action_mask": torch.from_numpy(masks).to(self.device)}  # type: ignore[dict-item]
        return to_env_actions(self.policy.act(obs, self.generator).cpu().numpy(), self.actions)


def play_episodes(
    policy: GymPolicy,
    config: Gym,
    episodes: int,
    seed: int,
    greedy: bool,
    device: torch.device,
    counter: WorkCounter,
) -> list[float]:
    """Play fresh episodes and return the total reward of each. `counter` counts finished episodes, and ticks per step.

    If `greedy` is true, the policy takes the most likely actions; otherwise it samples actions. The same seed and
    weights always give the same results.
    """
    counter.done, counter.total = 0, episodes
    env_seed, action_seed = (int(x) for x in np.random.SeedSequence((seed, 1)).generate_state(2))
    generator = None if greedy else torch.Generator(device).manual_seed(action_seed)
    own = make_own_vector(config, episodes)
    if own is None:
        return _play_single_episodes(policy, config, episodes, env_seed, device, generator, counter)
    envs, observations = own
    actions = describe_actions(envs.single_action_space, config.env_id)
    player = Player(policy, observations, actions, device, generator, config.env_id)
    try:
        return _play_first_episodes(envs, player, env_seed, config, counter)
    finally:
        close_env(envs)


def max_episode_length(config: Gym) -> int:
    """Return the maximum number of steps in a scored episode.

    If the environment has no time limit, the maximum is MAX_STEPS, because an episode might otherwise never end.
    """
    limited = resolve(config.env_id).max_episode_steps is not None or "max_episode_steps" in config.env_kwargs
    return sys.maxsize if limited else MAX_STEPS


def _play_first_episodes(
    envs: gym.vector.VectorEnv[Any, Any, Any], player: Player, seed: int, config: Gym, counter: WorkCounter
) -> list[float]:
    """Play the first episode of every environment in the vector environment. Return each episode's total reward."""
    with guard(config.env_id, f"reset() of an evaluation with seed {seed}"):
        raw, info = envs.reset(seed=seed)
    returns, alive = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=bool)
    ended = ~alive
    steps, left, max_steps = 0, envs.num_envs, max_episode_length(config)
    while left and steps < max_steps:
        steps += 1
        chosen = player(raw, info, ended)
        try:
            raw, rewards, terminated, truncated, info = envs.step(chosen)
        except (Exception, SystemExit) as error:
            call = f"step() at step {steps} of an evaluation with seed {seed}"
            raise make_failure(config.env_id, call, error) from error
        returns += rewards * alive
        ended = terminated | truncated
        alive &= ~ended
        left = int(np.count_nonzero(alive))
        counter.done, counter.ticks = envs.num_envs - left, steps
    return [float(x) for x in returns]


def _play_single_episodes(
    policy: GymPolicy,
    config: Gym,
    episodes: int,
    seed: int,
    device: torch.device,
    generator: torch.Generator | None,
    counter: WorkCounter,
) -> list[float]:
    """Play each episode k with the seed `seed` + k. Up to MAX_PARALLEL environments share the forward passes."""
    envs = [make_env(config) for _ in range(min(MAX_PARALLEL, episodes))]
    seeds = [range(seed + i, seed + episodes, len(envs)) for i in range(len(envs))]
    plays = [_play(env, own, config, counter) for env, own in zip(envs, seeds, strict=True)]
    observations, actions = _describe_spaces(config, envs[0])
    player = Player(policy, observations, actions, device, generator, config.env_id)
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
        close_env(env)
    return [returns[k] for k in sorted(returns)]


def _describe_spaces(config: Gym, env: gym.Env[Any, Any]) -> tuple[ObservationLayout, ActionLayout]:
    with guard(config.env_id, "observation_space and action_space"):
        observations = describe_observations(env.observation_space, config.env_id)
        return observations, describe_actions(env.action_space, config.env_id)


def _play(env: gym.Env[Any, Any], seeds: range, config: Gym, counter: WorkCounter) -> Any:
    """Yield (observation, info) before each step, receive the action through `send`, and finally return {seed: total
    reward}."""
    returns, max_steps = {}, max_episode_length(config)
    for seed in seeds:
        with guard(config.env_id, f"reset() of the evaluation episode with seed {seed}"):
            raw, info = env.reset(seed=seed)
        total, steps, ended = 0.0, 0, False
        while not ended:
            action = yield raw, info
            steps += 1
            counter.ticks += 1
            try:
                raw, reward, terminated, truncated, info = env.step(action)
                total += read_reward(reward)
            except (Exception, SystemExit) as error:
                call = f"step() at step {steps} of the evaluation episode with seed {seed}"
                raise make_failure(config.env_id, call, error) from error
            ended = terminated or truncated or steps >= max_steps
        returns[seed] = total
        counter.done += 1
    return returns
