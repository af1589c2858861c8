"""Reads numbers from the info of an episode's last step: whether the episode was successful, and `gym.info_keys`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from ppo_unified.errors import did_you_mean
from ppo_unified.text import print_err

SUCCESS_KEYS = ("is_success", "success")  # Gymnasium-Robotics and Stable-Baselines3 use the first, MetaWorld the second
MOST_LISTED = 8  # keys that a warning lists


class FinalInfos:
    """The numbers that the environments reported in the last step of the last finished episodes.

    `values` maps a metric's name without its area to these numbers: "success", and "info/KEY" for each key in
    `gym.info_keys`.
    An episode that does not report a number does not count.
    """

    def __init__(self, keys: Sequence[str], episodes: int | None) -> None:
        """Keep the numbers of the last `episodes` episodes, or of all episodes if `episodes` is None."""
        self.keys, self.episodes = keys, episodes
        self.values: dict[str, deque[float]] = {}
        self.problems = dict.fromkeys(keys, "")  # key that has never been a number -> what the last info has instead

    def add(self, info: Mapping[str, Any], env: int | None = None) -> None:
        """Add the last info of an episode in environment `env` of a vector environment, or in a single environment."""
        for key in SUCCESS_KEYS:
            if (success := to_number(find_value(info, key, env))) is not None:
                self._append("success", success)
                break
        for key in self.keys:
            found = find_value(info, key, env)
            if (number := to_number(found)) is not None:
                self._append(f"info/{key}", number)
                self.problems.pop(key, None)
            elif key in self.problems:
                self.problems[key] = _describe_problem(info, key, found)

    def _append(self, name: str, number: float) -> None:
        self.values.setdefault(name, deque(maxlen=self.episodes)).append(number)

    def metrics(self, area: str) -> dict[str, float]:
        return {f"{area}/{name}": float(np.mean(numbers)) for name, numbers in self.values.items()}

    def warn(self, env_id: str) -> None:
        """Print one line for each key that no finished episode has reported as a number. Print it only once."""
        for key, problem in self.problems.items():
            print_err(f"gym.info_keys: {env_id} reported no number under {key!r} at the end of an episode: {problem}")
        self.problems = {}

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(numbers) for name, numbers in self.values.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        self.values = {name: deque(numbers, maxlen=self.episodes) for name, numbers in state.items()}


def find_value(info: Mapping[str, Any], key: str, env: int | None) -> Any:
    """Return the value under a key, or None if the info lacks the key. The key "a.b" means key b of the dict under a.

    In the info of a vector environment, a value is an array with one element per environment. The array under "_key"
    marks the environments that have reported the value.
    """
    if key in info:
        found, reported = info[key], info.get(f"_{key}")
        if env is None or not isinstance(found, (np.ndarray, list, tuple)) or not np.ndim(found):
            return found
        return found[env] if (reported is None or reported[env]) and env < len(found) else None
    outer, _, inner = key.partition(".")
    return find_value(info[outer], inner, env) if inner and isinstance(info.get(outer), Mapping) else None


def to_number(value: Any) -> float | None:
    """Return a finite number, or a boolean as 0 or 1. Return None for all other values."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # for example, a list of lists with different lengths
        return None
    if array.dtype.kind not in "biuf" or array.size != 1 or not np.isfinite(array).all():
        return None
    return float(array.item())


def _describe_problem(info: Mapping[str, Any], key: str, found: Any) -> str:
    if found is not None:
        kind = f"an array of shape {list(found.shape)}" if isinstance(found, np.ndarray) else f"{found!r:.80}"
        return f"it is {kind}; remove {key!r} from gym.info_keys"
    known = sorted(name for name in info if not (name.startswith("_") and name[1:] in info))
    listed = f"{', '.join(known[:MOST_LISTED])}{', ...' if len(known) > MOST_LISTED else ''}" if known else "no keys"
    return f"the info has {listed}{did_you_mean(key, known)}"


class FloatInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Converts the numbers and booleans under `keys` to floats in the info of an episode's last step.

    If several environments report a number in the same step, Gymnasium's vector environments convert all of them to the
    type of the first, so 0.5 would become 0 next to the integer 1.
    """

    def __init__(self, env: gym.Env[Any, Any], keys: Sequence[str]) -> None:
        super().__init__(env)
        self.keys = keys

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            for key in self.keys:
                info = _with_float(info, key)
        return obs, reward, terminated, truncated, info


def _with_float(info: dict[str, Any], key: str) -> dict[str, Any]:
    """Return `info` with the number under `key` as a float. The original is not changed."""
    if key in info:
        number = to_number(info[key])
        return info if number is None else {**info, key: number}
    outer, _, inner = key.partition(".")
    return {**info, outer: _with_float(info[outer], inner)} if inner and isinstance(info.get(outer), dict) else info
