"""Helpers that kill and resume a run and compare it with an uninterrupted run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs import preparation, samples
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint, session

FREE = ("time/", "system/")  # metrics that depend on the clock and the machine


class SimulatedKill(BaseException):
    """Simulates a killed trainer; later writes of the same process have no effect."""


def prepare_run(config: RunConfig, runs: Path, name: str) -> Run:
    return preparation.prepare(preparation.complete(config)[0], runs, name)


def train_to_end(run: Run, stop: StopRequest | None = None) -> None:
    """Train in a run folder from its latest checkpoint to the end or until a stop."""
    if run._lock is None:
        run.acquire()
    session.train_in(run, presets.from_file(run.config), stop or StopRequest())


@contextmanager
def kill_at_call(where: str, number: int) -> Iterator[None]:
    """Inside the block, raise SimulatedKill before or after the `number`-th call of a function.

    `where` is 'before ' or 'after ' and a key of PLACES. Later writes of the run's status have no effect, as after a
    real kill.
    """
    when, _, place = where.partition(" ")
    owner, name = PLACES[place]
    real, calls = getattr(owner, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():  # a late heartbeat on a slow machine
            return real(*arguments, **options)
        calls[0] += 1
        if calls[0] != number:
            return real(*arguments, **options)
        if when == "after":
            real(*arguments, **options)
        patch.setattr(Run, "write_status", lambda self, status: None)
        raise SimulatedKill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


PLACES: dict[str, tuple[Any, str]] = {
    "event": (EventWriter, "scalars"),
    "checkpoint": (checkpoint, "save"),
    "pruning": (checkpoint, "prune"),
    "sample": (samples, "write"),
    "responses": (samples, "append_responses"),
    "status": (Run, "write_status"),
}


def train_until_killed(run: Run, where: str, number: int) -> bool:
    """Train until the simulated kill; return False if the run ended first."""
    try:
        with kill_at_call(where, number):
            train_to_end(run)
    except SimulatedKill:
        return True
    return False


def read_curves(run: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and values of every metric that must be reproducible."""
    reader = EventReader(run.path)
    reader.poll()
    assert not reader.damage
    return {
        tag: (series.steps.tolist(), series.values.tolist())
        for tag, series in sorted(reader.series.items())
        if not tag.startswith(FREE)
    }


def read_samples(run: Run) -> dict[str, Any]:
    """Return the content of samples/ without the metrics that depend on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(run.samples.iterdir()):
        if path.suffix == ".npz":
            one = samples.read(run, int(path.stem))
            metrics = {tag: x for tag, x in one.metrics.items() if not tag.startswith(FREE)}
            found[path.name] = {name: x for name, x in vars(one).items() if name != "where"} | {"metrics": metrics}
        else:
            found[path.name] = path.read_bytes()
    return found


def are_equal(a: Any, b: Any) -> bool:
    """Return True if two nested structures of dicts, lists, arrays and tensors are exactly equal."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(are_equal, a, b))
    if isinstance(a, np.ndarray | torch.Tensor):
        return bool(a.dtype == b.dtype and a.shape == b.shape and np.array_equal(np.asarray(a), np.asarray(b)))
    return bool(a == b)


def find_differences(whole: Run, other: Run) -> list[str]:
    """Return the differences between two runs that must be equal; the steps of each curve must increase."""
    found = []
    for tag, (steps, _) in read_curves(other).items():
        if steps != sorted(set(steps)):
            found.append(f"{tag}: the steps do not increase: {steps}")
    parts: dict[str, Callable[[Run], dict[str, Any]]] = {
        "curve": read_curves,
        "sample": read_samples,
        "final": read_final_state,
    }
    for what, read in parts.items():
        left, right = read(whole), read(other)
        keys = [*left, *(key for key in right if key not in left)]
        found += [f"{what} {key}" for key in keys if not are_equal(left.get(key), right.get(key))]
    return found


def read_final_state(run: Run) -> dict[str, Any]:
    """Return the latest checkpoint and the entries of run.json that do not depend on the clock."""
    loaded = checkpoint.load_newest(run, torch.device("cpu"))
    assert loaded is not None
    status = run.read_status()
    state = {name: getattr(status, name) for name in ("state", "reason", "step", "iteration", "score", "solved_step")}
    state |= {"best": (status.best_step, status.best_score), "best checkpoint": checkpoint.find_best(run)}
    trainer = {name: x for name, x in loaded.trainer.items() if name != "elapsed_s"}
    return state | {"policy": loaded.policy, "trainer": trainer}
