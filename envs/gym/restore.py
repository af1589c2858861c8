"""Saves and restores the state of environments, so that a resumed run continues the same episodes.

A vector environment is restored by setting its arrays, if they are known, or by its own `load_state_dict`. Single
environments are restored by replaying their unfinished episodes. The results of the replay are compared with the saved
record.

Environments are not pickled, because loading a pickle can execute code, and because a pickled Box2D world does not work
after loading.

An environment that can be stepped but not recorded is trained too. Its episodes restart when the run is resumed. This
module imports torch only when it saves or restores a state, because it also creates the environment for the checks
before a run.
"""

from __future__ import annotations

import copy
import json
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import VectorEnv

from envs.gym.errors import DescribedError, describe_error
from envs.gym.spaces import read_reward

MAX_RECORDED_STEPS = 100_000  # per episode; 100,000 actions of four floats take 1.6 MB
NO_STARTS = (
    "the environment's vector version does not report how an episode starts; set gym.vectorization to sync or async"
)
INITIAL_CAPACITY = 64  # number of actions that fit in the array of a new episode


class RestoreError(Exception):
    """Raised if the environments cannot be restored. The error message contains the reason."""


class Restorer(Protocol):
    """Saves and restores a vector environment."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Restore the environments and return their last observations and info.

        Raises RestoreError if the environments cannot be restored.
        """
        ...

    def describe_starts(self) -> dict[str, Any]:
        """Describe in JSON values how the episodes of the last rollout can be started again, for `replay`.

        The dict has one of these entries: "rows" contains, for each environment, a list of the "starts" of the episodes
        that began in the rollout, and an "obstacle" if starts cannot be recorded. "states" is true if the environment's
        state is its observation. "obstacle" is the reason why no episode can be started again.
        """
        ...


def find_entry(state: dict[str, Any], name: str) -> Any:
    """Return the entry of a state that another Restorer does not save. Raises RestoreError if it is missing."""
    if name not in state:
        raise RestoreError("the run now uses a different version of the environment (vector or single)")
    return state[name]


