"""Scores a policy on fresh episodes.

The episodes are fixed in advance, one per environment or seed, and each of them is played to its end. If the first
episodes to finish were scored instead, short episodes would be overrepresented.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.gym.errors import close_env, guard, make_failure
from envs.gym.infos import FinalInfos
from envs.gym.make import make_env, make_own_vector
from envs.gym.options import MAX_PARALLEL, Gym
from envs.gym.policy import GymPolicy
from envs.gym.spaces import (
    ActionLayout,
    ObservationLayout,
    check_reset,
    check_step,
    encode,
    join_infos,
    read_masks,
    read_reward,
    to_env_actions,
    to_step_argument,
)
from ppo_unified.config.spec import WorkCounter

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
        """Create a player for the environment `env_id`. It is valid until the observation statistics change.

        If `generator` is None, the player takes the most likely actions; otherwise, it samples."""
        self.observations, self.actions, self.device, self.env_id = observations, actions, device, env_id
        with torch.inference_mode():
            self.act = policy.make_actor(generator)
            self.new_state = policy.initial_states(1, acting=True)
        self.states: dict[int, Tensor] = {}  # number of an environment -> recurrent state [1, S]

    def __call__(
        self,
        raw: np.ndarray,
        info: dict[str, Any],
        ended: np.ndarray | None = None,
        envs: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Return the actions for observations [N, ...] of the environments with the numbers `envs`, by default all.

        `info` is the vector environment's info, which can contain action masks.
        `ended` [N] marks the environments that the next step resets. The action masks of these environments are
        ignored. Call `start_episode` if an environment is reset in another way.
        """
        encoded = encode(raw, self.observations, self.env_id)
        masks = read_masks(info, len(encoded), self.actions, ended, self.env_id) if info else None
        with torch.inference_mode():
            mask = None if masks is None else torch.from_numpy(masks).to(self.device)
            obs, states = torch.from_numpy(encoded).to(self.device), None
            if self.new_state is not None:
                numbers = range(len(encoded)) if envs is None else envs
                states = torch.cat([self.states.get(i, self.new_state) for i in numbers])
            chosen = self.act(obs, mask, states)
            if states is not None:
                self.states |= zip(numbers, states.split(1), strict=True)
                for i in np.flatnonzero(ended if ended is not None else ()):
                    self.start_episode(numbers[int(i)])
        return to_env_actions(chosen.cpu().numpy(), self.actions)

    def start_episode(self, env: int = 0) -> None:
        """Reset the recurrent state of an environment to that of a new episode."""
        self.states.pop(env, None)


class Played(NamedTuple):
    """The total rewards of episodes, and the number of episodes that were cut at MAX_STEPS."""

    returns: list[float]
    cut: int


def play_episodes(
    player: Player,
    config: Gym,
    episodes: int,
    seed: int,
    own_vector: bool,
    counter: WorkCounter,
    infos: FinalInfos,
) -> Played:
    """Play fresh episodes in the environment's own vector version, or in single environments.

    The same seed, weights and state of the player's generator always give the same results. `counter` counts finished
    episodes, and ticks at every step. The last info of each episode is added to `infos`.
    """
    counter.begin("", "episode", episodes)
    if not own_vector:
        return _play_single_episodes(player, config, range(seed, seed + episodes), counter, infos)
    envs = make_own_vector(config, episodes)
    limit = envs.spec.kwargs.get("max_episode_steps") if envs.spec else None
    max_steps = MAX_STEPS if limit in (None, -1) else sys.maxsize  # in Gymnasium, -1 means no limit
    try:
        return _play_first_episodes(envs, player, seed, max_steps, counter, infos)
    finally:
        close_env(envs)


def describe_cut(cut: int, episodes: int) -> str:
    """Describe how many episodes were cut at MAX_STEPS."""
    were = "was" if cut == 1 else "were"
    return (
        f"{cut} of {episodes} evaluation episodes {were} cut at {MAX_STEPS:,} steps, because the environment has no "
        "time limit; the score includes only the rewards up to that step; set max_episode_steps in gym.env_kwargs"
    )


def max_episode_length(env: gym.Env[Any, Any]) -> int:
    """Return the maximum number of steps in a scored episode.

    If the environment has no time limit, the maximum is MAX_STEPS, because an episode might otherwise never end.
    """
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return sys.maxsize
        env = env.env
    return MAX_STEPS


