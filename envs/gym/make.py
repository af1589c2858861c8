"""Creates single environments and vector environments, and checks an environment before a run is created."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.gym.errors import DescribedError, close_env, describe_error, guard
from envs.gym.options import Gym, GymConfig, make_single, resolve, uses_rank
from envs.gym.restore import ReplayRestorer, Restorer, make_repeatable, make_restorer
from envs.gym.spaces import (
    MASK_KEY,
    ActionLayout,
    ObservationLayout,
    check_masks,
    check_reset,
    check_reset_arguments,
    check_step,
    describe_actions,
    describe_observations,
    join_infos,
    read_masks,
    sample_action,
    without_mask,
)
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.text import print_err

MASK_METHOD = "action_masks"  # method of an environment or a wrapper that returns the action mask
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


class MaskFromMethod(gym.Wrapper[Any, Any, Any, Any]):
    """Adds the mask that the environment's method `action_masks` returns to the info, unless the info has a mask.

    The method is the convention of sb3-contrib. It is not called after the end of an episode, as in sb3-contrib.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.read_mask = env.get_wrapper_attr(MASK_METHOD)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return obs, info if MASK_KEY in info else {**info, MASK_KEY: self.read_mask()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if MASK_KEY not in info and not terminated and not truncated:
            info = {**info, MASK_KEY: self.read_mask()}
        return obs, reward, terminated, truncated, info


def has_mask_method(env: gym.Env[Any, Any], env_id: str) -> bool:
    """Return True if the environment or one of its wrappers has a method `action_masks`."""
    with guard(env_id, MASK_METHOD):
        return env.has_wrapper_attr(MASK_METHOD) and callable(env.get_wrapper_attr(MASK_METHOD))


def make_env(config: Gym, rank: int | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Create one environment whose observations are arrays or integers. `rank` is the number of the environment.

    Dict, Tuple, MultiDiscrete and MultiBinary observations are flattened to arrays.
    """
    return convert_observations(make_single(config, rank, **kwargs), config)


def convert_observations(env: gym.Env[Any, Any], config: Gym) -> gym.Env[Any, Any]:
    """Wrap `env` so that its observations are arrays or integers, and its infos contain action masks and numbers."""
    layout = read_observations(env, config)
    if layout.has_mask:
        env = MaskToInfo(env)
    elif has_mask_method(env, config.env_id):
        env = MaskFromMethod(env)
    if config.info_keys:
        from envs.gym.infos import FloatInfo

        env = FloatInfo(env, config.info_keys)
    return gym.wrappers.FlattenObservation(env) if layout.flatten else env


class Environments(NamedTuple):
    """A vector environment with autoreset mode NEXT_STEP, and what the adapter needs to know about it."""

    envs: VectorEnv[Any, Any, Any]
    observations: ObservationLayout
    restorer: Restorer
    own: bool  # True if this is the environment's own vector version


def make_vector(config: Gym, num_envs: int) -> Environments:
    """Create a vector environment.

    With `gym.vectorization = "auto"`, the environment's own vector version is used if it can be used and has the same
    spaces as a single environment; otherwise a line on stderr gives the reason. Raises UsageError if there is no other
    choice than this version, but it cannot be used.
    """
    spec, mode = resolve(config.env_id), config.vectorization
    shared = not config.wrappers and not uses_rank(config.env_kwargs)  # a vector version creates all environments
    if spec.vector_entry_point is not None and mode in ("auto", "vector_entry_point") and shared:
        try:
            envs = make_own_vector(config, num_envs)
        except UsageError as reason:
            if spec.entry_point is None:
                raise
            if mode != "auto":
                raise UsageError(f"{reason}; set gym.vectorization to sync or async") from reason
            print_err(f"{reason}; single environments are used instead")
        else:
            return Environments(envs, read_observations(envs, config), make_restorer(envs), own=True)
    return _make_from_singles(config, num_envs)


def _make_from_singles(config: Gym, num_envs: int) -> Environments:
    """Create a vector environment of single environments, in this process or in worker processes."""
    mode = config.vectorization
    if mode == "auto":
        mode = "async" if num_envs > 1 and (os.cpu_count() or 1) > 1 and gains_from_processes(config) else "sync"
    single = make_single(config)
    layout = read_observations(single, config)
    close_env(single)
    envs: VectorEnv[Any, Any, Any]
    with guard(config.env_id, f"creating {num_envs} environments"):
        if mode == "async":
            from envs.gym.workers import Workers

            envs = Workers([partial(make_in_worker, config, rank) for rank in range(num_envs)])
        else:
            makers = [partial(make_recorded_env, config, rank) for rank in range(num_envs)]
            envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return Environments(envs, layout, ReplayRestorer(envs), own=False)


def read_observations(env: Any, config: Gym) -> ObservationLayout:
    """Return the layout of the observations of an environment, or of one environment in a vector environment."""
    name = "single_observation_space" if isinstance(env, VectorEnv) else "observation_space"
    with guard(config.env_id, name):
        return describe_observations(getattr(env, name), config.env_id, config.normalize_obs)


def read_actions(env: Any, config: Gym) -> ActionLayout:
    """Return the layout of the actions of an environment, or of one environment in a vector environment."""
    name = "single_action_space" if isinstance(env, VectorEnv) else "action_space"
    with guard(config.env_id, name):
        return describe_actions(getattr(env, name), config.env_id, config.rescale_actions)


def make_recorded_env(config: Gym, rank: int | None) -> gym.Env[Any, Any]:
    return make_repeatable(make_env(config, rank))


def make_own_vector(config: Gym, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Create the environment's own vector version. Raises UsageError if it cannot be created or used."""
    version = f"{config.env_id}: the vector version"
    try:
        envs: VectorEnv[Any, Any, Any] = gym.make_vec(
            resolve(config.env_id), num_envs, vectorization_mode="vector_entry_point", **config.env_kwargs
        )
    except (Exception, SystemExit) as error:
        given = f" with gym.env_kwargs = {config.env_kwargs}" if config.env_kwargs else ""
        raise UsageError(f"{version} cannot be created{given} ({describe_error(error)})") from error
    try:
        problem = _find_problem(envs, config)
    except BaseException:
        close_env(envs)
        raise
    if problem:
        close_env(envs)
        raise UsageError(f"{version} {problem}")
    return envs


def _find_problem(envs: VectorEnv[Any, Any, Any], config: Gym) -> str:
    """Return why an environment's own vector version cannot be used, or "".

    The policy must also act in a single environment, which `play` and exported programs use. Therefore, the spaces of
    both versions must be equal.
    """
    with guard(config.env_id, "metadata"):
        resets = envs.metadata.get("autoreset_mode")
    if resets is not AutoresetMode.NEXT_STEP:
        return f"has autoreset mode {resets} instead of NEXT_STEP"
    if read_observations(envs, config).flatten:
        return "has observations that need flattening"
    if resolve(config.env_id).entry_point is None:
        return ""
    single = make_single(config)
    try:
        for what in ("observation_space", "action_space"):
            with guard(config.env_id, what):
                found, expected = getattr(envs, f"single_{what}"), getattr(single, what)
            if found != expected:
                return f"has the {what.replace('_', ' ')} {found}, expected {expected} as in a single environment"
    finally:
        close_env(single)
    return ""


def make_in_worker(config: Gym, rank: int) -> gym.Env[Any, Any]:
    """Create one environment in a worker process, and make the process ignore Ctrl-C and the closing of the terminal.

    The training process handles these signals. AsyncVectorEnv also calls this function once in the training process, to
    read the spaces. In this case, the environment gets the spare number, and the signal handlers are not changed.
    """
    if multiprocessing.parent_process() is None:
        return make_recorded_env(config, None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process inherits the trainer's handler
    return make_recorded_env(config, rank)


def gains_from_processes(config: Gym, steps: int = 50) -> bool:
    """Return True if random steps of one environment take long, and its infos can be sent to another process.

    The fastest of `steps` steps counts.
    """
    env = make_env(config)
    actions, generator = read_actions(env, config), np.random.default_rng(0)
    with guard(config.env_id, "reset()"):
        _, info = env.reset(seed=0)
    fastest, sendable = float("inf"), _is_sendable(info)
    for number in range(1, steps + 1):
        action = sample_action(read_masks(join_infos([info]), 1, actions, env_id=config.env_id), actions, generator)
        started = time.perf_counter()
        with guard(config.env_id, f"step() at step {number} of the initial speed test"):
            _, _, terminated, truncated, info = env.step(action)
        fastest, sendable = min(fastest, time.perf_counter() - started), sendable and _is_sendable(info)
        if terminated or truncated:
            with guard(config.env_id, "reset()"):
                _, info = env.reset()
    close_env(env)
    return sendable and fastest > SLOW_STEP_S


def _is_sendable(info: dict[str, Any]) -> bool:
    try:
        ForkingPickler.dumps(info)
    except Exception:  # for example a lock, a generator, or a class that is defined in a function
        return False
    return True


class RuleChecker(gym.Wrapper[Any, Any, Any, Any]):
    """Checks the results of `reset` and `step`. Raises DescribedError that states the rule that a result breaks."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return check_reset(self.env.reset(**kwargs), self.observation_space)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return check_step(self.env.step(action), self.observation_space)


def check(config: GymConfig) -> None:
    """Create an environment, reset it and take one step, in the vector version if the run cannot use the other one.

    Raises UsageError if the environment fails or breaks a rule of Gymnasium, or if its spaces cannot be used with this
    configuration. The message names the environment and the rule.
    """
    spec = resolve(config.gym.env_id)
    if config.gym.vectorization == "vector_entry_point" and spec.vector_entry_point is None:
        raise UsageError(
            f"gym.vectorization = 'vector_entry_point': {config.gym.env_id} has no vector version; use sync or async"
        )
    if spec.entry_point is None and uses_rank(config.gym.env_kwargs):
        raise UsageError(
            f"gym.env_kwargs: {{rank}} cannot be used, because {config.gym.env_id} has only a vector version, whose "
            "environments share their arguments; remove {rank}"
        )
    try:
        vector = config.gym.vectorization == "vector_entry_point" or spec.entry_point is None
        actions = _check_vector(config.gym) if vector else _check_single(config.gym)
    except ForeignCodeError as error:
        raise UsageError(str(error)) from error
    if not actions.continuous and not config.policy.is_default("log_std_init"):
        raise UsageError(
            f"policy.log_std_init = {config.policy.log_std_init} has no effect, because {config.gym.env_id} has "
            "discrete actions; remove policy.log_std_init"
        )
    if not actions.can_rescale and not config.gym.is_default("rescale_actions"):
        kind = "continuous actions without finite bounds" if actions.continuous else "discrete actions"
        raise UsageError(
            f"gym.rescale_actions = false has no effect, because {config.gym.env_id} has {kind}; remove "
            "gym.rescale_actions or set it to true"
        )


def _check_single(config: Gym) -> ActionLayout:
    single = make_single(config, disable_env_checker=True)  # RuleChecker replaces Gymnasium's checker
    try:
        env = convert_observations(RuleChecker(single), config)
        actions = read_actions(env, config)
        with guard(config.env_id, "reset()"), _explaining(single):
            _, info = env.reset(seed=0)
            masks = read_masks(join_infos([info]), 1, actions, env_id=config.env_id)
        action = sample_action(masks, actions, np.random.default_rng(0))
        with guard(config.env_id, "step()"), _explaining(single, action):
            _, _, died, cut, info = env.step(action)
            check_masks(
                read_masks(join_infos([info]), 1, actions, np.array([bool(died) or bool(cut)]), config.env_id), masks
            )
        return actions
    finally:
        close_env(single)


def _check_vector(config: Gym) -> ActionLayout:
    if config.wrappers or config.vectorization not in ("auto", "vector_entry_point"):
        raise UsageError(
            f"{config.env_id}: this environment only has a vector version; set gym.vectorization to vector_entry_point "
            "and remove gym.wrappers"
        )
    try:
        envs = make_own_vector(config, config.num_envs)
    except UsageError as error:
        if resolve(config.env_id).entry_point is None:
            raise
        raise UsageError(f"{error}; set gym.vectorization to sync or async") from error
    try:
        actions = read_actions(envs, config)
        with guard(config.env_id, "reset()"):
            _, info = check_reset(envs.reset(seed=0), envs.observation_space)
            masks = read_masks(info, config.num_envs, actions, env_id=config.env_id)
        generator = np.random.default_rng(0)
        rows = [None if masks is None else masks[i : i + 1] for i in range(config.num_envs)]
        chosen = np.array([sample_action(row, actions, generator) for row in rows], dtype=actions.dtype)
        with guard(config.env_id, "step()"):
            _, _, died, cut, info = check_step(envs.step(chosen), envs.observation_space, (config.num_envs,))
            check_masks(read_masks(info, config.num_envs, actions, np.logical_or(died, cut), config.env_id), masks)
        return actions
    finally:
        close_env(envs)


@contextmanager
def _explaining(env: gym.Env[Any, Any], action: Any = None) -> Iterator[None]:
    """Replace an exception in `reset`, or in `step` if there is an action, by the rule that the environment breaks.

    Wrappers raise confusing errors if the environment under them breaks a rule. After an error, this function calls the
    innermost environment again to find out whether it does.
    """
    try:
        yield
    except (DescribedError, ForeignCodeError):
        raise
    except Exception as error:
        inner = env.unwrapped
        try:
            check_reset_arguments(inner.reset)
            check_reset(inner.reset(seed=0), inner.observation_space)
            if action is not None:
                check_step(inner.step(action), inner.observation_space)
        except DescribedError as rule:
            raise rule from error
        except (Exception, SystemExit):  # the innermost environment itself raises an exception
            raise error from None
        raise