class Episode:
    """The record of an episode: its start, its actions, a checksum of its observations, and its total reward."""

    def __init__(self, start: dict[str, Any], space: gym.Space[Any]) -> None:
        self.start = start  # {"seed": the argument of reset} or {"random": the generator's state before reset}
        self.actions = np.empty((INITIAL_CAPACITY, *(space.shape or ())), space.dtype)
        self.steps, self.checksum, self.total_reward = 0, 0, 0.0

    def add_step(self, action: Any, obs: Any, reward: float) -> None:
        if self.steps < MAX_RECORDED_STEPS:
            if self.steps == len(self.actions):
                self.actions = np.concatenate([self.actions, np.empty_like(self.actions)])
            self.actions[self.steps] = action
        self.steps += 1
        self.total_reward += reward
        self.add_obs(obs)

    def add_obs(self, obs: Any) -> None:
        self.checksum = zlib.crc32(np.ascontiguousarray(obs).data, self.checksum)

    def as_record(self) -> dict[str, Any]:
        outcome = {"checksum": self.checksum, "paid": self.total_reward}
        return self.start | {"actions": self.actions[: self.steps].copy()} | outcome


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records the unfinished episode and the previous one, and can replay both in a new environment.

    The previous episode is also replayed, because this makes the check stricter. If an environment depends on earlier
    episodes or has its own random generator, replaying only these two episodes rarely reproduces the recorded results.

    The enclosing vector environment also stores which environments it resets in the next step. This state cannot be set
    directly, because it may be in a worker process. Instead, the first `step` after a replay returns the last result of
    the replay again, which restores this state.
    """

    def __init__(self, env: gym.Env[Any, Any], rollout_steps: int) -> None:
        super().__init__(env)
        self.episodes: deque[Episode] = deque(maxlen=2)
        self.rollout_steps = rollout_steps  # number of results of `reset` and `step` in a rollout
        self.results = 0
        self.starts: deque[tuple[int, dict[str, Any]]] = deque()  # number of the first result and start of an episode
        self.obstacle = ""  # why the episodes cannot be replayed; "" if they can
        self.to_replay: dict[str, Any] = {}  # set by ReplayRestorer through the vector environment
        self.last: tuple[Any, float, bool, bool, dict[str, Any]] | None = None  # last result of a replay, for `step`

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.last = None
        start = {"random": self._random_state()} if seed is None else {"seed": seed}
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:
            raise DescribedError(describe_error(error)) from error
        self.results += 1
        self.starts.append((self.results, start))
        while self.starts[0][0] < self.results - self.rollout_steps:  # before the newest rollout
            self.starts.popleft()
        try:
            self.episodes.append(Episode(start, self.action_space))
            self.episodes[-1].add_obs(obs)
        except Exception as error:
            self._give_up(error)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.last is not None:
            last, self.last = self.last, None
            return last
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            reward, terminated, truncated = read_reward(reward), bool(terminated), bool(truncated)
        except (Exception, SystemExit) as error:
            raise DescribedError(describe_error(error)) from error
        self.results += 1
        if not self.obstacle:
            try:
                self.episodes[-1].add_step(action, obs, reward)
            except Exception as error:
                self._give_up(error)
        return obs, reward, terminated, truncated, info

    def _give_up(self, error: Exception) -> None:
        """Stop recording, because the environment's spaces or results cannot be stored."""
        self.obstacle = self.obstacle or f"its episodes cannot be recorded ({describe_error(error)})"
        self.episodes.clear()

    def make_record(self) -> dict[str, Any]:
        """Return the record that `replay` needs, a dict with the keys "episodes", "random" and "obstacle".

        If the unfinished episode is too long or cannot be recorded, "episodes" is empty.
        """
        random = self._random_state()
        kept = [episode.as_record() for episode in self.episodes if episode.steps <= MAX_RECORDED_STEPS]
        if self.obstacle or self.episodes[-1].steps > MAX_RECORDED_STEPS:
            kept = []
        return {"episodes": kept, "random": random, "obstacle": self.obstacle}

    def describe_starts(self) -> dict[str, Any]:
        """Return the starts of the episodes that began in the last rollout, each with the column of its first step.

        The newest result belongs to the first column of the next rollout.
        """
        first = self.results - self.rollout_steps
        starts = [
            {"column": number - first, **start} for number, start in self.starts if first <= number < self.results
        ]
        return {"starts": starts, "obstacle": self.obstacle}

    def replay(self) -> str:
        """Replay the episodes in `to_replay`.

        Return "" if all results match the record; otherwise return a description of the problem.
        """
        wanted, self.to_replay = self.to_replay, {}
        if not wanted["episodes"]:
            return wanted.get("obstacle") or f"an episode is longer than {MAX_RECORDED_STEPS:,} steps"
        self.episodes.clear()
        try:
            last = [self._replay_episode(episode) for episode in wanted["episodes"]][-1]
        except Exception as error:  # whatever the environment raises, the episode cannot be replayed
            return f"{type(error).__name__} in a replayed episode: {error}"
        found = self.make_record()
        for then, now in zip(wanted["episodes"], found["episodes"], strict=True):
            if any(then[key] != now[key] for key in then if key != "actions"):
                return "a replayed episode returned different observations or rewards"
        if found["random"] != wanted["random"]:
            return "a replayed episode used different random numbers"
        self.last = last
        return ""

    def _replay_episode(self, episode: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Replay one episode and return its last result in the format of `step`."""
        if not self.episodes and "random" in episode:
            self.np_random.bit_generator.state = json.loads(episode["random"])
        obs, info = self.reset(seed=episode.get("seed"))
        result = obs, 0.0, False, False, info
        for action in episode["actions"]:
            result = self.step(action)
        return result

    def _random_state(self) -> str:
        """Return the random generator's state as JSON text, because JSON can store its 128-bit integers.

        Return "" if the environment's `np_random` is missing or is not a NumPy generator; Gymnasium allows both.
        """
        try:
            return json.dumps(self.np_random.bit_generator.state, default=np.ndarray.tolist)
        except Exception:
            self.obstacle = self.obstacle or "its np_random is not a numpy.random.Generator"
            return ""


class ReplayRestorer:
    """Restores a vector environment whose environments are Recorders, by replaying their episodes."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs: Any = envs  # a SyncVectorEnv or AsyncVectorEnv: both have `call` and `set_attr`

    def state_dict(self) -> dict[str, Any]:
        return {"records": [_with_tensors(record) for record in self.envs.call("make_record")]}

    def describe_starts(self) -> dict[str, Any]:
        return {"rows": list(self.envs.call("describe_starts"))}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        began = time.perf_counter()
        saved = find_entry(state, "records")
        records = [{**record, "episodes": [_with_array(x) for x in record["episodes"]]} for record in saved]
        self.envs.reset()  # so that the vector environment will not reset any environment in the next step
        self.envs.set_attr("to_replay", records)
        failed = [why for why in self.envs.call("replay") if why]
        if failed:
            raise RestoreError(failed[0])
        seconds = time.perf_counter() - began
        if seconds > 1:
            steps = sum(len(episode["actions"]) for record in records for episode in record["episodes"])
            print(f"{steps:,} environment steps replayed in {seconds:.1f} s", flush=True)
        obs, _, _, _, info = self.envs.step(self.envs.action_space.sample())
        return obs, info


def _with_tensors(record: dict[str, Any]) -> dict[str, Any]:
    """Convert the actions of a record to tensors, which a checkpoint can store."""
    import torch

    try:
        episodes = [{**episode, "actions": torch.from_numpy(episode["actions"])} for episode in record["episodes"]]
    except TypeError as error:  # for example, torch has no type for numpy.longdouble
        return record | {"episodes": [], "obstacle": f"its actions cannot be stored ({error})"}
    return record | {"episodes": episodes}


def _with_array(episode: dict[str, Any]) -> dict[str, Any]:
    return {**episode, "actions": episode["actions"].cpu().numpy()}


class KnownArrays(NamedTuple):
    """The arrays that, together with the random generator, form the complete state of a vector environment."""

    names: tuple[str, ...]
    observe: Callable[[Any], Any]  # computes the observations from the environment's arrays


KNOWN: dict[type, KnownArrays] = {
    CartPoleVectorEnv: KnownArrays(("state", "steps", "prev_done"), lambda envs: envs.state.T.astype(np.float32)),
}


class ArrayRestorer:
    """Restores a vector environment by setting its arrays and its random generator."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], arrays: KnownArrays) -> None:
        self.envs: Any = envs
        self.arrays = arrays

    def state_dict(self) -> dict[str, Any]:
        import torch

        arrays = {name: torch.from_numpy(np.array(getattr(self.envs, name))) for name in self.arrays.names}
        return {"arrays": arrays, "random": json.dumps(self.envs.np_random.bit_generator.state)}

    def describe_starts(self) -> dict[str, Any]:
        return {"states": True}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        saved = find_entry(state, "arrays")
        for name in self.arrays.names:
            setattr(self.envs, name, saved[name].cpu().numpy().copy())
        self.envs.np_random.bit_generator.state = json.loads(state["random"])
        return self.arrays.observe(self.envs), {}


class StateDictRestorer:
    """Restores a vector environment through its own `state_dict` and `load_state_dict`.

    If one of these functions fails, or returns something that a checkpoint cannot store, the episodes restart.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs: Any = envs

    def state_dict(self) -> dict[str, Any]:
        try:
            state = self.envs.state_dict()
            if wrong := find_unstorable(state):
                return {"obstacle": f"its state_dict() contains {wrong}, which a checkpoint cannot store"}
            return {"own": copy.deepcopy(state)}  # the environment may later change the returned objects
        except Exception as error:
            return {"obstacle": f"state_dict(): {describe_error(error)}"}

    def describe_starts(self) -> dict[str, Any]:
        return {"obstacle": NO_STARTS}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "obstacle" in state:
            raise RestoreError(state["obstacle"])
        saved = find_entry(state, "own")
        try:
            obs, info = self.envs.load_state_dict(saved)
        except Exception as error:
            raise RestoreError(f"load_state_dict(): {describe_error(error)}") from error
        return obs, info


def find_unstorable(value: Any) -> str:
    """Return the type of the first part of `value` that a checkpoint cannot store, or "" if there is none.

    A checkpoint stores tensors, numbers, strings, booleans, None, and lists, tuples and dicts of these.
    """
    import torch

    if value is None or isinstance(value, (str, bool, int, float, torch.Tensor)):
        return ""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(find_unstorable, value)), "")
    if isinstance(value, dict):
        return next(filter(None, (find_unstorable(x) for pair in value.items() for x in pair)), "")
    kind = type(value)
    return f"a value of type {kind.__module__}.{kind.__qualname__}"