def _play_first_episodes(
    envs: gym.vector.VectorEnv[Any, Any, Any],
    player: Player,
    seed: int,
    max_steps: int,
    counter: WorkCounter,
    infos: FinalInfos,
) -> Played:
    """Play the first episode of every environment in the vector environment."""
    with guard(player.env_id, f"reset() of an evaluation with seed {seed}"):
        raw, info = check_reset(envs.reset(seed=seed), envs.observation_space)
    returns, alive = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=bool)
    ended = ~alive
    steps, left = 0, envs.num_envs
    while left and steps < max_steps:
        steps += 1
        chosen = player(raw, info, ended)
        try:
            found = check_step(envs.step(chosen), envs.observation_space, (envs.num_envs,))
        except (Exception, SystemExit) as error:
            call = f"step() at step {steps} of an evaluation with seed {seed}"
            raise make_failure(player.env_id, call, error) from error
        raw, rewards, terminated, truncated, info = found
        returns += np.asarray(rewards) * alive
        ended = np.logical_or(terminated, truncated)
        for env in np.flatnonzero(alive & (ended | (steps >= max_steps))) if info else ():
            infos.add(info, int(env))
        alive &= ~ended
        left = int(np.count_nonzero(alive))
        counter.done, counter.ticks = envs.num_envs - left, steps
    return Played([float(x) for x in returns], int(np.count_nonzero(alive)))


def _play_single_episodes(player: Player, config: Gym, seeds: range, counter: WorkCounter, infos: FinalInfos) -> Played:
    """Play one episode for each seed. Up to MAX_PARALLEL environments share the forward passes."""
    with ExitStack() as at_end:
        envs = []
        for rank in range(config.num_envs, config.num_envs + min(MAX_PARALLEL, len(seeds))):
            envs.append(make_env(config, rank, checked=True))
            at_end.callback(close_env, envs[-1])
        max_steps = max_episode_length(envs[0])
        shares = [range(i, len(seeds), len(envs)) for i in range(len(envs))]
        plays = [
            _play(env, seeds, share, max_steps, config.env_id, counter, infos)
            for env, share in zip(envs, shares, strict=True)
        ]
        ended: dict[int, tuple[float, bool]] = {}  # seed -> total reward, and whether the episode was cut
        waiting = {i: next(play) for i, play in enumerate(plays)}
        while waiting:
            order = list(waiting)
            raws, found, steps = zip(*map(waiting.pop, order), strict=True)
            for i in (env for env, step in zip(order, steps, strict=True) if step == 0):
                player.start_episode(i)
            chosen = player(np.stack(raws), join_infos([*found]), envs=order)
            for i, action in zip(order, chosen, strict=True):
                try:
                    waiting[i] = plays[i].send(to_step_argument(action, player.actions))
                except StopIteration as done:
                    ended |= done.value
        return Played([ended[seed][0] for seed in seeds], sum(cut for _, cut in ended.values()))


def _play(
    env: gym.Env[Any, Any],
    seeds: range,
    share: range,
    max_steps: int,
    env_id: str,
    counter: WorkCounter,
    infos: FinalInfos,
) -> Any:
    """Play the episodes whose indices in `seeds` are in `share`.

    Yield (observation, info, number of steps taken) before each step, receive the action through `send`, and finally
    return {seed: (total reward, whether the episode was cut at `max_steps`)}.
    """
    played = {}
    for index in share:
        seed, episode = seeds[index], f"evaluation episode {index + 1} of {len(seeds)} (seed {seeds[index]})"
        with guard(env_id, f"reset() of {episode}"):
            raw, info = env.reset(seed=seed)
        total, steps, ended = 0.0, 0, False
        while not ended and steps < max_steps:
            action = yield raw, info, steps
            steps += 1
            counter.ticks += 1
            try:
                raw, reward, terminated, truncated, info = env.step(action)
                total += read_reward(reward)
            except (Exception, SystemExit) as error:
                raise make_failure(env_id, f"step() at step {steps} of {episode}", error) from error
            ended = bool(terminated or truncated)
        infos.add(info)
        played[seed] = total, not ended
        counter.done += 1
    return played
