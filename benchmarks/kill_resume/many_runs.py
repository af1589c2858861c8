"""Many runs that start at once, of which some are killed and resumed at once."""

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

STEPS = 20_000  # of a run
KILLED = 0.48  # share of the runs
PATIENCE_S = 900.0  # for all of them
ARGUMENTS = (
    *("train", "cartpole", "--total-steps", str(STEPS), "--no-stop-when-solved", "--checkpoint.every-s", "2"),
    *("--eval.every-steps", "5000", "--eval.episodes", "5"),
)


@dataclass
class ManyRuns:
    """What became of runs that started at once."""

    states: Counter[str] = field(default_factory=Counter)  # after the kills, as they are shown
    killed: int = 0
    resumed: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)


def run_many(count: int, seed: int, folder: Path) -> ManyRuns:
    """Start runs at once, kill some of them, resume those, and compare all."""
    folder.mkdir(parents=True)
    rng, outcome, began = random.Random(seed), ManyRuns(), time.monotonic()
    processes = [Process(Command(ARGUMENTS, folder), fresh=True) for _ in range(count)]
    limits = {process: rng.uniform(0, 0.7) * STEPS for process in rng.sample(processes, round(KILLED * count))}
    dead = kill_at_steps(limits, folder / "runs")
    codes = [process.wait(PATIENCE_S) for process in processes]
    outcome.killed = codes.count(-signal.SIGKILL)
    outcome.complaints += [f"one ended with {code}" for code in codes if code not in (0, -signal.SIGKILL)]
    shown = shown_states(folder)
    outcome.states.update(shown.values())
    for name, state in shown.items():
        if state != ("crashed" if name in dead else "finished"):
            outcome.complaints.append(f"{name} is shown as {state}")
        outcome.complaints += find_unreadable(Run(folder / "runs" / name))
    resuming = [Process(Command(["resume", name], folder), fresh=True) for name in dead]
    outcome.resumed = [process.wait(PATIENCE_S) for process in resuming].count(0)
    finished = [run for run, status in all_runs(folder / "runs") if status.state == "finished"]
    outcome.complaints += [f"{count - len(finished)} have not finished"] if len(finished) < count else []
    for run in finished[1:]:
        outcome.complaints += [f"{run.name}: {text}" for text in find_differences(run, finished[0])[:3]]
    outcome.seconds = time.monotonic() - began
    return outcome


def kill_at_steps(limits: dict[Process, float], runs: Path) -> set[str]:
    """Kill processes once run.json shows so many steps; the names of the runs that had not finished by then."""
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
    """What `ppo-unified runs` shows of every run."""
    command = [sys.executable, "-P", "-m", "ppo_unified", "runs", "--json"]
    listed = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    return {row["name"]: row["shown_state"] for row in listed}
