"""Gymnasium environments that break a rule or fail in one place, with ids such as `tests.faulty_envs:Faulty-v0`."""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv


class NeedsTwoArguments(Exception):
    """Can neither be created from its message alone nor be sent to another process."""

    def __init__(self, text: str, lock: Any) -> None:
        super().__init__(text)
        self.lock = lock


class Faulty(gym.Env[Any, Any]):
    """An environment with episodes of 5 steps. When `place` is reached for the `after`-th time, `fault` happens.

    The places are constructor, reset, step, render and close. "worker constructor" and "worker close" are only reached
    in a worker process. "odd reset" and "odd step" are calls in an environment whose last given seed is odd.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # gymnasium reads it from the class

    def __init__(self, place: str = "", fault: str = "raise", after: int = 1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 10.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.place, self.fault, self.left, self.render_mode = place, fault, after, render_mode
        self.first_seed = 0
        self._reach("constructor")
        self._reach("worker constructor")

    def _reach(self, place: str) -> None:
        if place != self.place or (place.startswith("worker") and multiprocessing.parent_process() is None):
            return
        self.left -= 1
        if self.left == 0:
            FAULTS[self.fault]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.first_seed = seed if seed is not None else self.first_seed
        self._reach("reset")
        if self.first_seed % 2:
            self._reach("odd reset")
        self.taken = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._reach("step")
        if self.first_seed % 2:
            self._reach("odd step")
        self.taken += 1
        return np.full(2, self.taken, np.float32), 1.0, self.taken == 5, False, {}

    def render(self) -> Any:
        self._reach("render")
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        self._reach("close")
        self._reach("worker close")


def _raise() -> None:
    raise ZeroDivisionError("the world\nbroke")


def _raise_unpicklable() -> None:
    raise NeedsTwoArguments("a lock", threading.Lock())


FAULTS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "unpicklable": _raise_unpicklable,
    "exit": lambda: sys.exit(3),
    "die": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(600),
    "thread": lambda: threading.Thread(target=time.sleep, args=(600,), name="simulator").start(),
}


class Chatty(Faulty):
    """Prints to stdout everywhere, also from a C library and an exit function, and parses the command line."""

    def __init__(self, **kwargs: Any) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--map", default="small")
        assert parser.parse_args().map == "small"
        self._chat("constructor")
        atexit.register(print, "chat exit")
        super().__init__(**kwargs)

    @staticmethod
    def _chat(where: str) -> None:
        import ctypes

        print("chat", where)
        os.write(1, b"chat descriptor\n")
        ctypes.CDLL(None).printf(b"chat C\n")

    def reset(self, **kwargs: Any) -> Any:
        self._chat("reset")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._chat("step")
        return super().step(action)

    def close(self) -> None:
        self._chat("close")
        super().close()


class OddRandom(Faulty):
    """An environment whose random generator is not one of NumPy's generators."""

    def __init__(self, kind: str = "RandomState") -> None:
        super().__init__()
        self.kind = kind

    @property
    def np_random(self) -> Any:
        if self.kind == "raises":
            raise NotImplementedError("this environment has no random numbers")
        return {"RandomState": np.random.RandomState(1), "Random": random.Random(1), "None": None}[self.kind]

    @np_random.setter
    def np_random(self, value: Any) -> None:
        raise NotImplementedError("this environment seeds itself")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.taken = 0
        return np.zeros(2, np.float32), {}


class OddResults(Faulty):
    """Returns results of types that vector environments accept, although the recorder of episodes does not expect them.

    The values are the same for each kind: observations (k, k) and rewards k / 2 at step k.
    """

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        if kind == "longdouble":
            self.action_space = spaces.Box(-1, 1, (1,), np.longdouble)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        return self._convert(obs), info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        reward: Any = self.taken / 2
        converted = {"array": np.array([reward]), "scalar": np.array(reward, np.float32), "float32": np.float32(reward)}
        if self.kind == "lock":
            info = {"lock": threading.Lock()}
        if self.kind == "array":
            return self._convert(obs), converted["array"], np.array([terminated]), np.array([truncated]), info
        return self._convert(obs), converted.get(self.kind, reward), terminated, truncated, info

    def _convert(self, obs: Any) -> Any:
        kinds = {"list": obs.tolist(), "float64": obs.astype(np.float64), "integers": obs.astype(np.int64)}
        return kinds.get(self.kind, obs)


