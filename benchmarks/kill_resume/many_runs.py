"""Start many runs at the same time, kill some of them, and resume the killed runs at the same time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kill_resume.commands import Command, Process
from kill_resume.compare import find_differences, find_unreadable
from ppo_unified.runs.folder import Run, all_runs

STEPS = 20_000  # per run
KILLED = 0.48  # share of the runs that are killed
PATIENCE_S = 900.0  # for all runs together
ARGUMENTS = (
    *("train", "cartpole", "--total-steps", str(STEPS), "--no-stop-when-solved", "--checkpoint.every-s", "2"),
    *("--eval.every-steps", "5000", "--eval.episodes", "5"),
)


@dataclass
class ManyRuns:
    """The results of runs that were started at the same time."""

    states: Counter[str] = field(default_factory=Counter)  # displayed states after the kills
    killed: int = 0
    resumed: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def run_many(count: int, seed: int, folder: Path) -> ManyRuns:
    """Start runs at the same time, kill some of them, resume those, and compare all runs."""
    folder.mkdir(parents=True)
    rng, outcome, began = random.Random(seed), ManyRuns(), time.monotonic()
    processes = [Process(Command(ARGUMENTS, folder), fresh=True) for _ in range(count)]
    limits = {process: rng.uniform(0, 0.7) * STEPS for process in rng.sample(processes, round(KILLED * count))}
    dead = kill_at_steps(limits, folder / "runs")
    codes = [process.wait(PATIENCE_S) for process in processes]
    outcome.killed = codes.count(-signal.SIGKILL)
    outcome.problems += [f"a run exited with code {code}" for code in codes if code not in (0, -signal.SIGKILL)]
    shown = shown_states(folder)
    outcome.states.update(shown.values())
    for name, state in shown.items():
        if state != ("crashed" if name in dead else "finished"):
            outcome.problems.append(f"{name} is shown as {state}")
        outcome.problems += find_unreadable(Run(folder / "runs" / name))
    resuming = [Process(Command(["resume", name, "--yes"], folder), fresh=True) for name in dead]
    outcome.resumed = [process.wait(PATIENCE_S) for process in resuming].count(0)
    finished = [run for run, status in all_runs(folder / "runs") if status.state == "finished"]
    outcome.problems += [f"{count - len(finished)} runs have not finished"] if len(finished) < count else []
    for run in finished[1:]:
        outcome.problems += [f"{run.name}: {text}" for text in find_differences(run, finished[0])[:3]]
    outcome.seconds = time.monotonic() - began
    return outcome


def kill_at_steps(limits: dict[Process, float], runs: Path) -> set[str]:
    """Kill each process when run.json reaches its step limit. Return the names of runs that had not finished."""
    dead, deadline = set(), time.monotonic() + PATIENCE_S
    waiting = {process.pid: process for process in limits}
    while waiting and time.monotonic() < deadline:
        for run, status in all_runs(runs):
            process = waiting.get(status.pid)
            if process is None:
                continue
            if status.state == "finished":
                del waiting[process.pid]
            elif status.state == "running" and status.step >= limits[process]:
                process.signal(signal.SIGKILL)
                process.wait()
                if run.read_status().state != "finished":
                    dead.add(run.name)
                del waiting[process.pid]
        time.sleep(0.05)
    return dead


def shown_states(folder: Path) -> dict[str, str]:
    """Return the state of every run as shown by `ppo-unified runs`."""
    command = [sys.executable, "-P", "-m", "ppo_unified", "runs", "--json"]
    listed = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    return {row["name"]: row["shown_state"] for row in listed}
