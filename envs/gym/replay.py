"""Replays a stored episode: repeats its actions in an environment that renders, and draws each state.

An episode starts again from the seed or the random state that the training environment recorded. Each replayed
observation is compared with the stored one, so that a frame never shows a state that differs from the policy's. If an
environment's state is its observation, as for CartPole, the state is set from each stored observation, and episodes
that began before the rollout can be drawn too. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from envs.gym.drawing import draw, make_drawable, to_text
from envs.gym.errors import close_env, guard
from envs.gym.make import read_actions, read_observations
from envs.gym.options import GymConfig
from envs.gym.restore import make_repeatable
from envs.gym.spaces import ObservationLayout, encode, read_reward, to_env_actions, to_step_argument
from ppo_unified.config.spec import Frame, ReplayError, StoredEpisode

TOLERANCE = 1e-4  # of observations after a state was set from an observation, which float32 has rounded


def _set_cartpole_state(env: Any, obs: np.ndarray) -> None:
    env.state = obs.astype(np.float64)


# environments whose state is their observation, with the function that sets the state of one environment
STATE_SETTERS: dict[type, Callable[[Any, np.ndarray], None]] = {CartPoleEnv: _set_cartpole_state}


class Scaling:
    """The normalization of the observations in a rollout, as recorded with its samples."""

    def __init__(self, record: Any, layout: ObservationLayout) -> None:
        """Read the entry "scaling" of a record; None if the observations were not normalized. Raises ReplayError."""
        known = record or {"mean": 0.0, "factor": 1.0, "clip": np.inf}
        try:
            self.mean, self.factor = (
                np.broadcast_to(np.asarray(known[name], layout.numbers_dtype), layout.numbers)
                for name in ("mean", "factor")
            )
            self.clip = float(known["clip"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(error) from None

    def apply(self, obs: np.ndarray) -> np.ndarray:
        """Normalize the numbers of an observation."""
        scaled: np.ndarray = ((obs - self.mean) * self.factor).clip(-self.clip, self.clip).astype(np.float32)
        return scaled

    def undo(self, obs: np.ndarray) -> np.ndarray | None:
        """Return the numbers of an observation before normalization, or None if they were clipped."""
        raw: np.ndarray = obs / self.factor + self.mean
        return None if (np.abs(obs) >= self.clip).any() else raw


def replay(
    config: GymConfig, record: Any, episode: StoredEpisode, shows: Sequence[str], first: int = 0
) -> Iterator[Frame]:
    """Yield the frames of the states before each step of `episode`, from step `first` on, and the state after the last.

    The state after the last step is left out if its observation is not stored. `shows` has the same meaning as for
    `envs.gym.play.play`. Raises ReplayError at the first state that cannot be drawn, and UsageError or ForeignCodeError
    if the environment cannot be created or fails.
    """
    start = _find_start(record, episode)
    env, fps = make_drawable(config.gym.for_training, shows)
    try:
        env = make_repeatable(env)
        yield from _replay(env, config, start, record.get("scaling"), episode, 1 / fps, "text" in shows, first)
    finally:
        close_env(env)


def _find_start(record: Any, episode: StoredEpisode) -> dict[str, Any] | None:
    """Return how the episode starts, or None if the state is set from each observation. Raises ReplayError."""
    if not isinstance(record, dict):
        raise ReplayError(
            "the starts of the episodes are not stored, because an older version stored the samples or because they "
            "are too large"
        )
    if record.get("states"):
        return None
    if "rows" not in record:
        raise ReplayError(f"the episode cannot be replayed: {record.get('obstacle', 'its start is not stored')}")
    try:
        known = record["rows"][episode.row]
        start: dict[str, Any] | None = next((x for x in known["starts"] if x["column"] == episode.column), None)
        obstacle = known["obstacle"] if start is not None and "seed" not in start and not start["random"] else ""
    except (KeyError, IndexError, TypeError) as error:
        raise _damaged(error) from None
    if start is None:
        raise ReplayError("the episode began before this iteration's rollout, so its start is not stored")
    if obstacle:
        raise ReplayError(f"the episode cannot be replayed: {obstacle}")
    return start


def _damaged(error: Exception) -> ReplayError:
    return ReplayError(f"the stored record of the rollout is damaged ({type(error).__name__}: {error})")


def _replay(
    env: gym.Env[Any, Any],
    config: GymConfig,
    start: dict[str, Any] | None,
    scaling: Any,
    episode: StoredEpisode,
    seconds: float,
    describe: bool,
    first: int,
) -> Iterator[Frame]:
    env_id, layout = config.gym.env_id, read_observations(env, config.gym)
    actions = read_actions(env, config.gym)
    scale = Scaling(scaling, layout)
    stored = _read_stored(episode, layout)
    components = len(actions.low if actions.continuous else actions.sizes)
    if stored is None or episode.actions.shape[1:] != (components,):
        raise ReplayError(f"the observations or actions of {env_id} have changed since these samples were stored")
    set_state = _find_state_setter(env) if start is None else None
    with guard(env_id, "reset()"):
        raw = _reset(env, start)
    total, ended, text = 0.0, False, ""
    for step in range(len(next(iter(stored.values())))):
        obs = {key: x[step] for key, x in stored.items()}
        name = f"step {episode.column + step}"  # as `inspect` numbers the steps
        if step:
            if ended:
                raise ReplayError(f"the replayed episode ended before {name}", step)
            action = to_env_actions(episode.actions[step - 1 : step], actions)[0]
            with guard(env_id, f"step() before {name} of the replayed episode"):
                raw, reward, terminated, truncated, _ = env.step(to_step_argument(action, actions))
                total, ended, text = total + read_reward(reward), bool(terminated or truncated), to_text(action)
        if step or set_state is None:
            encoded = encode(np.asarray(raw, env.observation_space.dtype)[None], layout, env_id)[0]
            equal = np.array_equal if set_state is None else partial(np.allclose, rtol=TOLERANCE, atol=TOLERANCE)
            if not all(equal(x, obs[key]) for key, x in _as_seen(encoded, layout, scale).items()):
                raise ReplayError(f"the replayed observation differs from the stored one at {name}", step)
        if set_state is not None:
            raw = scale.undo(obs["obs"])
            if raw is None:
                raise ReplayError(f"gym.normalize_obs clipped the observation at {name}, so the state is unknown", step)
            set_state(env.unwrapped, raw)
        if step >= first:
            yield Frame(draw(env, env_id, raw, describe), seconds, 1, step, total, text, ended)


def _read_stored(episode: StoredEpisode, layout: ObservationLayout) -> dict[str, np.ndarray] | None:
    """Return the stored observations by the keys of `_as_seen`, or None if they do not have this layout."""
    shapes = {part.entry: part.space.shape for part in layout.images}
    shapes |= {"obs": (layout.numbers,)} if layout.numbers else {}
    known = episode.observations
    stored = {key: known.get(f"obs.{key}", known.get(key, np.empty(0))) for key in shapes}
    return stored if all(stored[key].shape[1:] == shape for key, shape in shapes.items()) else None


def _as_seen(encoded: np.ndarray, layout: ObservationLayout, scale: Scaling) -> dict[str, np.ndarray]:
    """Return what the policy sees of an encoded observation [size]: the numbers under "obs", and its images."""
    if not layout.images:
        return {"obs": scale.apply(encoded)}
    from envs.gym.observations import unpack

    parts = unpack(encoded, layout)
    return {key: scale.apply(x) if key == "obs" else x for key, x in parts.items()}


def _find_state_setter(env: gym.Env[Any, Any]) -> Callable[[Any, np.ndarray], None]:
    if type(env.unwrapped) not in STATE_SETTERS:
        raise ReplayError(f"the state of {type(env.unwrapped).__name__} cannot be set")
    return STATE_SETTERS[type(env.unwrapped)]


def _reset(env: gym.Env[Any, Any], start: Mapping[str, Any] | None) -> Any:
    """Start the episode in `env` and return its first observation."""
    if start is not None and "seed" in start:
        return env.reset(seed=start["seed"])[0]
    raw, _ = env.reset(seed=0)  # in training, an earlier reset also had a seed
    if start is None:
        return raw
    env.np_random.bit_generator.state = json.loads(start["random"])
    return env.reset()[0]