class BreaksLater(Faulty):
    """Breaks the rule of Gymnasium with the name `rule` at step 3 of each episode."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def step(self, action: Any) -> Any:
        results = super().step(action)
        if self.taken != 3:
            return results
        index, value = {
            "shape": (0, np.zeros(3, np.float32)),
            "object": (0, None),
            "text": (0, ["a", "b"]),
            "nan": (0, np.full(2, np.nan, np.float32)),
            "reward": (1, float("inf")),
            "ends": (2, np.array([True, False])),
            "info": (4, None),
        }[self.rule]
        return (*results[:index], value, *results[index + 1 :])


class Counted(Faulty):
    """Counts its instances that are open."""

    open = 0

    def __init__(self, has_numbers: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not has_numbers:
            self.observation_space = spaces.Text(3)
        self.is_open = True
        Counted.open += 1

    @property
    def metadata(self) -> Any:  # type: ignore[override]  # so that it can fail
        self._reach("metadata")
        return Faulty.metadata

    def close(self) -> None:
        Counted.open -= self.is_open
        self.is_open = False


class FailingWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be created."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        raise ZeroDivisionError("no wrapper")


class BreaksRule(gym.Env[Any, Any]):
    """Breaks the rule of Gymnasium with the name `rule`."""

    def __init__(self, rule: str = "") -> None:
        self.rule = rule
        self.observation_space = {
            "discrete range": spaces.Discrete(3, start=1),
            "multi range": spaces.MultiDiscrete([2, 3]),
            "multi negative": spaces.MultiDiscrete([2, 3]),
            "dict negative": spaces.Dict({"a": spaces.Discrete(4), "b": spaces.Discrete(4)}),
            "dict": spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Discrete(2)}),
            "nested integers": spaces.Dict({"a": spaces.Box(0, 255, (2,), np.uint8)}),
            "integers": spaces.Box(0, 255, (2,), np.uint8),
        }.get(rule, spaces.Box(0.0, 1.0, (2,), np.float32))
        self.action_space = spaces.Discrete(3)

    def _show(self) -> Any:
        return {
            "discrete range": 0,
            "multi range": np.array([1, 3]),
            "multi negative": np.array([1, -1]),
            "dict negative": {"a": np.int64(0), "b": np.int64(-1)},
            "dict": {"a": np.zeros(2, np.float32)},
            "nested integers": {"a": np.array([1, 2])},
            "integers": np.array([0.5, 1.0]),
            "shape": np.zeros(3, np.float32),
            "object": None,
            "slightly outside": np.array([-0.01, 1.01], np.float32),
        }.get(self.rule, np.zeros(2, np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.rule == "old reset":
            return self._show()
        lengths = {"mask length": 2, "masks": 3}
        return self._show(), {"action_mask": np.ones(lengths[self.rule], np.int8)} if self.rule in lengths else {}

    def step(self, action: Any) -> Any:
        if self.rule == "old step":
            return self._show(), 0.0, False, {}
        info = {"action_mask": np.ones(3, np.int8)} if self.rule in ("late mask", "masks") else {}
        obs = np.zeros(5, np.float32) if self.rule == "step shape" else self._show()
        return obs, np.ones(2) if self.rule == "vector reward" else 0.0, False, False, info


class HasMasks(BreaksRule):
    """Returns action masks, in contrast to its vector version."""

    def action_masks(self) -> Any:
        return np.array([True, False, True])


class OldSeed(BreaksRule):
    """Has the reset function of old Gym versions, without parameters."""

    def reset(self) -> Any:  # type: ignore[override]  # breaks the rule on purpose
        return self._show(), {}


class VectorBreaksRule(VectorEnv[Any, Any, Any]):
    """A vector environment that breaks the rule of Gymnasium with the name `rule`."""

    def __init__(self, num_envs: int = 1, rule: str = "", **_: Any) -> None:
        self.num_envs, self.rule = num_envs, rule
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros((self.num_envs, 3 if self.rule in ("shape", "shape in vector") else 2), np.float32), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.action_space.contains(actions)
        if self.rule == "raise":
            raise ZeroDivisionError("the worlds broke")
        rewards = np.zeros((self.num_envs, 2) if self.rule == "vector reward" else self.num_envs)
        none = np.zeros(self.num_envs, dtype=bool)
        return np.zeros((self.num_envs, 2), np.float32), rewards, none, none, {}


class OddStates(VectorBreaksRule):
    """A vector environment whose own state cannot be stored or restored."""

    def state_dict(self) -> dict[str, Any]:
        if self.rule == "save raises":
            raise ZeroDivisionError("no state")
        return {"array": np.zeros(2)} if self.rule == "array" else {"lock": threading.Lock()} if self.rule else {}

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        raise ZeroDivisionError("wrong state")


for _name in ("Faulty", "Chatty", "OddRandom", "OddResults", "BreaksRule", "BreaksLater", "Counted", "OldSeed"):
    unchecked = _name in ("OddResults", "BreaksLater", "Counted")
    gym.register(f"{_name}-v0", f"tests.faulty_envs:{_name}", disable_env_checker=unchecked)
for _name in ("BreaksRule", "HasMasks"):
    gym.register(
        f"{_name}TwoForms-v0",
        f"tests.faulty_envs:{_name}",
        vector_entry_point="tests.faulty_envs:VectorBreaksRule",
        disable_env_checker=True,
    )
gym.register("VectorBreaksRule-v0", vector_entry_point="tests.faulty_envs:VectorBreaksRule")
gym.register("OddStates-v0", vector_entry_point="tests.faulty_envs:OddStates")
