"""Many runs at once, of which some are killed and resumed; and runs that are asked to stop at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from sameness import differences, unreadable
from victims import Order, Victim

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, all_runs
from ppo_unified.training import checkpoint

STEPS = 20_000  # of a run in the crowd
KILLED = 0.48  # share of the crowd
PATIENCE_S = 900.0  # for everybody
CROWD = (
    *("train", "cartpole", "--total-steps", str(STEPS), "--no-stop-when-solved", "--checkpoint.every-s", "2"),
    *("--eval.every-steps", "5000", "--eval.episodes", "5"),
)
ENDLESS = ("--total-steps", "1000000000", "--total-iterations", "1000000000", "--eval.every-steps", "0")


@dataclass
class Crowd:
    """What became of runs that started at once."""

    states: Counter[str] = field(default_factory=Counter)  # after the kills, as they are shown
    killed: int = 0
    resumed: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)


def gather(size: int, seed: int, folder: Path) -> Crowd:
    """Start runs at once, kill some of them, resume those, and compare all."""
    folder.mkdir(parents=True)
    rng, crowd, began = random.Random(seed), Crowd(), time.monotonic()
    victims = [Victim(Order(CROWD, folder), fresh=True) for _ in range(size)]
    doomed = {victim: rng.uniform(0, 0.7) * STEPS for victim in rng.sample(victims, round(KILLED * size))}
    dead = kill_at(doomed, folder / "runs")
    codes = [victim.wait(PATIENCE_S) for victim in victims]
    crowd.killed = codes.count(-signal.SIGKILL)
    crowd.complaints += [f"one ended with {code}" for code in codes if code not in (0, -signal.SIGKILL)]
    shown = shown_states(folder)
    crowd.states.update(shown.values())
    for name, state in shown.items():
        if state != ("crashed" if name in dead else "finished"):
            crowd.complaints.append(f"{name} is shown as {state}")
        crowd.complaints += unreadable(Run(folder / "runs" / name))
    resuming = [Victim(Order(["resume", name], folder), fresh=True) for name in dead]
    crowd.resumed = [victim.wait(PATIENCE_S) for victim in resuming].count(0)
    everybody = [run for run, status in all_runs(folder / "runs") if status.state == "finished"]
    crowd.complaints += [f"{size - len(everybody)} have not finished"] if len(everybody) < size else []
    for run in everybody[1:]:
        crowd.complaints += [f"{run.name}: {text}" for text in differences(run, everybody[0])[:3]]
    crowd.seconds = time.monotonic() - began
    return crowd


def kill_at(doomed: dict[Victim, float], runs: Path) -> set[str]:
    """Kill victims once run.json tells of so many steps; the names of the runs that were not over by then."""
    dead, deadline = set(), time.monotonic() + PATIENCE_S
    waiting = {victim.pid: victim for victim in doomed}
    while waiting and time.monotonic() < deadline:
        for run, status in all_runs(runs):
            victim = waiting.get(status.pid)
            if victim is None:
                continue
            if status.state == "finished":
                del waiting[victim.pid]
            elif status.state == "running" and status.step >= doomed[victim]:
                victim.signal(signal.SIGKILL)
                victim.wait()
                if run.read_status().state != "finished":
                    dead.add(run.name)
                del waiting[victim.pid]
        time.sleep(0.05)
    return dead


def shown_states(folder: Path) -> dict[str, str]:
    """What `ppo-unified runs` shows of every run."""
    command = [sys.executable, "-P", "-m", "ppo_unified", "runs", "--json"]
    listed = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    return {row["name"]: row["shown_state"] for row in listed}


class Stopping(NamedTuple):
    """Runs of one kind that are asked to stop."""

    name: str
    arguments: Sequence[str]
    limit_s: float


STOPPED = (
    Stopping("cartpole", ("cartpole", "--no-stop-when-solved", *ENDLESS), 2.0),
    Stopping("arithmetic", ("arithmetic", *ENDLESS), 5.0),
    Stopping(
        "arithmetic, responses of 400 tokens: nearly always generating",
        ("arithmetic", "--llm.max-new-tokens", "400", "--llm.missing-eos-penalty", "1", *ENDLESS),
        5.0,
    ),
)


def stop_often(stopping: Stopping, count: int, seed: int, folder: Path) -> tuple[list[float], list[str]]:
    """Seconds from SIGTERM to a stopped run, each time at another moment; and what was not as it should be."""
    folder.mkdir(parents=True)
    rng, run = random.Random(seed), Run(folder / "runs" / "run")
    seconds: list[float] = []
    complaints: list[str] = []
    for _ in range(count):
        order = ["resume", "run"] if run.path.exists() else ["train", *stopping.arguments, "--name", "run"]
        victim = Victim(Order(order, folder))
        until_running(run, victim)
        victim.wait(rng.uniform(0, 2))
        began = time.monotonic()
        victim.signal(signal.SIGTERM)
        code = victim.wait(60)
        seconds.append(time.monotonic() - began)
        victim.signal(signal.SIGKILL)
        complaints += [f"{stopping.name}: {text}" for text in after_stop(run, code)]
    return seconds, complaints


def until_running(run: Run, victim: Victim) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while victim.wait(0.01) is None and time.monotonic() < deadline:
        with suppress(UsageError):
            status = run.read_status()
            if status.pid == victim.pid and status.state == "running":
                return
    raise RuntimeError(f"{run.path}: has not started")


def after_stop(run: Run, code: int | None) -> list[str]:
    """What is wrong with a run that was asked to stop."""
    status, found = run.read_status(), []
    if code != 130 or status.state != "stopped" or run.is_locked():
        found.append(f"ended with {code}, state {status.state}")
    try:
        if checkpoint.load_newest(run, torch.device("cpu")) is None:
            found.append("there is no checkpoint")
    except UsageError as error:
        found.append(str(error))
    return found
