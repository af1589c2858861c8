"""Creates environments that render, and draws them as pictures or text. This module does not import torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from envs.gym.errors import close_after_error, close_env, guard
from envs.gym.make import make_env
from envs.gym.options import Gym, resolve
from ppo_unified.errors import UsageError

RENDER_MODES = {"picture": "rgb_array", "text": "ansi"}  # kind of frame -> Gymnasium's render mode
FPS = 30.0  # frames per second if the environment does not specify it


def make_drawable(options: Gym, shows: Sequence[str]) -> tuple[gym.Env[Any, Any], float]:
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


def draw(env: gym.Env[Any, Any], env_id: str, raw: Any, describe: bool) -> np.ndarray | str:
    """Return a picture [height, width, 3] (uint8) or a text of the environment's current state.

    If `describe` is True and the environment renders nothing, return its observation `raw` as text.
    """
    drawn = _render(env, env_id)
    return f"observation {to_text(np.asarray(raw))}" if describe and isinstance(drawn, str) and not drawn else drawn


def to_text(numbers: np.ndarray) -> str:
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
