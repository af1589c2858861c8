"""Creates single environments and vector environments, and checks an environment before a run is created."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.gym.errors import (
    DescribedError,
    close_after_error,
    close_env,
    describe_error,
    guard,
    hidden_arguments,
)
from envs.gym.infos import SUCCESS_KEYS, FloatInfo
from envs.gym.masks import MASK_METHOD, MaskFromMethod, MaskToInfo
from envs.gym.options import Gym, GymConfig, make_single, resolve, uses_rank
from envs.gym.restore import Recorder, ReplayRestorer, Restorer, make_repeatable, make_restorer
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
)
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.text import print_err

SLOW_STEP_S = 250e-6  # if a step takes longer, use processes; their communication costs about half of this time


def find_mask_method(env: gym.Env[Any, Any]) -> Callable[[], Any] | None:
    """Return the method `action_masks` of the outermost wrapper that has one, or of the environment, or None.

    Only methods of classes count, because an object that forwards unknown attributes seems to have every method.
    """
    layer = env
    while not callable(getattr(type(layer), MASK_METHOD, None)):
        if not isinstance(layer, gym.Wrapper):
            return None
        layer = layer.env
    method: Callable[[], Any] = getattr(layer, MASK_METHOD)
    return method


def make_env(config: Gym, rank: int | None = None, checked: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """Create one environment whose observations are arrays or integers. `rank` is the number of the environment.

    Dict, Tuple, MultiDiscrete and MultiBinary observations are flattened to arrays. If `checked` is true, the
    environment raises DescribedError if a result violates the Gymnasium API.
    """
    env = make_single(config, rank, **kwargs)
    with close_after_error(env):
        return convert_results(env, config, checked)


def convert_results(env: gym.Env[Any, Any], config: Gym, checked: bool) -> gym.Env[Any, Any]:
    """Wrap `env` so that its observations are arrays or integers, and its infos contain action masks.

    Observations that are flattened are always checked, because flattening accepts integers outside their range.
    """
    layout = read_observations(env, config)
    method = None if layout.has_mask or read_actions(env, config).continuous else find_mask_method(env)
    if checked or layout.flatten:
        env = RuleChecker(env)
    if layout.has_mask:
        env = MaskToInfo(env)
    elif method is not None:
        env = MaskFromMethod(env, method)
    if layout.flatten and layout.images:
        from envs.gym.observations import ImagePacker

        return ImagePacker(env, layout)
    return gym.wrappers.FlattenObservation(env) if layout.flatten else env


class Environments(NamedTuple):
    """A vector environment with autoreset mode NEXT_STEP, and what the adapter needs to know about it."""

    envs: VectorEnv[Any, Any, Any]
    observations: ObservationLayout
    restorer: Restorer
    own: bool  # True if this is the environment's own vector version


def make_vector(config: Gym, num_envs: int) -> Environments:
    """Create a vector environment.

    With `gym.vectorization = "auto"`, the environment's own vector version is used if it passes the same checks as a
    single environment and has the same spaces and masks; otherwise a line on stderr gives the reason. Raises UsageError
    if this version is the only option and cannot be used.
    """
    use = choose_vector_version(config)
    if use != "never":
        try:
            if use == "if possible":
                check_vector_version(config)
            envs = make_own_vector(config, num_envs)
        except (UsageError, ForeignCodeError) as reason:
            if use == "always":
                raise
            print_err(f"{reason}; single environments are used instead")
        else:
            return Environments(envs, read_observations(envs, config), make_restorer(envs), own=True)
    return _make_from_singles(config, num_envs)


def choose_vector_version(config: Gym) -> Literal["never", "if possible", "always"]:
    """Return when the environment's own vector version is used: "if possible" means if it passes its check.

    Raises UsageError if the options exclude both this version and single environments.
    """
    spec, mode, env_id = resolve(config.env_id), config.vectorization, config.env_id
    if mode == "vector_entry_point" and spec.vector_entry_point is None:
        raise UsageError(f"gym.vectorization = 'vector_entry_point': {env_id} has no vector version; use sync or async")
    wrapped = bool(config.wrappers or config.training_wrappers)
    if spec.entry_point is None and (mode in ("sync", "async") or wrapped):
        names = [name for name in ("wrappers", "training_wrappers") if getattr(config, name)]
        remove = f" and remove {' and '.join(f'gym.{name}' for name in names)}" if names else ""
        raise UsageError(
            f"{env_id}: this environment only has a vector version; set gym.vectorization to vector_entry_point{remove}"
        )
    if spec.entry_point is None and uses_rank(config.env_kwargs):
        raise UsageError(
            f"gym.env_kwargs: {{rank}} cannot be used, because {env_id} has only a vector version, and its "
            "environments share their arguments; remove {rank}"
        )
    if mode == "vector_entry_point" or spec.entry_point is None:
        return "always"
    shared = not wrapped and not uses_rank(config.env_kwargs)  # a vector version creates all environments
    return "if possible" if mode == "auto" and spec.vector_entry_point is not None and shared else "never"


def _make_from_singles(config: Gym, num_envs: int) -> Environments:
    """Create a vector environment of single environments, in this process or in worker processes."""
    mode = config.vectorization
    if mode == "auto":
        mode = "async" if num_envs > 1 and (os.cpu_count() or 1) > 1 and gains_from_processes(config) else "sync"
    single = make_single(config)
    try:
        layout = read_observations(single, config)
    finally:
        close_env(single)
    envs: VectorEnv[Any, Any, Any]
    with guard(config.env_id, f"creating {num_envs} environments"), ExitStack() as after_error:

        def make(rank: int) -> gym.Env[Any, Any]:
            env = make_recorded_env(config, rank)
            after_error.callback(close_env, env)
            return env

        if mode == "async":
            from envs.gym.workers import Workers, make_in_worker

            make_one = partial(make_recorded_env, config)
            envs = Workers([partial(make_in_worker, make_one, rank) for rank in range(num_envs)])
        else:
            makers = [partial(make, rank) for rank in range(num_envs)]
            envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
        after_error.pop_all()
    return Environments(envs, layout, ReplayRestorer(envs), own=False)


def read_observations(env: Any, config: Gym) -> ObservationLayout:
    """Return the layout of the observations of an environment, or of one environment in a vector environment."""
    name = "single_observation_space" if isinstance(env, VectorEnv) else "observation_space"
    with guard(config.env_id, name):
        return describe_observations(getattr(env, name), config.env_id, config.normalize_obs, config.encoders)


def read_actions(env: Any, config: Gym) -> ActionLayout:
    """Return the layout of the actions of an environment, or of one environment in a vector environment."""
    name = "single_action_space" if isinstance(env, VectorEnv) else "action_space"
    with guard(config.env_id, name):
        return describe_actions(getattr(env, name), config.env_id, config.rescale_actions)


def make_recorded_env(config: Gym, rank: int | None) -> gym.Env[Any, Any]:
    """Create one environment of a vector environment.

    Its steps are recorded, so that its state can be restored and its episodes can be replayed.
    """
    env = FloatInfo(make_env(config.for_training, rank), (*SUCCESS_KEYS, *config.info_keys))
    return Recorder(make_repeatable(env), config.num_steps)


def make_own_vector(config: Gym, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Create the environment's own vector version. Raises UsageError if it cannot be created or used."""
    version = f"{config.env_id}: the vector version"
    needless = config.vectorization == "vector_entry_point" and resolve(config.env_id).entry_point is not None
    fix = "; set gym.vectorization to sync or async" if needless else ""
    try:
        spec = resolve(config.env_id)
        with hidden_arguments():
            envs: VectorEnv[Any, Any, Any] = gym.make_vec(
                spec, num_envs, vectorization_mode="vector_entry_point", **config.env_kwargs
            )
    except (Exception, SystemExit) as error:
        given = f" with gym.env_kwargs = {config.env_kwargs}" if config.env_kwargs else ""
        raise UsageError(f"{version} cannot be created{given} ({describe_error(error)}){fix}") from error
    with close_after_error(envs):
        if problem := _find_problem(envs, config):
            raise UsageError(f"{version} {problem}{fix}")
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


