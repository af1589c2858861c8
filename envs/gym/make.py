"""Creates single environments and vector environments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.gym.options import Gym, make_single, resolve
from envs.gym.restore import ReplayRestorer, Restorer, make_repeatable, make_restorer
from envs.gym.spaces import (
    MASK_KEY,
    ObservationLayout,
    describe_actions,
    describe_observations,
    join_infos,
    read_masks,
    sample_action,
    without_mask,
)
from ppo_unified.errors import UsageError

SLOW_STEP_S = 250e-6  # if a step takes longer, use processes; their communication costs about half of this time


class MaskToInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the action mask from a Dict observation to the info, where Gymnasium's own environments return it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = without_mask(env.observation_space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return self._move(*self.env.reset(**kwargs))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._move(obs, info)
        return obs, reward, terminated, truncated, info

    @staticmethod
    def _move(obs: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return {key: x for key, x in obs.items() if key != MASK_KEY}, {**info, MASK_KEY: obs[MASK_KEY]}


def make_env(config: Gym, **kwargs: Any) -> gym.Env[Any, Any]:
    """Create one environment whose observations are arrays or integers.

    Dict, MultiDiscrete and MultiBinary observations are flattened to arrays.
    """
    env: gym.Env[Any, Any] = make_single(config, **kwargs)
    layout = describe_observations(env.observation_space, config.env_id)
    if layout.has_mask:
        env = MaskToInfo(env)
    return gym.wrappers.FlattenObservation(env) if layout.flatten else env


def make_vector(config: Gym, num_envs: int) -> tuple[VectorEnv[Any, Any, Any], ObservationLayout, Restorer]:
    """Create a vector environment with autoreset mode NEXT_STEP, and return (environment, observation layout,
    restorer).

    Raises UsageError if `gym.vectorization` requires the environment's own vector version, but this version uses
    another autoreset mode or its observations need flattening.
    """
    own = make_own_vector(config, num_envs)
    if own is not None:
        return *own, make_restorer(own[0])
    mode = config.vectorization
    if mode == "auto":
        mode = "async" if num_envs > 1 and (os.cpu_count() or 1) > 1 and step_seconds(config) > SLOW_STEP_S else "sync"
    single = make_single(config)
    layout = describe_observations(single.observation_space, config.env_id)
    single.close()
    envs: VectorEnv[Any, Any, Any]
    if mode == "async":
        workers = [partial(make_in_worker, config) for _ in range(num_envs)]
        envs = gym.vector.AsyncVectorEnv(workers, autoreset_mode=AutoresetMode.NEXT_STEP)
    else:
        makers = [partial(make_recorded_env, config) for _ in range(num_envs)]
        envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return envs, layout, ReplayRestorer(envs)


def make_recorded_env(config: Gym) -> gym.Env[Any, Any]:
    return make_repeatable(make_env(config))


def make_own_vector(config: Gym, num_envs: int) -> tuple[VectorEnv[Any, Any, Any], ObservationLayout] | None:
    """Create the environment's own vector version, and return it with its observation layout.

    Return None if the environment has no vector version or the configuration does not allow it. If the vector version
    exists but cannot be used, return None if another vectorization is possible; otherwise raise UsageError.
    """
    spec = resolve(config.env_id)
    wanted = config.vectorization in ("auto", "vector_entry_point") and not config.wrappers
    if spec.vector_entry_point is None or not wanted:
        return None
    envs = gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **config.env_kwargs)
    layout = describe_observations(envs.single_observation_space, config.env_id)
    resets = envs.metadata.get("autoreset_mode")
    if resets is AutoresetMode.NEXT_STEP and not layout.flatten:
        return envs, layout
    envs.close()
    if config.vectorization == "auto" and spec.entry_point is not None:
        return None
    found = "observations that need flattening" if layout.flatten else f"autoreset mode {resets} instead of NEXT_STEP"
    raise UsageError(f"{config.env_id}: the vector version has {found}; set gym.vectorization to sync or async")


@contextmanager
def name_reset(env_id: str) -> Iterator[None]:
    """Raise a RuntimeError that names the environment if `reset` raises an exception inside the `with` block."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{env_id}: reset() raised {type(error).__name__}: {error}") from error


def make_in_worker(config: Gym) -> gym.Env[Any, Any]:
    """Create one environment in a worker process, and make the process ignore Ctrl-C and the closing of the terminal.

    The training process handles these signals. AsyncVectorEnv also calls this function once in the training process, to
    read the spaces. The signal handlers of the training process are not changed.
    """
    if multiprocessing.parent_process() is not None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process inherits the trainer's handler
    return make_recorded_env(config)


def step_seconds(config: Gym, steps: int = 50) -> float:
    """Return the time in seconds that a random step of one environment takes: the minimum over `steps` steps."""
    env = make_env(config)
    actions, generator = describe_actions(env.action_space, config.env_id), np.random.default_rng(0)
    with name_reset(config.env_id):
        _, info = env.reset(seed=0)
    fastest = float("inf")
    for number in range(1, steps + 1):
        action = sample_action(read_masks(join_infos([info]), 1, actions, env_id=config.env_id), actions, generator)
        started = time.perf_counter()
        try:
            _, _, terminated, truncated, info = env.step(action)
        except Exception as error:
            where = f"{config.env_id}: step() raised {type(error).__name__} at step {number} of the initial speed test"
            raise RuntimeError(f"{where}: {error}") from error
        fastest = min(fastest, time.perf_counter() - started)
        if terminated or truncated:
            with name_reset(config.env_id):
                _, info = env.reset()
    env.close()
    return fastest
