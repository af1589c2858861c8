"""Environments that go on from a checkpoint as if nothing had happened: by their own arrays where these are known, else
by living through their unfinished episodes again.

Nothing is pickled: a pickle executes when it is loaded, and a Box2D world comes out of one broken without an error.
The restored environments are compared with the record before they are trusted.
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
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import VectorEnv

LONGEST = 100_000  # steps of an episode that are kept to be replayed; four floats a step are then 1.6 MB
FIRST_STEPS = 64  # room for an episode's actions before it has to grow


class RestoreError(Exception):
    """The environments cannot be restored; the text says why."""


class Restorer(Protocol):
    """Saves and restores a vector environment."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the environments back; the observations and the info that they showed last. Raises RestoreError."""
        ...


class Episode:
    """How an episode began, its actions, and what they led to, in short."""

    def __init__(self, start: dict[str, Any], space: gym.Space[Any]) -> None:
        self.start = start  # "seed" handed to reset, or the "random" state from before it
        self.actions = np.empty((FIRST_STEPS, *(space.shape or ())), space.dtype)
        self.steps, self.checksum, self.paid = 0, 0, 0.0

    def act(self, action: Any) -> None:
        if self.steps < LONGEST:
            if self.steps == len(self.actions):
                self.actions = np.concatenate([self.actions, np.empty_like(self.actions)])
            self.actions[self.steps] = action
        self.steps += 1

    def show(self, obs: Any, reward: float = 0.0) -> None:
        self.checksum = zlib.crc32(np.ascontiguousarray(obs).data, self.checksum)
        self.paid += reward

    def as_record(self) -> dict[str, Any]:
        outcome = {"checksum": self.checksum, "paid": self.paid}
        return self.start | {"actions": self.actions[: self.steps].copy()} | outcome


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers the unfinished episode and the one before, and can live through both again in an environment made anew.

    The episode before makes the comparison worth more: what depends on earlier episodes, or draws from a generator of
    its own, rarely comes out the same in both. The vector environment around keeps state too (who is to be reset in the
    next step), out of reach in a process of its own; so the step after a replay gives the last result once more.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: deque[Episode] = deque(maxlen=2)
        self.to_replay: dict[str, Any] = {}  # set from outside, through the vector environment
        self.last: tuple[Any, float, bool, bool, dict[str, Any]] | None = None  # of a replay, not yet given again

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.last = None
        start = {"random": self._random_state()} if seed is None else {"seed": seed}
        obs, info = self.env.reset(seed=seed, options=options)
        self.episodes.append(Episode(start, self.action_space))
        self.episodes[-1].show(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.last is not None:
            last, self.last = self.last, None
            return last
        episode = self.episodes[-1]
        episode.act(action)
        result = self.env.step(action)
        episode.show(result[0], float(result[1]))
        return result

    def make_record(self) -> dict[str, Any]:
        """What `replay` needs: {"episodes", "random"}; no episodes where the unfinished one is too long for it."""
        kept = [episode.as_record() for episode in self.episodes if episode.steps <= LONGEST]
        kept = kept if self.episodes[-1].steps <= LONGEST else []
        return {"episodes": kept, "random": self._random_state()}

    def replay(self) -> str:
        """Live through `to_replay`: '' where everything came out as it was recorded, else what did not."""
        wanted, self.to_replay = self.to_replay, {}
        if not wanted["episodes"]:
            return f"an episode has more than {LONGEST:,} steps"
        self.episodes.clear()
        try:
            last = [self._replay_episode(episode) for episode in wanted["episodes"]][-1]
        except Exception as error:  # an environment's own; whichever it is, the episode can't be had again
            return f"{type(error).__name__} in a replayed episode: {error}"
        found = self.make_record()
        for then, now in zip(wanted["episodes"], found["episodes"], strict=True):
            if any(then[key] != now[key] for key in then if key != "actions"):
                return "a replayed episode showed something else"
        if found["random"] != wanted["random"]:
            return "a replayed episode drew other random numbers"
        self.last = last
        return ""

    def _replay_episode(self, episode: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Reset and step as recorded; the last result, as of a step."""
        if not self.episodes and "random" in episode:
            self.np_random.bit_generator.state = json.loads(episode["random"])
        obs, info = self.reset(seed=episode.get("seed"))
        result = obs, 0.0, False, False, info
        for action in episode["actions"]:
            result = self.step(action)
        return result

    def _random_state(self) -> str:
        """The generator's state as text: its integers have 128 bits."""
        return json.dumps(self.np_random.bit_generator.state, default=np.ndarray.tolist)


class ReplayRestorer:
    """Restores a vector of Recorders by replaying their episodes."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs: Any = envs  # SyncVectorEnv and AsyncVectorEnv: both have `call` and `set_attr`

    def state_dict(self) -> dict[str, Any]:
        records = list(self.envs.call("make_record"))
        for episode in (episode for record in records for episode in record["episodes"]):
            episode["actions"] = torch.from_numpy(episode["actions"])
        return {"records": records}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        began = time.perf_counter()
        records = [{**record, "episodes": [_with_array(x) for x in record["episodes"]]} for record in state["records"]]
        self.envs.reset()  # nobody is to be reset in the next step
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


def _with_array(episode: dict[str, Any]) -> dict[str, Any]:
    return {**episode, "actions": episode["actions"].cpu().numpy()}


class KnownArrays(NamedTuple):
    """The arrays that, with the generator, are all that a vector environment remembers; how it shows them."""

    names: tuple[str, ...]
    show: Callable[[Any], Any]


KNOWN: dict[type, KnownArrays] = {
    CartPoleVectorEnv: KnownArrays(("state", "steps", "prev_done"), lambda envs: envs.state.T.astype(np.float32)),
}


class ArrayRestorer:
    """Restores a vector environment whose arrays are known."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], arrays: KnownArrays) -> None:
        self.envs: Any = envs
        self.arrays = arrays

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(np.array(getattr(self.envs, name))) for name in self.arrays.names}
        return {"arrays": arrays, "random": json.dumps(self.envs.np_random.bit_generator.state)}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name in self.arrays.names:
            setattr(self.envs, name, state["arrays"][name].cpu().numpy().copy())
        self.envs.np_random.bit_generator.state = json.loads(state["random"])
        return self.arrays.show(self.envs), {}


class OwnRestorer:
    """Restores a vector environment through its own `state_dict` and `load_state_dict`."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs: Any = envs

    def state_dict(self) -> dict[str, Any]:
        return {"own": copy.deepcopy(self.envs.state_dict())}  # it may go on changing what it returns

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        obs, info = self.envs.load_state_dict(state["own"])
        return obs, info


class NoRestorer:
    """Stands for a vector environment that cannot be restored."""

    def __init__(self, name: str) -> None:
        self.name = name

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        raise RestoreError(f"{self.name} has no state_dict and load_state_dict of its own")


def make_restorer(envs: VectorEnv[Any, Any, Any]) -> Restorer:
    """How to restore an environment's own vector version."""
    if type(envs) in KNOWN:
        return ArrayRestorer(envs, KNOWN[type(envs)])
    return OwnRestorer(envs) if hasattr(envs, "load_state_dict") else NoRestorer(type(envs).__name__)


class FreshBox2DWorld(gym.Wrapper[Any, Any, Any, Any]):
    """Gives BipedalWalker a Box2D world for each episode, as LunarLander makes one for itself.

    What earlier episodes leave in the world changes how the next one goes on from the same random state and actions
    (https://github.com/Farama-Foundation/Gymnasium/issues/728); 2 of 5 replays came out otherwise without this.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        walker: Any = self.unwrapped
        walker._destroy()
        walker.world = type(walker.world)(gravity=walker.world.gravity)
        return self.env.reset(**kwargs)


def make_repeatable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """`env` with its steps recorded, so that it can be restored."""
    return Recorder(FreshBox2DWorld(env) if type(env.unwrapped).__name__ == "BipedalWalker" else env)