def gains_from_processes(config: Gym, steps: int = 50) -> bool:
    """Return True if random steps of one environment take long, and its infos can be sent to another process.

    The fastest of `steps` steps counts.
    """
    env = make_env(config, checked=True)
    try:
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
    finally:
        close_env(env)
    return sendable and fastest > SLOW_STEP_S


def _is_sendable(info: dict[str, Any]) -> bool:
    try:
        ForkingPickler.dumps(info)
    except Exception:  # for example a lock, a generator, or a class that is defined in a function
        return False
    return True


class RuleChecker(gym.Wrapper[Any, Any, Any, Any]):
    """Checks the results of `reset` and `step`. Raises a DescribedError that states which rule a result breaks."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.space = env.observation_space  # reading it through the wrappers at every step would be slow

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return check_reset(self.env.reset(**kwargs), self.space)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return check_step(self.env.step(action), self.space)


def check(config: GymConfig) -> None:
    """Create an environment, reset it and take one step. Use the vector version if single ones cannot be used.

    Raises UsageError if the environment fails or violates the Gymnasium API, or if its spaces cannot be used with this
    configuration. The message names the environment and the rule.
    """
    try:
        only_vector = choose_vector_version(config.gym) == "always"
        observations, actions = check_vector_version(config.gym) if only_vector else _check_single(config.gym)
    except ForeignCodeError as error:
        raise UsageError(str(error)) from error
    _check_encoder_options(config, observations)
    if config.gym.normalize_obs and not observations.numbers:
        raise UsageError(
            f"gym.normalize_obs = true has no effect, because the observations of {config.gym.env_id} contain only "
            "images, which are never normalized; set gym.normalize_obs = false"
        )
    if not actions.continuous and not config.policy.is_default("log_std_init"):
        raise UsageError(
            f"policy.log_std_init = {config.policy.log_std_init} has no effect, because {config.gym.env_id} has "
            "discrete actions; remove policy.log_std_init or set it to 0"
        )
    if not actions.can_rescale and not config.gym.is_default("rescale_actions"):
        kind = "continuous actions without finite bounds" if actions.continuous else "discrete actions"
        raise UsageError(
            f"gym.rescale_actions = false has no effect, because {config.gym.env_id} has {kind}; add "
            "--gym.rescale-actions"
        )


def _check_encoder_options(config: GymConfig, observations: ObservationLayout) -> None:
    policy = config.policy
    if observations.images or policy.encoders:
        from envs.gym.encoders import check_encoders

        check_encoders(observations, policy)
    elif policy.shared and not policy.hidden and not policy.is_recurrent:
        raise UsageError("policy.shared = true has no effect because policy.hidden = []; remove policy.shared")
    # Runs of older versions have the value "flat" for all environments.
    if policy.image_encoder == "resnet" or (policy.image_encoder == "flat" and policy.encoders):
        from envs.gym.images import is_large

        images = [part for part in observations.parts if part.can_be_image and is_large(part.space.shape or ())]
        if all(part.name in policy.encoders for part in images):
            why = f"{config.gym.env_id} has no images of at least 36 x 36 pixels"
            if images:
                why = f"policy.encoders contains all images: {', '.join(part.name for part in images)}"
            raise UsageError(
                f"policy.image_encoder = {policy.image_encoder!r} has no effect, because {why}; remove "
                f"policy.image_encoder{'' if images else ', or set policy.encoders for a smaller image'}"
            )


def _check_single(config: Gym) -> tuple[ObservationLayout, ActionLayout]:
    single = make_single(config.for_training, disable_env_checker=True)  # RuleChecker replaces Gymnasium's checker
    try:
        if config.training_wrappers:
            from envs.gym.wrappers import check_training_wrappers

            check_training_wrappers(single, make_single(config))
        observations = read_observations(single, config)
        env = convert_results(single, config, checked=True)
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
        return observations, actions
    finally:
        close_env(single)


def check_vector_version(config: Gym) -> tuple[ObservationLayout, ActionLayout]:
    """Create the environment's own vector version with at most two environments, reset it and take one step.

    Raises UsageError or ForeignCodeError if it fails, violates the Gymnasium API, or does not return action masks
    although a single environment does, or vice versa.
    """
    count, version = min(2, config.num_envs), "the vector version"
    envs = make_own_vector(config, count)
    try:
        actions = read_actions(envs, config)
        with guard(config.env_id, f"{version}: reset()"):
            _, info = check_reset(envs.reset(seed=0), envs.observation_space)
            masks = read_masks(info, count, actions, env_id=config.env_id)
        if resolve(config.env_id).entry_point is not None and _returns_masks(config) != (masks is not None):
            returns = "returns no action masks" if masks is None else "returns action masks"
            raise UsageError(f"{config.env_id}: {version} {returns}, unlike a single environment")
        generator = np.random.default_rng(0)
        rows = [None if masks is None else masks[i : i + 1] for i in range(count)]
        chosen = np.array([sample_action(row, actions, generator) for row in rows], dtype=actions.dtype)
        with guard(config.env_id, f"{version}: step()"):
            _, _, died, cut, info = check_step(envs.step(chosen), envs.observation_space, (count,))
            check_masks(read_masks(info, count, actions, np.logical_or(died, cut), config.env_id), masks)
        return read_observations(envs, config), actions
    finally:
        close_env(envs)


def _returns_masks(config: Gym) -> bool:
    """Return True if a single environment with discrete actions returns an action mask."""
    env = make_env(config, checked=True)
    try:
        with guard(config.env_id, "reset()"):
            return MASK_KEY in env.reset(seed=0)[1] and not read_actions(env, config).continuous
    finally:
        close_env(env)


@contextmanager
def _explaining(env: gym.Env[Any, Any], action: Any = None) -> Iterator[None]:
    """Replace an exception in `reset` (or `step`, given an action) with one that states the broken rule, if any.

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
