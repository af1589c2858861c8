"""A policy acting in one environment that is drawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs.gym.eval import Player, longest_episode
from envs.gym.make import make_env
from envs.gym.options import Gym, resolve
from envs.gym.spaces import ActionLayout, join_infos, single_action
from envs.gym.vector import GymAdapter
from ppo_unified.config.spec import Frame
from ppo_unified.errors import UsageError

RENDER_MODES = {"picture": "rgb_array", "text": "ansi"}  # what a viewer can show, and Gymnasium's name for it
FPS = 30.0  # of environments that name none


def play(adapter: GymAdapter, episodes: int, seed: int, greedy: bool, shows: Sequence[str]) -> Iterator[Frame]:
    """Frames of `episodes` episodes, episode k reset with seed + k - 1, drawn as the first of `shows` ('picture',
    'text') that the environment knows; without `shows` nothing is drawn.

    Raises UsageError at once where the environment can be drawn in none of these ways.
    """
    options = adapter.config.gym
    env, fps = _make_drawable(options, shows)
    generator = None if greedy else torch.Generator(adapter.device).manual_seed(seed)
    player = Player(adapter.policy, adapter.observations, adapter.actions, adapter.device, generator)
    return _frames(
        env, player, adapter.actions, options.env_id, range(seed, seed + episodes), 1 / fps, longest_episode(options)
    )


def _make_drawable(options: Gym, shows: Sequence[str]) -> tuple[gym.Env[Any, Any], float]:
    """The environment in the first render mode that fits, and how many frames it shows in a second."""
    if resolve(options.env_id).entry_point is None:
        raise UsageError(f"{options.env_id}: has only a vector version, which cannot be played one episode at a time")
    env = make_env(options)
    modes = env.metadata.get("render_modes") or []
    fps = float(env.metadata.get("render_fps") or FPS)
    if not shows:
        return env, fps
    env.close()
    wanted = [RENDER_MODES[kind] for kind in shows]
    mode = next((mode for mode in wanted if mode in modes), None)
    if mode is None:
        raise UsageError(
            f"{options.env_id}: cannot be drawn here: its render modes are {', '.join(map(str, modes)) or 'none'}, "
            f"and {' or '.join(wanted)} is needed"
        )
    _use_offscreen_drivers()
    without_mode = {key: value for key, value in options.env_kwargs.items() if key != "render_mode"}
    return make_env(options.model_copy(update={"env_kwargs": without_mode}), render_mode=mode), fps


def _use_offscreen_drivers() -> None:
    """Let SDL and MuJoCo draw into memory: there may be no display, and SDL complains about that on the terminal."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _frames(
    env: gym.Env[Any, Any],
    player: Player,
    actions: ActionLayout,
    env_id: str,
    seeds: range,
    seconds: float,
    longest: int,
) -> Iterator[Frame]:
    try:
        for episode, seed in enumerate(seeds, start=1):
            raw, info = env.reset(seed=seed)
            total, step, ended = 0.0, 0, False
            yield Frame(_picture(env, env_id), seconds, episode, step, total, "", ended)
            while not ended:
                action = player(np.asarray(raw)[None], join_infos([info]))[0]
                raw, reward, terminated, truncated, info = env.step(single_action(action, actions))
                total, step = total + float(reward), step + 1
                ended = terminated or truncated or step >= longest
                yield Frame(_picture(env, env_id), seconds, episode, step, total, _to_text(action), ended)
    finally:
        env.close()


def _to_text(action: np.ndarray) -> str:
    return np.array2string(action, precision=2, suppress_small=True).replace("\n", "")


def _picture(env: gym.Env[Any, Any], env_id: str) -> np.ndarray | str:
    """What the environment draws now, as [height, width, 3] uint8 or text; "" without a render mode.

    Raises UsageError where it draws something else or lacks the package it draws with.
    """
    if env.render_mode is None:
        return ""
    try:
        drawn = env.render()
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"{env_id}: cannot be drawn: {error}") from None
    if isinstance(drawn, str):
        return drawn
    picture = np.asarray(drawn)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise UsageError(
            f"{env_id}: render() gave {picture.dtype} of shape {list(picture.shape)}; "
            "a picture [height, width, 3] of uint8 is expected"
        )
    return picture