class NoRestorer:
    """The restorer for a vector environment that cannot be restored. Its `load_state_dict` raises RestoreError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def state_dict(self) -> dict[str, Any]:
        return {}

    def describe_starts(self) -> dict[str, Any]:
        return {"obstacle": NO_STARTS}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        raise RestoreError(f"{self.name} has no methods state_dict and load_state_dict")


def make_restorer(envs: VectorEnv[Any, Any, Any]) -> Restorer:
    """Return the restorer for an environment that has its own vectorized implementation."""
    if type(envs) in KNOWN:
        return ArrayRestorer(envs, KNOWN[type(envs)])
    known = hasattr(envs, "state_dict") and hasattr(envs, "load_state_dict")
    return StateDictRestorer(envs) if known else NoRestorer(type(envs).__name__)


class FreshBox2DWorld(gym.Wrapper[Any, Any, Any, Any]):
    """Creates a new Box2D world for each episode of BipedalWalker, as LunarLander already does.

    In a reused world, leftovers of earlier episodes affect the next episode, even if the random state and the actions
    are the same (https://github.com/Farama-Foundation/Gymnasium/issues/728). Without this wrapper, 2 of 5 replays
    differed from the recorded episode.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        walker: Any = self.unwrapped
        walker._destroy()
        walker.world = type(walker.world)(gravity=walker.world.gravity)
        return self.env.reset(**kwargs)


def make_repeatable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Wrap `env`, if it is known to need it, so that an episode depends only on its start and its actions."""
    kinds = [kind for kind in type(env.unwrapped).__mro__ if kind.__module__.startswith("gymnasium.")]
    walks = any(kind.__name__ == "BipedalWalker" for kind in kinds)  # a class of another package may have no world
    return FreshBox2DWorld(env) if walks else env
