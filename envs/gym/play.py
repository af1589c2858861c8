"""Plays a policy in one environment and renders it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.gym.errors import close_after_error, close_env, guard
from envs.gym.eval import Player, max_episode_length
from envs.gym.make import make_env
from envs.gym.options import Gym, resolve
from envs.gym.spaces import ActionLayout, join_infos, read_reward, to_step_argument
from envs.gym.vector import GymAdapter
from ppo_unified.config.spec import Frame
from ppo_unified.errors import UsageError

RENDER_MODES = {"picture": "rgb_array", "text": "ansi"}  # kind of frame -> Gymnasium's render mode
FPS = 30.0  # frames per second if the environment does not specify it


def play(adapter: GymAdapter, episodes: int, seed: int, greedy: bool, shows: Sequence[str]) -> Iterator[Frame]:
    """Play episodes and yield their frames. Episode k (1, 2, ...) is reset with the seed `seed` + k - 1.

    `shows` lists the accepted kinds of frames ('picture', 'text') in order of preference. The first kind that the
    environment supports is used. If the environment supports none of them, the frames contain the observation as
    text. If `shows` is empty, nothing is rendered. Raises UsageError before the first frame if `shows` contains
    only 'picture' and the environment cannot render pictures.
    """
    options = adapter.config.gym
    env, fps = _make_drawable(options, shows)
    generator = None if greedy else torch.Generator(adapter.device).manual_seed(seed)
    player = Player(adapter.policy, adapter.observations, adapter.actions, adapter.device, generator, options.env_id)
    seeds, longest = range(seed, seed + episodes), max_episode_length(env)
    return _play_episodes(env, player, adapter.actions, options.env_id, seeds, 1 / fps, longest, "text" in shows)


def _make_drawable(options: Gym, shows: Sequence[str]) -> tuple[gym.Env[Any, Any], float]:
    """Create the environment with the first supported render mode. Return the environment and its frame rate."""
    if resolve(options.env_id).entry_point is None:
        raise UsageError(f"{options.env_id}: cannot play this environment because it only has a vector version")
    kwargs = {key: value for key, value in options.env_kwargs.items() if key != "render_mode"}
    options = options.model_copy(update={"env_kwargs": kwargs})
    env = make_env(options, checked=True)
    with close_after_error(env), guard(options.env_id, "metadata"):
        modes = list(env.metadata.get("render_modes") or [])
        fps = float(env.metadata.get("render_fps") or FPS)
    wanted = [RENDER_MODES[kind] for kind in shows]
    mode = next((mode for mode in wanted if mode in modes), None)
    if mode is None and (not shows or "text" in shows):
        return env, fps
    close_env(env)
    if mode is None:
        raise UsageError(
            f"{options.env_id}: cannot render this environment: expected a render mode {' or '.join(wanted)}, got "
            f"{', '.join(map(str, modes)) or 'none'}"
        )
    _use_offscreen_drivers()
    return make_env(options, checked=True, render_mode=mode), fps


def _use_offscreen_drivers() -> None:
    """Make SDL and MuJoCo render to memory. Without a display, SDL would print warnings to the terminal."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


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

    def draw(raw: Any) -> np.ndarray | str:
        drawn = _render(env, env_id)
        return (
            f"observation {_to_text(np.asarray(raw))}" if describe and isinstance(drawn, str) and not drawn else drawn
        )

    try:
        for episode, seed in enumerate(seeds, start=1):
            with guard(env_id, f"reset() with seed {seed}"):
                raw, info = env.reset(seed=seed)
            total, step, ended = 0.0, 0, False
            yield Frame(draw(raw), seconds, episode, step, total, "", ended)
            while not ended:
                action = player(np.asarray(raw)[None], join_infos([info]))[0]
                step += 1
                with guard(env_id, f"step() at step {step} of the episode with seed {seed}"):
                    raw, reward, terminated, truncated, info = env.step(to_step_argument(action, actions))
                    total += read_reward(reward)
                cut = step >= max_steps and not (terminated or truncated)
                ended = bool(cut or terminated or truncated)
                yield Frame(draw(raw), seconds, episode, step, total, _to_text(action), ended, cut)
    finally:
        close_env(env)


def _to_text(numbers: np.ndarray) -> str:
    return np.array2string(numbers, precision=2, suppress_small=True).replace("\n", "")


def _render(env: gym.Env[Any, Any], env_id: str) -> np.ndarray | str:
    """Render the environment and return a picture [height, width, 3] (uint8) or text.

    Return "" if the environment has no render mode. Raises UsageError if `render` returns anything else or needs a
    package that is not installed.
    """
    with guard(env_id, "render()"):
        if env.render_mode is None:
            return ""
        try:
            drawn = env.render()
        except gym.error.DependencyNotInstalled as error:
            raise UsageError(f"{env_id}: cannot render this environment: {error}") from None
    if isinstance(drawn, str):
        return drawn
    picture = np.asarray(drawn)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise UsageError(
            f"{env_id}: render(): expected a picture [height, width, 3] of uint8, got {picture.dtype} of shape "
            f"{list(picture.shape)}"
        )
    return picture
